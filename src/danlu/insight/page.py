"""A report as HTML: every word that comes from a run is escaped here, and nowhere else."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from danlu.insight import template
from danlu.insight.charts import Chart
from danlu.insight.fit import Fit, Verdict

_TONES: dict[Verdict, str] = {
    "fitting well": "good",
    "under-fitting": "under",
    "over-fitting": "over",
    "not known": "unknown",
    "levelled off": "good",
    "still improving": "under",
    "fell back": "over",
    "no better than at first": "over",
    "too early to tell": "unknown",
    "not measured": "unknown",
    "converging": "good",
    "not converging": "over",
}
_SHOWN_SAMPLES = 6
"""So many fit into view and still show the way from noise to language; the rest unfold."""
_KEPT_SAMPLES = 200
_KEPT_CHARACTERS = 4000
_SHOWN_MOMENTS = 20
_KEY = re.compile(r"^(\s*(?:- )*)([\w.\-/]+)(:)(?=\s|$)", re.MULTILINE)
_COMMENT = re.compile(r"(^|\s)(#.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Fact:
    """A number with its name, and a word beside it where one is needed."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Sample:
    """A text the model wrote while it was trained."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class Moment:
    """One thing that happened: when, what, and its particulars."""

    when: str
    what: str
    detail: str = ""


@dataclass(frozen=True)
class Drawing:
    """Something drawn of a run at some of its steps, of which one is shown at a time.

    Attributes:
        title: what it says above.
        caption: what it says below.
        moments: the steps, each with markup that is made of numbers alone.
        unit: what these are numbered by; empty where there is only one.
    """

    title: str
    caption: str
    moments: tuple[tuple[int, str], ...]
    unit: str = "step"


@dataclass(frozen=True)
class Clip:
    """An episode as it was seen: a GIF, and the words below it."""

    caption: str
    gif: bytes


@dataclass(frozen=True)
class Page:
    """All that a report says, as plain text."""

    title: str
    status: str
    facts: tuple[Fact, ...]
    fit: Fit
    charts: tuple[Chart, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    samples: tuple[Sample, ...]
    data: tuple[Fact, ...]
    data_charts: tuple[Chart, ...]
    moments: tuple[Moment, ...]
    recipe: str
    machine: tuple[Fact, ...]
    drawings: tuple[Drawing, ...] = ()
    clips: tuple[Clip, ...] = ()
    world: tuple[Fact, ...] = ()
    outcome: tuple[Fact, ...] = ()
    outcome_charts: tuple[Chart, ...] = ()
    outcome_drawings: tuple[Drawing, ...] = ()


def render(page: Page, plotly_js: str) -> str:
    """The page as one file of HTML that needs nothing else."""
    samples = _folded([_sample(sample) for sample in _spread(page.samples)], _SHOWN_SAMPLES, "rows", "samples")
    moments = _folded([_moment(moment) for moment in page.moments], _SHOWN_MOMENTS, "rows events", "events")
    sections = [
        ("Warnings", _sentences("rows sentences warnings", page.warnings)),
        ("Notes", _sentences("rows sentences", page.notes)),
        ("Density", _outcome(page)),
        ("Training", charts(page.charts)),
        ("Values", "".join(card(_drawing(drawing)) for drawing in page.drawings)),
        ("Episodes", _clips(page.clips)),
        ("Samples", card(samples)),
        ("Data", card(pairs("pairs", page.data)) + charts(page.data_charts)),
        ("World", card(pairs("pairs", page.world))),
        ("Timeline", card(moments)),
        ("Recipe", card(_recipe(page.recipe))),
        ("Machine and versions", card(pairs("pairs", page.machine))),
    ]
    body = [pairs("facts", page.facts), _fit(page.fit), template.NO_SCRIPT]
    body += [template.SECTION.substitute(heading=head, content=content) for head, content in sections if content]
    scripts = [plotly_js.replace("\r", ""), template.SCRIPT]
    return template.PAGE.substitute(
        policy=policy(scripts),
        title=escape(page.title),
        status=escape(page.status),
        style=template.STYLE,
        body="\n".join(part for part in body if part),
        footer="Written by <code>danlu report</code>. This file is complete: it opens without a network.",
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def policy(scripts: Iterable[str]) -> str:
    """No request at all, and no script but these."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"


def pairs(kind: str, facts: tuple[Fact, ...]) -> str:
    """Names and values, one under another."""
    if not facts:
        return ""
    items = []
    for fact in facts:
        note = f"<small>{escape(fact.note)}</small>" if fact.note else ""
        items.append(f"<div><dt>{escape(fact.name)}</dt><dd>{escape(fact.value)}{note}</dd></div>")
    return f'<dl class="{kind}">{"".join(items)}</dl>'


def _fit(fit: Fit) -> str:
    verdict = "Fit not known" if fit.verdict == "not known" else fit.verdict
    return template.FIT.substitute(tone=_TONES[fit.verdict], verdict=verdict, sentence=escape(fit.sentence))


def charts(charts: tuple[Chart, ...]) -> str:
    """Charts, narrow ones side by side."""
    if not charts:
        return ""
    narrow = [chart for chart in charts if not chart.wide]
    drawn = []
    for chart in charts:
        alone = len(narrow) % 2 == 1 and chart is narrow[-1]  # a last one without a neighbour takes the whole row
        words = template.CHART.substitute(
            shape=" wide" if chart.wide or alone else "",
            name=chart.name,
            title=escape(chart.title),
            height=chart.height,
            figure=chart.figure,
            caption=escape(chart.caption),
        )
        drawn.append(words)
    return f'<div class="charts">{"".join(drawn)}</div>'


def _outcome(page: Page) -> str:
    """Charts and pictures of what was learned, and what there is to say of it."""
    pictures = "".join(card(_drawing(drawing)) for drawing in page.outcome_drawings)
    shown = [charts(page.outcome_charts), f'<div class="pictures">{pictures}</div>' if pictures else ""]
    return "".join(part for part in (*shown, card(pairs("pairs", page.outcome))) if part)


def _drawing(drawing: Drawing) -> str:
    """All its moments, the last one shown; a slider, which a script brings to life, chooses another."""
    last = len(drawing.moments) - 1
    shown = [
        f'<div class="moment"{"" if number == last else " hidden"}><h3>{escape(drawing.title)}'
        f"{f', {drawing.unit} {step:,}' if drawing.unit else ''}</h3>{markup}</div>"
        for number, (step, markup) in enumerate(drawing.moments)
    ]
    slider = f'<input type="range" aria-label="Measurement" min="0" max="{last}" value="{last}" hidden>' if last else ""
    caption = f"<figcaption>{escape(drawing.caption)}</figcaption>"
    return f'<figure class="moments">{"".join(shown)}{slider}{caption}</figure>'


def _clips(clips: tuple[Clip, ...]) -> str:
    shown = []
    for clip in clips:
        data, words = base64.b64encode(clip.gif).decode(), escape(clip.caption)
        image = f'<img alt="An episode: {words}" src="data:image/gif;base64,{data}">'
        shown.append(f'<figure class="card clip">{image}<figcaption>{words}</figcaption></figure>')
    return f'<div class="clips">{"".join(shown)}</div>' if shown else ""


def _spread(samples: tuple[Sample, ...]) -> list[Sample]:
    """At most so many, evenly over the run, the last one among them."""
    apart = -(-len(samples) // _KEPT_SAMPLES) or 1
    return list(samples[::-1][::apart])[::-1]


def _sample(sample: Sample) -> str:
    text = sample.text.removeprefix(sample.prompt)
    if len(text) > _KEPT_CHARACTERS:
        text = f"{text[:_KEPT_CHARACTERS]} … ({len(text) - _KEPT_CHARACTERS:,} more characters)"
    when = f"step {sample.step:,}"
    return template.SAMPLE.substitute(when=when, prompt=escape(sample.prompt), text=escape(text))


def _moment(moment: Moment) -> str:
    detail = f" <span>{escape(moment.detail)}</span>" if moment.detail else ""
    return template.ROW.substitute(when=escape(moment.when), what=escape(moment.what) + detail)


def _folded(items: list[str], limit: int, kind: str, noun: str) -> str:
    """Some of the items, evenly spread with the first and the last; all of them on demand."""
    if len(items) <= limit:
        return _list(kind, items)
    picked = [items[round(index * (len(items) - 1) / (limit - 1))] for index in range(limit)]
    everything = f"<details><summary>All {len(items)} {noun}</summary>{_list(kind, items)}</details>"
    return _list(kind, picked) + everything


def _list(kind: str, items: list[str]) -> str:
    return f'<ol class="{kind}">{"".join(items)}</ol>' if items else ""


def _sentences(kind: str, sentences: tuple[str, ...]) -> str:
    return _list(kind, [f"<li>{escape(sentence)}</li>" for sentence in sentences])


def card(content: str) -> str:
    """A frame around what there is."""
    return f'<div class="card">{content}</div>' if content else ""


def _recipe(text: str) -> str:
    """YAML with its keys and comments set apart."""
    if not text.strip():
        return ""
    lines = _KEY.sub(r"\1<b>\2</b>\3", escape(text.strip("\n"), quote=False))
    lines = _COMMENT.sub(r"\1<i>\2</i>", lines)
    return f"<pre>{lines}</pre>"
