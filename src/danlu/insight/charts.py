"""The charts of a report, as plotly figures in JSON.

Backgrounds are transparent, and the page's style sheet colours text and grid, so one figure serves light and dark; the
lines' own colours keep a contrast of three to one on either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from danlu.insight.curve import Curve

if TYPE_CHECKING:
    import plotly.graph_objects as go

MAX_POINTS = 2000
"""A chart has about a thousand pixels across; a smallest and a largest value for each is all that can be seen."""
BLUE, ORANGE, TEAL = "#3b82f6", "#e0731d", "#0d9488"
SMOOTHING = 40
"""The moving mean spans a fortieth of the run: what is left of the noise is far below what the eye follows."""
FEW = 30
"""So few points are marked one by one."""
TALL, LOW = 380, 230
_LOG_ABOVE = 30.0
"""A positive curve whose peak is so many times its median is drawn on a logarithmic axis, or its bulk would be flat."""


@dataclass(frozen=True)
class Chart:
    """A figure with the words around it; `figure` is plotly's JSON."""

    name: str
    title: str
    caption: str
    figure: str
    height: int
    wide: bool = False


def loss_chart(train: Curve, held_out: Curve, unit: str = "Nats a token.") -> Chart | None:
    """Training loss, raw and smoothed, and held-out loss with its lowest point ringed."""
    import plotly.graph_objects as go

    traces = traces_of(train, "training", BLUE, "%{y:.4f}")
    if len(held_out):
        style = {"color": ORANGE, "width": 2}
        marker = {"size": 6 if len(held_out) <= FEW else 3, "color": ORANGE}
        drawn = held_out.envelope(MAX_POINTS)
        xy = {"x": drawn.steps.tolist(), "y": rounded(drawn)}
        traces.append(go.Scatter(**xy, name="held out", mode="lines+markers", line=style, marker=marker))
        best = int(held_out.values.argmin())
        ring = {"size": 13, "color": "rgba(0,0,0,0)", "line": {"color": ORANGE, "width": 2}}
        at = {"x": [int(held_out.steps[best])], "y": [float(held_out.values[best])]}
        traces.append(go.Scatter(**at, mode="markers", marker=ring, hoverinfo="skip", showlegend=False))
        traces[-2].hovertemplate = "held out %{y:.4f}<extra></extra>"
    if not traces:
        return None
    caption = f"{unit} {about(train)} Drag across a chart to zoom in, double-click to zoom out."
    return Chart("loss", "Loss", caption, figure_json(go.Figure(traces), TALL, legend=True), TALL, wide=True)


def metric_chart(
    name: str,
    title: str,
    curve: Curve,
    caption: str,
    *,
    form: str = "~s",
    unit: str = "",
    from_zero: bool = False,
    noisy: bool = True,
    log: bool = False,
) -> Chart | None:
    """One metric over the steps; none where it was never written.

    Args:
        name: unique in the report.
        title: what it says above.
        curve: the values.
        caption: what it says below.
        form: how numbers are written, in d3's notation.
        unit: written after each number.
        from_zero: whether the axis starts at zero.
        noisy: whether a moving mean says more than the values themselves.
        log: whether the axis is logarithmic, where it can be, whatever the values.
    """
    import plotly.graph_objects as go

    if not len(curve):
        return None
    figure = go.Figure(traces_of(curve, "", TEAL, f"%{{y:{'.3~s' if form == '~s' else form}}}{unit}", noisy))
    figure.update_yaxes(tickformat=form, ticksuffix=unit, rangemode="tozero" if from_zero else "normal")
    smallest, middle = float(curve.values.min()), float(np.median(curve.values))
    if not from_zero and smallest > 0 and (log or float(curve.values.max()) > _LOG_ABOVE * middle):
        figure.update_yaxes(type="log", dtick=1)
        caption += " Logarithmic."
    return Chart(name, title, caption.strip(), figure_json(figure, LOW), LOW)


def curves_chart(name: str, title: str, curves: Mapping[str, Curve], caption: str) -> Chart | None:
    """Several metrics over the steps, each by its word; none where none was ever written."""
    import plotly.graph_objects as go

    colors = (BLUE, ORANGE, TEAL)
    drawn = [(word, curve) for word, curve in curves.items() if len(curve)]
    traces = [t for i, (word, c) in enumerate(drawn) for t in traces_of(c, word, colors[i % 3], f"{word} %{{y:.4g}}")]
    return Chart(name, title, caption, figure_json(go.Figure(traces), LOW, legend=True), LOW) if traces else None


def calibration_chart(name: str, title: str, bins: Sequence[tuple[float, float, float]], caption: str) -> Chart | None:
    """How often a model is right, where it says so with some confidence, beside the line where both are the same.

    Args:
        name: unique in the report.
        title: what it says above.
        bins: of each, mean confidence, agreement and the share of pairs in it, which is drawn as the marker's size.
        caption: what it says below.
    """
    import plotly.graph_objects as go

    if not bins:
        return None
    line = go.Scatter(x=[0.5, 1], y=[0.5, 1], mode="lines", line={"color": ORANGE, "dash": "dot"}, hoverinfo="skip")
    sure, right, shares = ([float(f"{value:.5g}") for value in values] for values in zip(*bins, strict=True))
    sizes = [6 + 24 * share**0.5 for share in shares]
    held = go.Scatter(x=sure, y=right, customdata=shares, mode="lines+markers", line={"color": TEAL, "width": 1})
    held.marker = {"color": TEAL, "size": sizes}
    held.hovertemplate = "says %{x:.1%}, is right %{y:.1%}, %{customdata:.1%} of pairs<extra></extra>"
    figure = go.Figure([line, held])
    figure.update_xaxes(tickformat=".0%", range=[0.48, 1.02])
    figure.update_yaxes(tickformat=".0%", range=[-0.02, 1.05])
    return Chart(name, title, caption, figure_json(figure, TALL, x_title="confidence"), TALL)


def histogram_chart(name: str, title: str, edges: list[float], counts: list[float], caption: str) -> Chart | None:
    """Bars between edges, each as wide as the next whatever its span, with the edges written between them."""
    import plotly.graph_objects as go

    if not counts or len(edges) not in {len(counts), len(counts) + 1} or not any(counts):
        return None
    labels = [f"{edge:,.0f}" for edge in edges] + [""] * (len(counts) + 1 - len(edges))
    spans = [f"{low} to {high}" if high else f"{low} or more" for low, high in pairwise(labels)]
    bars = go.Bar(x=list(range(len(counts))), y=counts, customdata=spans, marker={"color": TEAL}, width=0.94)
    bars.hovertemplate = "%{y:,} samples of %{customdata} tokens<extra></extra>"
    figure = go.Figure(bars)
    apart = max(1, len(counts) // 10)
    at = list(range(0, len(labels), apart))
    figure.update_xaxes(tickvals=[index - 0.5 for index in at], ticktext=[labels[index] for index in at])
    figure.update_xaxes(range=[-0.51, len(counts) - 0.49])
    figure.update_yaxes(tickformat="~s")
    return Chart(name, title, caption, figure_json(figure, LOW, x_title="tokens"), LOW, wide=True)


def traces_of(curve: Curve, name: str, color: str, form: str, noisy: bool = True) -> list[go.Scatter]:
    """The curve itself; where it is long enough to be noisy, faintly, with its moving mean over it.

    Args:
        curve: the values.
        name: what a legend calls it.
        color: of the line.
        form: how a value is written, as plotly's template.
        noisy: whether a moving mean says more than the values themselves.
    """
    import plotly.graph_objects as go

    if not len(curve):
        return []
    window = len(curve) // SMOOTHING
    smooth = noisy and window >= 3
    drawn = curve.envelope(MAX_POINTS)
    raw = go.Scatter(
        x=drawn.steps.tolist(),
        y=rounded(drawn),
        name=f"{name}, each step" if name else "each step",
        mode="lines+markers" if len(curve) <= FEW else "lines",
        line={"color": color, "width": 1 if smooth else 2},
        marker={"color": color, "size": 5},
        opacity=0.35 if smooth else 1.0,
        hovertemplate=f"each step {form}<extra></extra>",
    )
    if not smooth:
        return [raw]
    mean = curve.smoothed(window).thinned(MAX_POINTS)
    over = go.Scatter(
        x=mean.steps.tolist(),
        y=rounded(mean),
        name=name or "mean",
        mode="lines",
        line={"color": color, "width": 2},
        hovertemplate=f"mean {form}<extra></extra>",
    )
    return [raw, over]


def about(curve: Curve) -> str:
    """How the curve was smoothed and thinned, if it was."""
    window = len(curve) // SMOOTHING
    means = f"Here and below, faint lines are single steps and strong ones the mean over {window:,} steps."
    parts = [means] if window >= 3 else []
    if len(curve) > MAX_POINTS:
        group = len(curve) / (MAX_POINTS // 2)
        parts.append(f"Of {len(curve):,} steps, every chart draws the smallest and the largest of each {group:,.0f}.")
    return " ".join(parts)


def rounded(curve: Curve) -> list[float]:
    """Five significant digits: finer than a pixel, and half the size."""
    return [float(f"{value:.5g}") for value in curve.values]


def figure_json(figure: go.Figure, height: int, *, legend: bool = False, x_title: str = "step") -> str:
    """A figure laid out as all of a page are, as JSON that is safe in HTML."""
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 56, "r": 16, "t": 34 if legend else 10, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12},
        showlegend=legend,
        legend={"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"},
        hovermode="x unified" if x_title == "step" else "closest",
        dragmode="zoom",
    )
    figure.update_xaxes(title_text=x_title, title_standoff=8, showgrid=False, zeroline=False, fixedrange=False)
    figure.update_yaxes(zeroline=False, fixedrange=True, nticks=6, ticklabelstandoff=6, automargin=True)
    return as_json(figure)


def as_json(figure: go.Figure) -> str:
    """A figure as it is, as JSON that is safe in HTML."""
    return str(figure.to_json()).replace("<", "\\u003c")
