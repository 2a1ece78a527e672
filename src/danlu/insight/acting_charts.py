"""Charts of runs that learned from acting: returns with their spread, what an estimate converges to, seeds together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from danlu.insight.charts import (
    BLUE,
    FEW,
    LOW,
    MAX_POINTS,
    ORANGE,
    TALL,
    TEAL,
    Chart,
    about,
    figure_json,
    rounded,
    traces_of,
)
from danlu.insight.curve import Curve

if TYPE_CHECKING:
    import plotly.graph_objects as go

_SHADES = {BLUE: "rgba(59,130,246,0.18)", ORANGE: "rgba(224,115,29,0.18)", TEAL: "rgba(13,148,136,0.18)"}
_COLORS = tuple(_SHADES)


@dataclass(frozen=True, eq=False)
class Band:
    """Several curves as one: over the same places, their mean and how far they reach; and each by itself.

    Attributes:
        at: the places, rising, ``[P]``.
        each: the curves there, ``[K, P]``.
    """

    at: Float[np.ndarray, " P"]
    each: Float[np.ndarray, "K P"]


def returns_chart(train: Curve, held_out: Curve, spread: Curve) -> Chart | None:
    """What episodes returned: while training, raw and smoothed; held out, with a standard deviation to either side.

    Args:
        train: the mean over the episodes that ended in each turn.
        held_out: the mean over episodes acted without exploring.
        spread: these episodes' standard deviation, where it was measured.
    """
    import plotly.graph_objects as go

    traces = traces_of(train, "training", BLUE, "%{y:.4~g}")
    if len(held_out):
        drawn = held_out.thinned(MAX_POINTS)
        deviations = np.interp(drawn.steps, spread.steps, spread.values) if len(spread) else np.zeros(len(drawn))
        if len(spread):
            traces.append(_between(drawn.steps, drawn.values - deviations, drawn.values + deviations, ORANGE))
        line = go.Scatter(x=drawn.steps.tolist(), y=rounded(drawn), name="held out", mode="lines+markers")
        line.line = {"color": ORANGE, "width": 2}
        line.marker = {"size": 6 if len(drawn) <= FEW else 3, "color": ORANGE}
        line.customdata = [float(f"{value:.5g}") for value in deviations]
        around = " ± %{customdata:.3~g}" if len(spread) else ""
        line.hovertemplate = f"held out %{{y:.4~g}}{around}<extra></extra>"
        traces.append(line)
    if not traces:
        return None
    shade = "The shade is one standard deviation of held-out episodes. " if len(spread) and len(held_out) else ""
    caption = f"Rewards of an episode, summed. {shade}{about(train)} Drag across a chart to zoom in."
    figure = figure_json(go.Figure(traces), TALL, legend=True)
    return Chart("returns", "Return", " ".join(caption.split()), figure, TALL, wide=True)


def estimate_chart(estimate: Curve, root: float | None) -> Chart | None:
    """An estimate over the steps, and the number it is to find where that is known."""
    import plotly.graph_objects as go

    if not len(estimate):
        return None
    traces = traces_of(estimate, "estimate", TEAL, "%{y:.6~g}", noisy=False)
    if root is not None:
        ends = [int(estimate.steps[0]), int(estimate.steps[-1])]
        dotted = {"color": ORANGE, "dash": "dot", "width": 2}
        traces.append(go.Scatter(x=ends, y=[root, root], name="sought", mode="lines", line=dotted, hoverinfo="skip"))
        traces[0].name = "estimate"
    caption = f"The dotted line is what is sought, {root:.6g}." if root is not None else ""
    figure = go.Figure(traces)
    return Chart("estimate", "Estimate", caption, figure_json(figure, LOW, legend=root is not None), LOW)


def seeds_chart(bands: Mapping[str, Band], y_title: str, caption: str) -> Chart:
    """Runs that differ in their seeds, against steps of the environment: their mean, each of them, and their reach.

    Args:
        bands: the runs of each method, by its name.
        y_title: what is drawn.
        caption: what it says below.
    """
    import plotly.graph_objects as go

    traces: list[go.Scatter] = []
    for number, (name, band) in enumerate(bands.items()):
        color = _COLORS[number % len(_COLORS)]
        several = len(band.each) > 1
        if several:
            traces.append(_between(band.at, band.each.min(0), band.each.max(0), color))
            for values in band.each:
                thin = {"color": color, "width": 1}
                traces.append(_line(band.at, values, thin, opacity=0.35, hoverinfo="skip", showlegend=False))
        mean = _line(band.at, band.each.mean(0), {"color": color, "width": 2}, name=name)
        mean.customdata = [
            [_five(low), _five(high)] for low, high in zip(band.each.min(0), band.each.max(0), strict=True)
        ]
        reach = ", %{customdata[0]:.4~g} to %{customdata[1]:.4~g}" if several else ""
        mean.hovertemplate = f"%{{y:.4~g}}{reach}<extra>%{{fullData.name}}</extra>"
        traces.append(mean)
    figure = go.Figure(traces)
    figure.update_xaxes(tickformat="~s")
    drawn = figure_json(figure, TALL, legend=True, x_title="environment steps")
    return Chart("seeds", y_title, caption, drawn, TALL, wide=True)


def _line(at: np.ndarray, values: np.ndarray, style: Mapping[str, object], **words: object) -> go.Scatter:
    import plotly.graph_objects as go

    trace = go.Scatter(x=[_five(x) for x in at], y=[_five(y) for y in values], mode="lines", line=dict(style))
    trace.update(words)
    return trace


def _between(at: np.ndarray, low: np.ndarray, high: np.ndarray, color: str) -> go.Scatter:
    """A shade between two curves."""
    import plotly.graph_objects as go

    x = [_five(value) for value in (*at, *at[::-1])]
    y = [_five(value) for value in (*high, *low[::-1])]
    shade = go.Scatter(x=x, y=y, mode="lines", fill="toself", fillcolor=_SHADES[color], showlegend=False)
    shade.line = {"width": 0}
    shade.hoverinfo = "skip"
    return shade


def _five(value: float) -> float:
    return float(f"{value:.6g}")
