from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from danlu.insight.curve import Curve
from danlu.insight.fit import judge_fit
from danlu.insight.report import write_report
from insight.density_runs import RECIPE, density_rows, image_event, path, picture, plane_event, told
from insight.test_report import CHROMIUM, HOSTILE, Document, in_a_browser, read

MakeRun = Callable[..., Path]
LANGUAGE = ("token", "perplexity", "MFU", "Packing", "bits per byte", "not known")


def plane(make_run: MakeRun) -> Path:
    events = told(*(plane_event(step) for step in (0, 50)), plane_event(100, path=path(5), gif="path.gif"))
    return make_run(metrics=density_rows(100), events=events, recipe=RECIPE)


def figures(page: Document) -> dict[str, dict[str, Any]]:
    names = [attrs["id"] for tag, attrs in page.elements if tag == "div" and "plot" in (attrs.get("class") or "")]
    drawn = [json.loads(script) for script in page.scripts if script.startswith('{"data"')]
    return dict(zip(map(str, names), drawn, strict=True))


def test_a_density_of_the_plane(make_run: MakeRun) -> None:
    page = read(write_report(plane(make_run)))
    drawn = figures(page)
    assert list(drawn)[:4] == ["map", "cloud", "path", "loss"]
    for words in (
        "Held-out log-likelihood 0.3771 nats a row; its best",
        "A row 2 numbers",
        "Rows learned from 9,000",
        "Likelihood exact",
        "Inversion error 2.4e-06",
        "Noise to a row 1 pass",
        "Rows a second 64 k",
        "in 4 stages",
        "has it as path.gif",
        "Negative log-likelihood, nats a row.",
    ):
        assert words in page.text, words
    for words in LANGUAGE:
        assert words not in page.text, words
    assert "fitting well" in page.text


def test_the_map_is_the_density_and_says_what_it_adds_up_to(make_run: MakeRun) -> None:
    page = read(write_report(plane(make_run)))
    heat, dots = figures(page)["map"]["data"]
    assert max(map(max, heat["z"])) == pytest.approx(math.exp(-16 / 23**2) / (2 * math.pi), rel=2e-2)
    assert len(heat["z"]) == len(heat["x"]) == len(heat["y"]) == 24
    assert len(dots["x"]) == 200
    (sums,) = re.findall(r"it adds up to (\d\.\d+)", page.text)
    assert float(sums) == pytest.approx(math.erf(4 / 2**0.5) ** 2, abs=2e-3)


def test_maps_are_seen_as_they_came_about(make_run: MakeRun) -> None:
    page = read(write_report(plane(make_run)))
    images = [str(attrs["src"]) for tag, attrs in page.elements if attrs.get("class") == "surface"]
    assert len(images) == 3
    assert "Density as it came about, step 100" in page.text
    with Image.open(io.BytesIO(base64.b64decode(images[-1].removeprefix("data:image/png;base64,")))) as picture:
        colors = np.asarray(picture).astype(int)
    assert colors.shape == (24, 24, 3)
    assert tuple(colors[12, 12]) == pytest.approx((253, 231, 37), abs=8)
    assert tuple(colors[0, 0]) == (68, 1, 84)


def test_a_peak_beyond_all_numbers_is_drawn(make_run: MakeRun) -> None:
    event = plane_event(100)
    event["map"] = {"x": [0, 1], "y": [0, 1], "side": 2, "values": [1e5, 0, 0, 0]}
    page = read(write_report(make_run(metrics=density_rows(100), events=told(event), recipe=RECIPE)))
    assert "map" in figures(page)


def test_the_way_from_noise_is_an_animation(make_run: MakeRun) -> None:
    figure = figures(read(write_report(plane(make_run))))["path"]
    assert [frame["name"] for frame in figure["frames"]] == ["0", "1", "2", "3", "4"]
    assert [b["label"] for b in figure["layout"]["updatemenus"][0]["buttons"]] == ["Play", "Pause"]
    assert [s["args"][0] for s in figure["layout"]["sliders"][0]["steps"]] == [[str(i)] for i in range(5)]
    assert figure["data"][0]["x"] == figure["frames"][-1]["data"][0]["x"] != figure["frames"][0]["data"][0]["x"]


def test_a_density_of_images(make_run: MakeRun) -> None:
    way = {"pictures": [picture(i) for i in range(6)], "stages": [0, 2, 4, 6, 8, 10]}
    events = told(image_event(0), image_event(50), image_event(100, path=way))
    page = read(write_report(make_run(metrics=density_rows(100, likelihood=False), events=events, recipe=RECIPE)))
    images = [str(attrs["src"]) for tag, attrs in page.elements if tag == "img"]
    assert len(images) == 3 + 1 + 1 + 6
    assert images[2] == f"data:image/png;base64,{picture(100)}"
    for words in (
        "Held-out log-likelihood -130 nats a row, of 128 rows",
        "Held-out bits per dimension 2.93",
        "Conditioned on 10 classes",
        "Samples, step 100",
        "From noise to images, stage 10",
        "A row to noise 14 network evaluations",
    ):
        assert words in page.text, words
    assert figures(page)["likelihood"]["data"][0]["y"] == [-130, -130, -130]
    sliders = [attrs for tag, attrs in page.elements if tag == "input"]
    assert [slider["max"] for slider in sliders] == ["2", "5"]


def test_columns_are_drawn_beside_the_data(make_run: MakeRun) -> None:
    columns = [
        {"name": name, "edges": [0, 1, 2, 3], "data": [0.5, 0.25, 0.25], "samples": [0.4, 0.3, 0.3]}
        for name in ("height", HOSTILE)
    ]
    event = plane_event(100, shape=[3], histograms=columns)
    cloud = {**event["cloud"], "shares": [0.5, 0.25]}  # type: ignore[dict-item]
    event |= {"cloud": cloud, "map": None}
    page = read(write_report(make_run(metrics=density_rows(100), events=told(event), recipe=RECIPE)))
    drawn = figures(page)
    assert list(drawn)[:3] == ["cloud", "column-0", "column-1"]
    assert [trace["y"] for trace in drawn["column-0"]["data"]] == [[0.5, 0.25, 0.25], [0.4, 0.3, 0.3]]
    assert "hold 75 % of the variance" in page.text
    assert HOSTILE in page.text
    assert sum(tag == "script" for tag, _ in page.elements) == page.num("plot") + 2


def test_odd_events_are_left_out_and_faults_are_told(make_run: MakeRun) -> None:
    png = base64.b64encode(b"<svg onload=alert(1)>").decode()
    odd: dict[str, object] = {
        "shape": ["x"],
        "evaluations": "many",
        "cloud": {"data": [[1], [2, 3]], "samples": [[1.0, None], [2.0, 3.0]]},
        "map": {"x": [0], "y": None, "side": 3, "values": [0.0] * 8},
        "pictures": {"samples": png, "data": "%%%", "between": 7},
        "path": {"clouds": [[[1], [2]], "x"], "pictures": [png]},
        "histograms": [1, {"edges": [1, 2], "data": [1, 2], "samples": []}],
        "likelihood": HOSTILE,
        "faults": ["the equation was not followed"],
    }
    others = [plane_event(step, map={**path(1), "side": side}) for step, side in enumerate((float("nan"), 1e308, -2))]
    events = told(*others, plane_event(100, **odd))
    page = read(write_report(make_run(metrics=density_rows(100), events=events, recipe=RECIPE)))
    assert next(iter(figures(page))) == "loss"
    assert not any(tag == "img" for tag, _ in page.elements)
    assert "could not be shown: the equation was not followed" in page.text


def test_losses_below_zero_are_judged_by_what_was_gained() -> None:
    steps, measured = list(range(200)), list(range(0, 200, 20))
    falling = [-1.0 + 3.0 * math.exp(-step / 20) for step in steps]
    train, held_out = Curve.of(steps, falling), Curve.of(measured, [falling[step] + 0.01 for step in measured])
    fit = judge_fit(train, held_out, from_first=True)
    assert fit.verdict == "fitting well"
    assert "0.3 % of all that was gained above the training loss" in fit.sentence
    near_zero = Curve.of(steps, [loss + 1.0 for loss in falling]), Curve.of(measured, held_out.values + 1.0)
    assert judge_fit(*near_zero, from_first=True).verdict == fit.verdict != judge_fit(*near_zero).verdict
    rising = Curve.of(measured, [falling[step] + 0.004 * step for step in measured])
    assert judge_fit(train, rising, from_first=True).verdict == "over-fitting"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium in PATH")
def test_a_browser_draws_it(make_run: MakeRun, tmp_path: Path) -> None:
    dom, console = in_a_browser(write_report(plane(make_run)), tmp_path)
    page = Document(dom)
    assert page.num("js-plotly-plot") == page.num("plot") >= 7
    assert "Play" in page.text
    assert console == []
