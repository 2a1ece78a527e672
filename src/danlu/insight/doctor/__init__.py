"""The data doctor: before the first step, what a run will learn from and what is wrong with it.

Every `Row` passes once: it is counted, every check of `checks.py` sees it, and a `Diagnosis` comes out.

| what | where |
|---|---|
| what the doctor sees of a row | `row.py`, `case.py` |
| what it looks for | `checks.py`: the list; `rules.py`: a row by itself; `surveys.py`, `copies.py`: rows among others |
| what it looks for in pairs | `pairs.py` |
| how it finds what is nearly the same | `near.py` |
| what it says | `diagnosis.py`, `terminal.py`, `page.py` |
"""

from danlu.insight.doctor.case import Case, Content, Fate, Setting, TooLong
from danlu.insight.doctor.checks import CHECKS
from danlu.insight.doctor.diagnosis import Diagnosis, Side
from danlu.insight.doctor.examination import examine
from danlu.insight.doctor.finding import Check, Example, Finding, Rule, Severity, Survey, Tally, rule
from danlu.insight.doctor.lengths import Histogram
from danlu.insight.doctor.page import write_html
from danlu.insight.doctor.row import Row
from danlu.insight.doctor.sample import Piece, Sample
from danlu.insight.doctor.terminal import show, summary_line

__all__ = [
    "CHECKS",
    "Case",
    "Check",
    "Content",
    "Diagnosis",
    "Example",
    "Fate",
    "Finding",
    "Histogram",
    "Piece",
    "Row",
    "Rule",
    "Sample",
    "Setting",
    "Severity",
    "Side",
    "Survey",
    "Tally",
    "TooLong",
    "examine",
    "rule",
    "show",
    "summary_line",
    "write_html",
]
