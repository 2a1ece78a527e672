"""Charts of densities: a map of the plane, clouds of points, columns, and the way from noise as an animation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from danlu.insight.charts import BLUE, LOW, ORANGE, TEAL, Chart, as_json, figure_json

if TYPE_CHECKING:
    import plotly.graph_objects as go

Points = tuple[Sequence[float], Sequence[float]]
"""Across, and up."""
_HALF, _WHOLE_WIDTH, _LOWEST, _HIGHEST = 400, 900, 300, 480
"""Pixels: what half a page and a whole one have across, and how high a chart may be."""
_AROUND = 90
"""Pixels above and below a plane."""
_PEAK = 700.0
"""Nats: e to that is still a number."""
_ORDER = [[0.0, BLUE], [0.5, TEAL], [1.0, ORANGE]]
_BUTTONS = 60
"""Pixels above an animation."""
_FRAME, _TURN = 120, 100
"""Milliseconds that a stage of a long way is shown, of which points move for so many."""
_WHOLE = 3000
"""Milliseconds that a short way takes from end to end."""


def map_chart(
    x: tuple[float, float],
    y: tuple[float, float],
    values: Float[np.ndarray, "S S"],
    data: Points,
    names: tuple[str, str],
) -> Chart:
    """How dense the plane is, with rows of the data on it.

    Args:
        x: its ends across.
        y: its ends upwards.
        values: log-densities in nats, from the lowest row upwards.
        data: rows that were held out.
        names: of the axes.
    """
    import plotly.graph_objects as go

    side, density = len(values), np.exp(np.minimum(values, _PEAK))
    heat = go.Heatmap(
        x=[float(f"{v:.5g}") for v in np.linspace(*x, side)],
        y=[float(f"{v:.5g}") for v in np.linspace(*y, side)],
        z=[[float(f"{v:.3g}") for v in row] for row in density],
        colorscale="Viridis",
        zsmooth="best",
        colorbar={"thickness": 10, "outlinewidth": 0, "len": 0.9},
    )
    heat.hovertemplate = "density %{z:.3~g}<extra></extra>"
    dots = _dots(data, "held out", "rgba(255,255,255,0.45)", 2.2)
    figure = go.Figure([heat, dots] if data[0] else [heat])
    area = (x[1] - x[0]) * (y[1] - y[0]) / (side - 1) ** 2
    edges = np.ones(side)
    edges[[0, -1]] = 0.5
    share = float(edges @ density @ edges) * area
    told = f"{share:.3f}" if share < 10 else f"{share:.3g}"
    caption = f"The density, and rows that were held out. Over this part of the plane it adds up to {told}."
    return _plane("map", "Density", caption, figure, names, x, y)


def cloud_chart(data: Points, samples: Points, names: tuple[str, str], caption: str) -> Chart:
    """Rows of the data and rows that the density makes, on each other."""
    import plotly.graph_objects as go

    traces = [_dots(data, "held out", ORANGE, 3, 0.6)] if data[0] else []
    figure = go.Figure([*traces, _dots(samples, "samples", TEAL, 3, 0.6)])
    x, y = (_reach([*data[i], *samples[i]]) for i in range(2))
    return _plane("cloud", "Samples", caption, figure, names, x, y, legend=True)


def path_chart(stages: Sequence[Points], numbers: Sequence[int], where: str) -> Chart:
    """Points on their way from noise to rows, stage by stage, with a button to set them going.

    Args:
        stages: the points of each.
        numbers: which stages these are.
        where: where it lies as a file, for the caption.
    """
    import plotly.graph_objects as go

    numbers = numbers if len(numbers) == len(stages) else range(len(stages))
    pause = max(_FRAME, _WHOLE // len(stages))
    turn = {"frame": {"duration": pause, "redraw": False}, "transition": {"duration": pause - _FRAME + _TURN}}
    turn["transition"]["easing"] = "cubic-in-out" if pause > _FRAME else "linear"  # type: ignore[assignment]
    still = {"frame": {"duration": 0, "redraw": False}, "transition": {"duration": 0}, "mode": "immediate"}
    frames = [
        go.Frame(name=str(number), data=[go.Scatter(x=list(points[0]), y=list(points[1]))])
        for number, points in zip(numbers, stages, strict=True)
    ]
    dots = _dots(stages[-1], "", BLUE, 5, 0.8)
    if len({len(points[0]) for points in stages}) == 1:
        order = np.argsort(np.argsort(stages[0][0]))  # by rank, or a few that are far out would take all the colours
        dots.marker = {"color": order.tolist(), "colorscale": _ORDER, "size": 5}
    figure = go.Figure([dots], frames=frames)
    buttons = [
        {"label": "Play", "method": "animate", "args": [None, turn | {"fromcurrent": False, "mode": "immediate"}]},
        {"label": "Pause", "method": "animate", "args": [[None], still]},
    ]
    quiet = {"bgcolor": "rgba(127,127,127,0.12)", "bordercolor": "rgba(127,127,127,0.4)"}
    place = {"x": 0, "y": 1.03, "xanchor": "left", "yanchor": "bottom", "pad": {"t": 0, "b": 0}}
    menu = {"type": "buttons", "direction": "left", "showactive": False, "buttons": buttons, **place, **quiet}
    steps = [{"label": str(number), "method": "animate", "args": [[str(number)], still]} for number in numbers]
    slider = {"active": len(stages) - 1, "steps": steps, "len": 0.72, "x": 0.28, "y": 1.03, "yanchor": "bottom"}
    slider |= {"pad": {"t": 0, "b": 6}, "ticklen": 0, "minorticklen": 0, "font": {"size": 1, "color": "rgba(0,0,0,0)"}}
    slider |= {"currentvalue": {"visible": False}, "bgcolor": "rgba(127,127,127,0.3)", "borderwidth": 0}
    figure.update_layout(updatemenus=[menu], sliders=[slider])
    finite = [np.concatenate([np.asarray(points[i]) for points in stages]) for i in range(2)]
    x, y = (_reach(values) for values in finite)
    caption = (
        f"Points of noise on their way to rows, in {len(stages) - 1} stages, in the data's units; each keeps the "
        f"colour of where it was from left to right.{where}"
    )
    return _plane("path", "From noise to rows", caption, figure, ("", ""), x, y, top=_BUTTONS)


def column_chart(
    name: str, title: str, edges: Sequence[float], data: Sequence[float], samples: Sequence[float]
) -> Chart:
    """How one column of the data is distributed, and that of the rows that the density makes."""
    import plotly.graph_objects as go

    middles = [float(f"{(low + high) / 2:.5g}") for low, high in pairwise(edges)]
    bars = go.Bar(x=middles, y=list(data), name="held out", marker={"color": ORANGE}, opacity=0.45)
    line = go.Scatter(x=middles, y=list(samples), name="samples", mode="lines", line={"color": TEAL, "shape": "hvh"})
    for trace in (bars, line):
        trace.hovertemplate = "%{x:.4~g}: %{y:.1%}<extra>%{fullData.name}</extra>"
    figure = go.Figure([bars, line])
    figure.update_layout(bargap=0)
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    return Chart(name, title, "", figure_json(figure, LOW, legend=True, x_title=""), LOW)


def _dots(points: Points, name: str, color: str, size: float, opacity: float = 1.0) -> go.Scatter:
    import plotly.graph_objects as go

    dots = go.Scatter(x=list(points[0]), y=list(points[1]), name=name, mode="markers", opacity=opacity)
    dots.marker = {"color": color, "size": size}
    dots.hoverinfo = "skip"
    return dots


def _reach(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Where nearly all of the values are; a few that are far out would leave no room for the others."""
    low, middle, high = np.quantile(values, (0.005, 0.5, 0.995))
    low, high = middle - 1.25 * (middle - low), middle + 1.25 * (high - middle)
    return float(f"{low:.4g}"), float(f"{high if high > low else low + 1:.4g}")


def _plane(
    name: str,
    title: str,
    caption: str,
    figure: go.Figure,
    names: tuple[str, str],
    x: tuple[float, float],
    y: tuple[float, float],
    *,
    legend: bool = False,
    top: int = 0,
) -> Chart:
    """A chart of the plane, a unit across as long as one upwards where both are alike; wide where it has buttons."""
    across, up = x[1] - x[0], y[1] - y[0]
    alike, width = up < 4 * across and across < 4 * up, _WHOLE_WIDTH if top else _HALF
    height = round(min(max(width * up / across, _LOWEST), _HIGHEST)) if alike else _LOWEST
    height += _AROUND + top
    figure_json(figure, height, legend=legend, x_title=names[0])
    figure.update_xaxes(range=list(x), constrain="domain")
    figure.update_yaxes(range=list(y), constrain="domain", title_text=names[1], fixedrange=False)
    if alike:
        figure.update_yaxes(scaleanchor="x")
    if top:
        figure.update_layout(margin_t=top)
    return Chart(name, title, caption, as_json(figure), height, wide=bool(top))
