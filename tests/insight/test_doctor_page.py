from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from doctor_rows import answered, diagnose, row_of, spoilt, text
from rich.console import Console as Rich

from danlu.data.document import Completion, Text
from danlu.errors import RunError
from danlu.insight.doctor import Diagnosis, Row, show, summary_line, write_html

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = '</script><script>document.title = "broken"</script><img src=x onerror=alert(1)>\x1b[2J'


def rows_of_a_data_set(num_rows: int = 300) -> list[Row]:
    """A data set with a bit of everything."""
    rng = np.random.default_rng(0)
    words = ["natalia", "sold", "clips", "april", "half", "many", "altogether", "hour", "minutes", "earned", "needs"]
    rows = []
    for line in range(1, num_rows + 1):
        asked, said = (" ".join(rng.choice(words, size=int(rng.lognormal(3, 0.4)))) for _ in range(2))
        rows.append(answered(f"{asked}?", f"{said}.\n#### {line}", line, file="gsm8k.jsonl"))
    many = num_rows + 1
    return [
        *rows,
        *(row_of(Completion(f"Why {n}?", "I am sorry, I cannot help with that."), many + n) for n in range(6)),
        answered("And then?", "", many + 6),
        text("caf\u00c3\u00a9 \ufffd", many + 7),
        text(f"{HOSTILE} as data", many + 8),
        spoilt(f"no known shape {HOSTILE}", many + 9, raw=HOSTILE.encode()),
        text("съешь ещё этих мягких французских булок", many + 10),
        Row(**{**rows[3].__dict__, "where": f"a.jsonl:{many + 11}"}),
    ]


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    rows = rows_of_a_data_set()
    return diagnose(rows, [Row(**{**rows[5].__dict__, "where": "held.jsonl:1"})], context=512, rows_in_all=1_204_113)


def on_terminal(diagnosis: Diagnosis, width: int = 100) -> str:
    out = io.StringIO()
    show(diagnosis, Rich(file=out, force_terminal=True, width=width, color_system="256"))
    return out.getvalue()


def test_the_page_says_it_all(diagnosis: Diagnosis, tmp_path: Path) -> None:
    path = write_html(diagnosis, tmp_path / "new" / "check.html")
    html = path.read_text(encoding="utf-8")
    assert [file.name for file in path.parent.iterdir()] == ["check.html"]
    for finding in diagnosis.findings:
        assert f"<strong>{finding.title}</strong>" in html
        for example in finding.examples:
            assert f"<code>{example.where}</code>" in html
    assert html.count('<ol class="decoded"><li>') == 1
    assert '<span class="learned special">&lt;|end|&gt;</span>' in html
    assert "Looked at 313 of 1,204,113 rows" in html
    assert "<img" not in html[: html.index("<script>")]
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_a_page_of_nothing(tmp_path: Path) -> None:
    html = write_html(diagnose([]), tmp_path / "check.html").read_text(encoding="utf-8")
    assert "Nothing can be learned" in html
    assert "Nothing was found." in html


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="the page cannot be written"):
        write_html(diagnose([]), tmp_path / "file" / "check.html")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium in PATH")
def test_a_browser_draws_it(diagnosis: Diagnosis, tmp_path: Path) -> None:
    path = write_html(diagnosis, tmp_path / "check.html")
    assert CHROMIUM is not None
    quiet = ["gpu", "quic", "background-networking", "component-update", "sync"]
    flags = ["--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=10000", "--window-size=1280,3000"]
    command = [CHROMIUM, *flags, "--enable-logging=stderr", "--dump-dom", path.as_uri()]
    environment = {**os.environ, "HOME": str(tmp_path)}
    seen = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
    assert len(re.findall(r'<div class="plot js-plotly-plot".*?<svg class="main-svg"', seen.stdout, re.DOTALL)) == 1
    assert '<g class="trace bars' in seen.stdout
    assert [line for line in seen.stderr.splitlines() if "CONSOLE" in line] == []
    assert "<title>What will be learned</title>" in seen.stdout
    assert "<img" not in seen.stdout


def test_the_terminal_shows_it(diagnosis: Diagnosis) -> None:
    shown = on_terminal(diagnosis)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert "\x1b" not in plain
    assert "Looked at 313 of 1,204,113 rows. You will learn from 311 of 312 rows" in plain.replace("\n", " ")
    for words in ("rows that cannot be read", "held.jsonl:1", "99 % up to", "tokens learned"):
        assert words in plain
    assert "48;5;22m" in shown  # dark green behind what is learned
    assert max(map(len, plain.splitlines())) <= 100


def test_a_narrow_terminal_and_nothing_to_show() -> None:
    assert "Nothing can be learned" in on_terminal(diagnose([]), width=30).replace("\n", " ").replace("  ", " ")


def test_elsewhere_it_is_a_line_of_json(diagnosis: Diagnosis, capsys: pytest.CaptureFixture[str]) -> None:
    show(diagnosis)
    [line] = capsys.readouterr().out.splitlines()
    said = json.loads(line)
    assert said == json.loads(json.dumps(diagnosis.as_dict()))
    assert said["verdict"] == diagnosis.verdict
    assert said["train"]["rows"] == 312
    assert said["held_out"]["used"] == 1
    assert {finding["name"] for finding in said["findings"]} >= {"unreadable", "leaks", "duplicates", "misread"}


def test_the_line_before_a_run(diagnosis: Diagnosis) -> None:
    line = summary_line(diagnosis)
    assert line.startswith("looked at 313 of 1,204,113 rows (conversation, completion, text, unreadable); ")
    assert "; 311 to learn from, left out 1 unreadable; " in line
    assert "held-out rows that are also trained on (1)" in line
    assert "\n" not in line
    assert summary_line(diagnose([text("hello")])) == (
        "looked at 1 row (text); 1 to learn from; 83.3 % of 6 tokens learned, packs 0.05 % full"
    )
    assert summary_line(diagnose([])) == "looked at 0 rows; 0 to learn from"


def test_a_page_of_any_text(tmp_path: Path) -> None:
    odd = "".join(map(chr, [*range(0x300), *range(0x2000, 0x2070), 0xD800, 0xDFFF, 0xFFFE, 0x1F600]))
    diagnosis = diagnose([row_of(Text(odd), 1, file="\udcff.jsonl")])
    path = write_html(diagnosis, tmp_path / "check.html")
    path.read_text(encoding="utf-8")
    on_terminal(diagnosis).encode()
