from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from commands import Say
from danlu.errors import RunError
from danlu.insight.acting_charts import returns_chart
from danlu.insight.curve import Curve
from danlu.insight.record import read_record
from danlu.insight.report import write_report
from danlu.insight.seeds import returns_over_seeds
from insight.acting_runs import RECIPE, WORLD, deep_events, deep_rows, estimate_rows, grid_events
from insight.test_report import CHROMIUM, HOSTILE, Document, in_a_browser, read

MakeRun = Callable[..., Path]
GIF = base64.b64decode("R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==")
LANGUAGE = ("token", "perplexity", "MFU", "FLOPs utilisation", "Packing", "bits per byte")


def deep(make_run: MakeRun, turns: int = 200) -> Path:
    return make_run(metrics=deep_rows(turns), events=deep_events(turns), recipe=RECIPE)


def figures(page: Document) -> dict[str, dict[str, list[dict[str, object]]]]:
    names = [attrs["id"] for tag, attrs in page.elements if tag == "div" and attrs.get("class") == "plot"]
    drawn = [json.loads(script) for script in page.scripts if script.startswith('{"data"')]
    return dict(zip(map(str, names), drawn, strict=True))


def test_a_run_that_acted(make_run: MakeRun) -> None:
    page = read(write_report(deep(make_run)))
    for words in (
        "Environment CartPole-v1 8 side by side",
        "Held-out return 479.8 ± 12 its best",
        "Environment steps 205 k",
        "Environment steps a second 2,048 median",
        "Parameters 9,155",
        "levelled off The held-out return went from 21 to",
        "Model built actor and critic, 9,155 parameters",
        "Environment made CartPole-v1, 8 side by side",
        "World Environment CartPole-v1 Side by side 8 Shows Box(4) Takes Discrete(2)",
        "Squashed surprise",
    ):
        assert words in page.text, words
    for words in LANGUAGE:
        assert words not in page.text.replace("Environment steps a second", ""), words
    drawn = figures(page)
    named = {f"metric-{name}" for name in ("policy-loss", "value-loss", "entropy", "kl", "squashed-surprise")}
    assert set(drawn) == {"returns", "length", "loss", "speed", "lr", "grad-norm", "memory", *named}
    held_out = drawn["returns"]["data"][-1]
    assert held_out["y"] == pytest.approx(
        [row["held_out_return"] for row in deep_rows(200) if "held_out_return" in row], rel=1e-4
    )


def test_the_shade_is_a_standard_deviation_to_either_side() -> None:
    held_out, spread = Curve.of([0, 10], [5.0, 9.0]), Curve.of([0, 10], [1.0, 2.0])
    chart = returns_chart(Curve.of([], []), held_out, spread)
    assert chart is not None
    shade, line = json.loads(chart.figure)["data"]
    assert (shade["x"], shade["y"]) == ([0, 10, 10, 0], [6, 11, 7, 4])
    assert (line["x"], line["y"]) == ([0, 10], [5, 9])
    assert "standard deviation" in chart.caption
    bare = returns_chart(Curve.of([], []), held_out, Curve.of([], []))
    assert bare is not None
    assert len(json.loads(bare.figure)["data"]) == 1
    assert "standard deviation" not in bare.caption


def test_a_run_without_a_return_yet(make_run: MakeRun) -> None:
    rows = [{"step": 1, "loss": 0.5, "env_steps": 8}]
    page = read(write_report(make_run(metrics=rows, events=[WORLD], recipe=RECIPE)))
    assert "No return has been measured" in page.text
    assert "Environment steps 8" in page.text


def test_values_of_a_finite_world_over_its_measurements(make_run: MakeRun) -> None:
    values = [[0.0] * 6, [0.1, -1.0, 0.3, 0.4, 0.5, 1.0], [0.2, -2.0, 0.6, 0.8, 1.0, 2.0]]
    events = grid_events(values, [2, 2, 2, 1, 1, 4])
    page = read(write_report(make_run(metrics=[{"step": 20, "loss": 0.1}], events=events)))
    assert page.num("moment") == 3
    assert sum("hidden" in attrs for tag, attrs in page.elements if tag == "div") == 2
    (slider,) = [attrs for tag, attrs in page.elements if tag == "input"]
    assert (slider["min"], slider["max"], slider["value"]) == ("0", "2", "2")
    for words in (
        "step 20",
        "state 5: 2, action 4",
        "a ring: stay",
        "dashed frames are forbidden",
        "whole frame is the",
    ):
        assert words in page.text, words
    assert "Values " not in page.text.split("Timeline")[1]


def test_odd_values_are_left_out(make_run: MakeRun) -> None:
    events = grid_events([[0.0] * 6], [0] * 6)
    for odd in ("x", [], [None, 1], [1, 2, "3"], [float("nan")] * 6, [0.0] * 9999, {"a": 1}):
        events.insert(2, {"kind": "values", "step": 5, "values": odd, "actions": [0]})
    events[1] |= {"cells": {"forbidden": "x", "target": 77}}
    page = read(write_report(make_run(metrics=[{"step": 20, "loss": 0.1}], events=events)))
    assert page.num("moment") == 1
    assert "target" not in page.text


def test_episodes_are_in_the_page(make_run: MakeRun, tmp_path: Path) -> None:
    events = deep_events(20)
    outside = tmp_path / "outside.gif"
    outside.write_bytes(GIF)
    for step in range(0, 100, 10):
        path = f"frames/step-{step}.gif"
        events.append({"kind": "frames", "step": step, "path": path, "return": 9.5, "length": 1200})
    for path in ("../outside.gif", str(outside), "frames/text.gif", "frames/absent.gif", ""):
        events.append({"kind": "frames", "step": 1, "path": path, "return": 777.0, "length": 1})
    run = make_run(metrics=deep_rows(20), events=events, recipe=RECIPE)
    (run / "frames").mkdir()
    for step in range(0, 100, 10):
        (run / "frames" / f"step-{step}.gif").write_bytes(GIF)
    (run / "frames" / "text.gif").write_text("<svg onload=alert(1)>")
    page = read(write_report(run))
    images = [str(attrs["src"]) for tag, attrs in page.elements if tag == "img"]
    assert 2 <= len(images) <= 10
    assert {base64.b64decode(src.removeprefix("data:image/gif;base64,")) for src in images} == {GIF}
    assert "Step 0: return 9.5, 1,200 steps" in page.text
    assert "Step 90: return 9.5" in page.text
    assert "777" not in page.text


def test_what_converges(make_run: MakeRun) -> None:
    world: dict[str, object] = {"kind": "world", "env": "", "root": 2.5}
    page = read(write_report(make_run(metrics=estimate_rows(511), events=[world])))
    drawn = figures(page)
    for name in ("metric-error", "metric-step-size"):
        assert drawn[name]["layout"]["yaxis"]["type"] == "log"  # type: ignore[index, call-overload]
    curve, sought = drawn["estimate"]["data"]
    assert sought["y"] == [2.5, 2.5]
    assert curve["y"][-1] == pytest.approx(2.5442, abs=1e-4)  # type: ignore[index]
    assert "converging The error went from 1 to" in page.text
    assert "step^-0.5" in page.text
    assert "return" not in page.text.lower()


def test_of_a_table_no_gradient_is_drawn(make_run: MakeRun) -> None:
    rows: list[dict[str, object]] = [{"step": s, "loss": 1 / s} for s in range(1, 9)]
    model: dict[str, object] = {"kind": "model", "agent": "q_learning", "parameters": 175, "trainable": 0}
    page = read(write_report(make_run(metrics=rows, events=[WORLD, model], recipe=RECIPE)))
    assert set(figures(page)) == {"loss"}
    assert "Parameters 175 moved by the method" in page.text


def test_what_a_run_says_of_its_world_stays_text(make_run: MakeRun) -> None:
    world = {**WORLD, "env": HOSTILE, "observation": HOSTILE, "moves": HOSTILE, "height": HOSTILE}
    rows: list[dict[str, object]] = [{"step": step, "loss": 1.0, HOSTILE: 1.0, "env_steps": 4} for step in range(1, 9)]
    events = [world, {"kind": "values", "step": 1, "values": [1.0, 2.0], "actions": [0, 1]}]
    page = read(write_report(make_run(metrics=rows, events=events, recipe=RECIPE)))
    assert sum(tag == "script" for tag, _ in page.elements) == page.num("plot") + 2
    assert not any(tag == "img" for tag, _ in page.elements)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium in PATH")
def test_a_browser_draws_it_and_brings_the_slider_to_life(make_run: MakeRun, tmp_path: Path) -> None:
    events = [*deep_events(40), *grid_events([[0.0] * 6, [1.0] * 6], [1] * 6)[2:]]
    dom, console = in_a_browser(write_report(make_run(metrics=deep_rows(40), events=events, recipe=RECIPE)), tmp_path)
    page = Document(dom)
    assert page.num("js-plotly-plot") == page.num("plot") > 8
    assert [attrs for tag, attrs in page.elements if tag == "input" and "hidden" not in attrs]
    assert console == []


def seeded(tmp_path: Path, seed: int, **changed: object) -> Path:
    run = tmp_path / f"seed-{seed}"
    run.mkdir()
    rows = deep_rows(40, seed=seed, best=100.0 + 20 * seed)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "events.jsonl").write_text(json.dumps({**WORLD, **changed}) + "\n")
    (run / "recipe.yaml").write_text(RECIPE)
    return run


def test_runs_of_several_seeds_are_drawn_together(say: Say, tmp_path: Path) -> None:
    runs = [seeded(tmp_path, seed) for seed in range(3)]
    chart = returns_over_seeds([read_record(run) for run in runs])
    *_, mean = json.loads(chart.figure)["data"]
    ends = [20 + (80 + 20 * seed) * (1 - np.exp(-8)) for seed in range(3)]
    assert (mean["name"], mean["x"][0], mean["x"][-1]) == ("ppo", 0, 40 * 1024)
    assert (mean["y"][0], mean["y"][-1]) == (21, pytest.approx(np.mean(ends), rel=1e-4))
    assert mean["customdata"][-1] == pytest.approx([min(ends), max(ends)], rel=1e-4)
    assert "ppo: 3 runs, at the end 120 (99.97 to 140)" in chart.caption
    answer = say("report", runs[0], "--with", runs[1], "--with", runs[2])
    assert (answer.status, answer.err) == (0, "")
    assert "Held-out return of all runs" in read(Path(answer.out.strip())).text


def test_runs_that_cannot_be_compared_are_refused(make_run: MakeRun, tmp_path: Path) -> None:
    one, other = seeded(tmp_path, 0), seeded(tmp_path, 1, env="Pendulum-v1")
    with pytest.raises(RunError, match="several environments: CartPole-v1, Pendulum-v1"):
        returns_over_seeds([read_record(one), read_record(other)])
    language = make_run(num_steps=5)
    with pytest.raises(RunError, match="did not learn from acting"):
        returns_over_seeds([read_record(one), read_record(language)])
    assert not (one / "report.html").exists()
