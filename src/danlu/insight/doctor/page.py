"""A diagnosis as a page of HTML that needs nothing else, in the look of a run's report."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from string import Template

from danlu.errors import RunError
from danlu.insight import template
from danlu.insight.charts import histogram_chart
from danlu.insight.doctor.characters import visible
from danlu.insight.doctor.diagnosis import Diagnosis
from danlu.insight.doctor.finding import Finding, Severity
from danlu.insight.doctor.sample import AVOIDED, Piece, Sample
from danlu.insight.page import Fact, card, charts, pairs, policy
from danlu.units import count, percent

_TONES: dict[Severity | None, tuple[str, str]] = {
    "error": ("over", "Some rows cannot be used"),
    "warning": ("under", "Look at some rows"),
    "note": ("good", "Fit to be learned from"),
    None: ("good", "Fit to be learned from"),
}
_TOO_LONG = {
    "split": "longer rows are split",
    "refuse": "longer rows are refused",
    "truncate_left": "longer rows lose their beginning",
    "truncate_right": "longer rows lose their end",
}

_STYLE = """
:root { --learned: #d3f3dc; --special: #8b3fd9; --avoided: #fbd9d6; }
@media (prefers-color-scheme: dark) { :root { --learned: #14492a; --special: #c79bff; --avoided: #5c1f1b; } }
.findings { width: 100%; border-collapse: collapse; }
.findings th { text-align: left; font-weight: 400; font-size: 0.82rem; color: var(--muted); padding: 0 18px 8px 0; }
.findings td { vertical-align: top; padding: 14px 18px 14px 0; border-top: 1px solid var(--line); }
.findings td:last-child { padding-right: 0; width: 100%; overflow-wrap: anywhere; }
.findings .count { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.findings .tone { color: var(--tone); font-weight: 600; white-space: nowrap; }
.findings p { color: var(--muted); font-size: 0.88rem; }
.findings ul { list-style: none; margin: 6px 0 0; padding: 0; }
.findings li { font-size: 0.88rem; padding: 2px 0; }
.note { --tone: var(--key); }
code { font: 0.84rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
.legend { color: var(--muted); font-size: 0.82rem; margin-bottom: 4px; }
.decoded > li { padding: 16px 0; }
.decoded > li + li { border-top: 1px solid var(--line); }
.decoded small { display: block; color: var(--muted); margin-bottom: 6px; overflow-wrap: anywhere; }
.text { color: var(--muted); }
.learned { background: var(--learned); color: var(--ink); border-radius: 3px; }
.avoided { background: var(--avoided); color: var(--ink); border-radius: 3px; }
.part { display: block; font-size: 0.82rem; font-weight: 600; margin-top: 6px; }
.special { color: var(--special); font-weight: 600; }
"""

_VERDICT = Template("""<section class="fit $tone" aria-label="Verdict">
<strong>$title</strong>
<p>$verdict</p>
</section>""")
_FINDINGS = Template("""<table class="findings">
<thead><tr><th>Severity</th><th class="count">Rows</th><th>What and where</th></tr></thead>
<tbody>$rows</tbody>
</table>""")
_FINDING = Template("""<tr><td class="tone $tone">$severity</td><td class="count">$count</td>
<td><strong>$title</strong><p>$do</p><ul>$examples</ul></td></tr>""")
_LEGEND = """<p class="legend"><span class="learned">Green is learned</span>, the rest is only read;
<span class="special">special tokens</span> are written out.$avoided</p>"""
_AVOIDED = ' <span class="avoided">Red is learned to be avoided</span>.'


def write_html(diagnosis: Diagnosis, path: Path) -> Path:
    """Write a diagnosis as one page that opens without a network, and return its path.

    Raises:
        RunError: when the page cannot be written.
    """
    from plotly.offline import get_plotlyjs

    html = render(diagnosis, get_plotlyjs())
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(html, encoding="utf-8")
        os.replace(partial, path)
    except OSError as fault:
        raise RunError(
            f"the page cannot be written ({fault.strerror or fault})", where=path, do="Give another path."
        ) from fault
    return path


def render(diagnosis: Diagnosis, plotly_js: str) -> str:
    """The page as one file of HTML; every word of the data is escaped here."""
    lengths, train = diagnosis.lengths, diagnosis.train
    words = f"Half of the rows have up to {lengths.median:,} tokens, 99 of 100 up to {lengths.most:,}; the longest has "
    edges, counts = [float(edge) for edge in lengths.edges], [float(count) for count in lengths.counts]
    chart = histogram_chart("lengths", "Length of rows", edges, counts, f"{words}{lengths.longest:,}.")
    shapes = tuple(Fact(visible(shape) or "unreadable", f"{num:,}") for shape, num in train.shapes.items())
    avoided = any(piece.part in AVOIDED for sample in diagnosis.samples for piece in sample.pieces)
    samples = (
        _LEGEND.replace("$avoided", _AVOIDED * avoided)
        + f'<ol class="decoded">{"".join(map(_sample, diagnosis.samples))}</ol>'
    )
    sections = [
        ("Findings", card(_findings(diagnosis.findings))),
        ("Rows by shape", card(pairs("pairs", shapes)) + charts((chart,) if chart else ())),
        ("Samples", card(samples if diagnosis.samples else "")),
    ]
    body = [pairs("facts", _facts(diagnosis)), _verdict(diagnosis), template.NO_SCRIPT]
    body += [template.SECTION.substitute(heading=head, content=content) for head, content in sections if content]
    scripts = [plotly_js.replace("\r", ""), template.SCRIPT]
    return template.PAGE.substitute(
        policy=policy(scripts),
        title="What will be learned",
        status=f"Looked at {diagnosis.looked_at}.",
        style=template.STYLE + _STYLE,
        body="\n".join(body),
        footer="Written by <code>danlu check</code>. This file is complete: it opens without a network.",
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def _facts(diagnosis: Diagnosis) -> tuple[Fact, ...]:
    train, held_out = diagnosis.train, diagnosis.held_out
    facts = [
        Fact("Rows to learn from", f"{train.used:,}", f"of {train.rows:,}"),
        Fact("Tokens", count(train.tokens), f"in {train.samples:,} samples"),
        Fact("Learned", percent(train.share_learned), f"{count(train.learned)} tokens"),
        Fact("Context", f"{diagnosis.context:,}", _TOO_LONG[diagnosis.too_long]),
    ]
    if diagnosis.packing_efficiency is not None:
        full = percent(diagnosis.packing_efficiency)
        facts.insert(3, Fact("Packs full", full, f"of {diagnosis.pack_tokens:,} tokens each"))
    if held_out.rows:
        facts.append(Fact("Rows to measure on", f"{held_out.used:,}", f"of {held_out.rows:,} held out"))
    return tuple(facts)


def _verdict(diagnosis: Diagnosis) -> str:
    tone, title = _TONES[diagnosis.worst]
    if not diagnosis.train.used:
        tone, title = "over", "Nothing can be learned"
    return _VERDICT.substitute(tone=tone, title=title, verdict=escape(diagnosis.verdict))


def _findings(findings: tuple[Finding, ...]) -> str:
    if not findings:
        return "<p>Nothing was found.</p>"
    return _FINDINGS.substitute(rows="".join(map(_finding, findings)))


def _finding(found: Finding) -> str:
    lines = [f"<li><code>{escape(some.where)}</code> {escape(some.what)}</li>" for some in found.examples]
    if found.count > len(lines):
        lines.append(f"<li>… and {found.count - len(lines):,} more</li>")
    return _FINDING.substitute(
        tone={"error": "over", "warning": "under", "note": "note"}[found.severity],
        severity=found.severity,
        count=f"{found.count:,}",
        title=escape(found.title),
        do=escape(found.do),
        examples="".join(lines),
    )


def _sample(sample: Sample) -> str:
    shape = visible(sample.shape) or "unreadable"
    head = f"{sample.where} · {shape} · {sample.learned:,} of {sample.tokens:,} tokens learned"
    text, part = "", ""
    for piece in sample.pieces:
        if piece.part != part:
            part = piece.part
            text += f'<span class="part">{escape(part)}</span>'
        text += _piece(piece)
    return f'<li><small>{escape(head)}</small><div class="text">{text}</div></li>'


def _piece(piece: Piece) -> str:
    learned = "avoided" if piece.part in AVOIDED else "learned"
    kinds = " ".join(kind for kind, held in ((learned, piece.learned), ("special", piece.special)) if held)
    return f'<span class="{kinds}">{escape(piece.text)}</span>' if kinds else escape(piece.text)
