from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from danlu.errors import RunError
from danlu.insight.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MakeRun = Callable[..., Path]
HOSTILE = '</script><script>document.title = "broken"</script><img src=x onerror=alert(1)>'


class Document(HTMLParser):
    """The elements, the visible text and the scripts of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        (self.scripts if self.elements and self.elements[-1][0] == "script" else self.words).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def num(self, kind: str) -> int:
        return sum(kind in (attrs.get("class") or "").split() for _, attrs in self.elements)


def read(path: Path) -> Document:
    return Document(path.read_text(encoding="utf-8"))


def test_a_whole_run(make_run: MakeRun) -> None:
    run = make_run()
    path = write_report(run)
    assert path == run / "report.html"
    assert not (run / "report.html.partial").exists()
    page = read(path)
    assert page.num("plot") == 8
    for words in (
        "shakespeare",
        "10.8 M",
        "Ended at step 2,000: all steps done",
        "fitting well",
        "disk is nearly full",
    ):
        assert words in page.text
    assert "6 checkpoints step 0 to step 1,000" in page.text


def test_what_ranks_and_guards_say_is_told(make_run: MakeRun) -> None:
    """Events as a run of two processes writes them that skips, rolls back and is taken up again."""
    spike = "step 31 has loss 9, where 2 is usual and above 3 is a spike, on samples a.jsonl:7"
    events: list[dict[str, object]] = [
        {"time": 0.0, "kind": "start", "steps": 60},
        {"time": 0.0003, "kind": "note", "message": "the run is not locked"},
        {"time": 0.0004, "kind": "ranks", "size": 2, "parallel": "zero3"},
        {"time": 9.0, "kind": "checkpoint", "step": 20, "path": "checkpoints/step-20", "staged_seconds": 0.25},
        {"time": 10.0, "kind": "skip", "message": "step 24 has no end"},
        {"time": 11.0, "kind": "skip", "message": "step 24 has no end either"},
        {"time": 12.0, "kind": "rollback", "step": 31, "message": spike, "undone": 10},
        {"time": 20.0, "kind": "end", "step": 40, "reason": "max_time", "seconds": 20.0},
        {"time": 30.0, "kind": "resume", "step": 40, "steps": 60},
        {"time": 30.1, "kind": "note", "message": "run.steps is 60 from here on"},
        {"time": 30.2, "kind": "ranks", "size": 4, "parallel": "ddp"},
        {"time": 40.0, "kind": "end", "step": 60, "reason": "done", "seconds": 10.0},
    ]
    text = read(write_report(make_run(num_steps=60, events=events))).text
    warnings, notes, timeline = (
        text[text.index(f" {start} ") : text.index(f" {end} ")]
        for start, end in (("Warnings", "Notes"), ("Notes", "Training"), ("Timeline", "Recipe"))
    )
    assert "3 updates were passed over, and 10 before them undone" in warnings
    assert notes.split(maxsplit=1)[1] == "the run is not locked"
    for words in (
        "Started 60 steps",
        "+ 0 s 2 processes zero3",
        "Checkpoint step 20, checkpoints/step-20, held the run up 0.25 s",
        "2 updates skipped the first: step 24 has no end +",
        f"Rolled back 10 updates {spike}",
        "Ended run.max_time was over, step 40",
        "Resumed from step 40 + 30.1 s Note run.steps is 60 from here on + 30.2 s 4 processes ddp",
    ):
        assert words in timeline, timeline
    assert "not locked" not in timeline
    assert "Processes 4 ddp" in text[text.index(" Machine ") :]
    assert "on the first process" in text


@pytest.mark.parametrize(
    ("kinds", "words"),
    [(["skip"], "One update was passed over"), (["rollback"], "over, and 3 before it undone; ")],
)
def test_updates_that_taught_nothing_are_counted(make_run: MakeRun, kinds: list[str], words: str) -> None:
    events: list[dict[str, object]] = [{"time": 0.0, "kind": kind, "message": "why", "undone": 3} for kind in kinds]
    assert words in read(write_report(make_run(num_steps=60, events=events))).text


def test_a_run_taken_up_by_one_process_is_of_one(make_run: MakeRun) -> None:
    events: list[dict[str, object]] = [
        {"time": 0.0, "kind": "start"},
        {"time": 0.0, "kind": "ranks", "size": 2, "parallel": "ddp"},
        {"time": 1.0, "kind": "resume", "step": 30},
    ]
    text = read(write_report(make_run(num_steps=60, events=events))).text
    assert "Processes" not in text
    assert "on the first process" not in text


def test_the_page_asks_for_nothing(make_run: MakeRun) -> None:
    html = write_report(make_run()).read_text(encoding="utf-8")
    page = Document(html)
    for tag, attrs in page.elements:
        assert tag not in {"link", "iframe", "img", "object", "embed", "base"}
        assert not {"src", "href", "srcset", "action", "data"} & set(attrs), tag
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(attrs["content"] for tag, attrs in page.elements if tag == "meta" and "http-equiv" in attrs)
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy
    assert html.count("Plotly.newPlot(plot") == 1


def test_what_a_run_contains_stays_text(make_run: MakeRun) -> None:
    events: list[dict[str, object]] = [
        {"time": 0.0, "kind": "start"},
        {"time": 1.0, "kind": HOSTILE, "note": HOSTILE},
        {"time": 1.0, "kind": "sample", "step": 1, "prompt": HOSTILE, "text": HOSTILE + HOSTILE},
        {"time": 1.0, "kind": "warning", "message": HOSTILE},
        {"time": 1.0, "kind": "end", "step": 1, "reason": HOSTILE, "seconds": 1.0},
    ]
    recipe = "run:\n  name: " + json.dumps(HOSTILE) + "\n"
    page = read(write_report(make_run(num_steps=60, recipe=recipe, events=events)))
    drawn = page.num("plot")
    assert sum(tag == "script" for tag, _ in page.elements) == drawn + 2
    assert not any(tag == "img" for tag, _ in page.elements)
    assert page.text.count("</script>") >= 6


def test_a_hundred_thousand_steps_stay_small(make_run: MakeRun) -> None:
    page = read(write_report(make_run(num_steps=100_000)))
    figures = [script for script in page.scripts if script.startswith('{"data"')]
    assert figures
    assert all(len(trace["x"]) <= 2000 for figure in figures for trace in json.loads(figure)["data"])
    assert sum(map(len, figures)) < 1_000_000
    assert "Of 100,000 steps, every chart draws the smallest and the largest of each 100." in page.text


def test_a_run_just_started(make_run: MakeRun) -> None:
    run = make_run(metrics=[{"step": 0, "held_out_loss": 4.2}], events=[{"time": 0.0, "kind": "start"}])
    (run / "versions.json").unlink()
    page = read(write_report(run))
    assert page.num("plot") == 1
    assert "No end is recorded" in page.text
    assert "No training step" in page.text


def test_a_killed_run_leaves_half_a_line(make_run: MakeRun) -> None:
    run = make_run(num_steps=60)
    for name in ("metrics.jsonl", "events.jsonl"):
        with (run / name).open("a", encoding="utf-8") as file:
            file.write('{"step": 61, "lo')
    assert "could not be read" not in read(write_report(run)).text


def test_a_spoilt_line_inside_is_told(make_run: MakeRun) -> None:
    run = make_run(num_steps=60)
    metrics = run / "metrics.jsonl"
    metrics.write_text("not json\n[1, 2]\n" + metrics.read_text(encoding="utf-8"), encoding="utf-8")
    assert "2 lines of metrics.jsonl and events.jsonl could not be read" in read(write_report(run)).text


def test_losses_that_are_not_numbers_are_told(make_run: MakeRun) -> None:
    rows: list[dict[str, object]] = [{"step": step, "loss": 2.0, "grad_norm": None} for step in range(1, 50)]
    rows[7]["loss"], rows[8]["loss"] = math.nan, math.inf
    page = read(write_report(make_run(metrics=rows)))
    assert "loss was not a finite number at step 8 and 1 more" in page.text
    assert page.num("plot") == 2


def test_only_metrics_are_needed(make_run: MakeRun) -> None:
    run = make_run(num_steps=60)
    for name in ("recipe.yaml", "events.jsonl", "versions.json"):
        (run / name).unlink()
    page = read(write_report(run))
    assert "<h1>run</h1>" in (run / "report.html").read_text(encoding="utf-8")
    assert page.num("plot") == 7


@pytest.mark.parametrize("recipe", ["", "- a list", "run: [1", "run: text", "run:\n  name: 2024\n"])
def test_any_recipe_is_shown(make_run: MakeRun, recipe: str) -> None:
    assert read(write_report(make_run(num_steps=5, recipe=recipe))).num("plot") == 8


@pytest.mark.parametrize(
    "histogram",
    [None, {}, {"edges": [], "counts": []}, {"edges": [1], "counts": [1, 2, 3]}, {"edges": "x", "counts": [0, 0]}],
)
def test_an_odd_histogram_is_left_out(make_run: MakeRun, histogram: object) -> None:
    events: list[dict[str, object]] = [{"kind": "data", "documents": 3, "length_histogram": histogram}]
    assert read(write_report(make_run(num_steps=60, events=events))).num("plot") == 7


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run"):
        write_report(tmp_path)
    with pytest.raises(RunError, match="not a run"):
        write_report(tmp_path / "absent")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "lo', encoding="utf-8")
    with pytest.raises(RunError, match="no metrics yet"):
        write_report(tmp_path)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium in PATH")
@pytest.mark.parametrize("hostile", [False, True])
def test_a_browser_draws_every_chart(make_run: MakeRun, tmp_path: Path, hostile: bool) -> None:
    run = make_run(recipe=f"# {HOSTILE}\nrun: {{name: {json.dumps(HOSTILE)}}}\n") if hostile else make_run()
    dom, console = in_a_browser(write_report(run), tmp_path)
    page = Document(dom)
    drawn = re.findall(r'<div class="plot js-plotly-plot".*?<svg class="main-svg"', dom, re.DOTALL)
    assert len(drawn) == page.num("plot") == 8
    assert len(re.findall(r'<g class="(?:xy|trace scatter|trace bars)', dom)) >= 8
    assert console == []
    assert "<title>broken</title>" not in dom


def in_a_browser(path: Path, folder: Path) -> tuple[str, list[str]]:
    """A page after its scripts, and what these said."""
    assert CHROMIUM is not None
    quiet = ["gpu", "quic", "background-networking", "component-update", "sync"]
    flags = ["--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    flags += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=10000", "--window-size=1280,3000"]
    command = [CHROMIUM, *flags, "--enable-logging=stderr", "--dump-dom", path.as_uri()]
    environment = {**os.environ, "HOME": str(folder)}
    seen = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
    return seen.stdout, [line for line in seen.stderr.splitlines() if "CONSOLE" in line]


def preference_rows(bins: int) -> list[dict[str, object]]:
    """Rows of a reward model that becomes surer and better, its confidence a little too high."""
    rows: list[dict[str, object]] = []
    for step in range(0, 61):
        row: dict[str, object] = {
            "step": step,
            "loss": 0.69 - step / 200,
            "accuracy": 0.5 + step / 200,
            "margin": step / 60,
        }
        if step % 20 == 0:
            row |= {
                "held_out_loss": 0.69 - step / 250,
                "held_out_accuracy": 0.5 + step / 250,
                "held_out_margin": step / 80,
            }
            row |= {"held_out_reward_chosen": step / 100, "held_out_reward_rejected": -step / 100}
            for number in range(bins):
                sure = 0.5 + (number + 0.5) / (2 * bins)
                row[f"held_out_calibration_{number}_share"] = 1 / bins
                row[f"held_out_calibration_{number}_confidence"] = sure / bins
                row[f"held_out_calibration_{number}_agreement"] = (sure - 0.05) / bins
            row["held_out_calibration_error"] = 0.05
        rows.append(row)
    return rows


def test_a_run_that_learned_from_preferences(make_run: MakeRun) -> None:
    run = make_run()
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in preference_rows(10)))
    page = read(write_report(run))
    for words in (
        "Held-out agreement",
        "74 %",
        "Calibration error",
        "5 %",
        "Reward margin",
        "Rewards",
        "right as often as it says",
    ):
        assert words in page.text, words
    assert "nats a token" not in page.text.lower()
    assert page.num("plot") == 2 + 4  # the loss and the lengths; agreement, margin, rewards, calibration
    html = (run / "report.html").read_text()
    assert all(f"{0.5 + (number + 0.5) / 20:.3g}" in html for number in range(10))


def test_an_odd_calibration_is_left_out(make_run: MakeRun) -> None:
    run = make_run()
    rows = preference_rows(2)
    rows[-1] = {key: None if "confidence" in key else value for key, value in rows[-1].items()}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "right as often" not in read(write_report(run)).text
