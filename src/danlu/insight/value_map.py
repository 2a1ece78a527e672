"""What an agent expects of each state of a finite world, and what it would do there, drawn cell by cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from danlu.insight.page import Drawing
from danlu.insight.record import Event, Record, as_mapping, as_number

MAX_STATES = 2500
"""A cell is then a few pixels wide."""
_MOST_CELLS, _MOST_MOMENTS = 9000, 24
"""So many cells are about two megabytes; so many positions a slider's hand can tell apart."""
_WRITTEN_UP_TO = 150
"""Numbers in more cells could not be read."""
_CELL = 44
SCALE = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Viridis (van der Walt and Smith, 2015): as light as it is large, and told apart by all eyes."""
_MIDDLE = 0.18
"""The luminance that black and white stand out from alike."""
_UP, _RIGHT, _DOWN, _LEFT, _STAY = (-1, 0), (0, 1), (1, 0), (0, -1), (0, 0)
_KNOWN_MOVES = {
    "FrozenLake": (_LEFT, _DOWN, _RIGHT, _UP),
    "CliffWalking": (_UP, _RIGHT, _DOWN, _LEFT),
    "grid": (_UP, _RIGHT, _DOWN, _LEFT, _STAY),
}
"""Which way each action goes, in rows and columns, by what a world's name has in it."""


@dataclass(frozen=True)
class Measured:
    """What was measured of every state at a step; `actions` are the greedy ones, none where only values are learned."""

    step: int
    values: tuple[float, ...]
    actions: tuple[int, ...]


@dataclass(frozen=True)
class Grid:
    """How states lie on the page.

    Attributes:
        num_states: S.
        width: states in a row.
        moves: which way each action goes, in rows and columns; none where that is not known.
        forbidden: states one had better not enter.
        target: the state to be reached.
    """

    num_states: int
    width: int
    moves: tuple[tuple[int, int], ...] = ()
    forbidden: frozenset[int] = frozenset()
    target: int | None = None

    @property
    def height(self) -> int:
        """Rows."""
        return -(-self.num_states // self.width)


def value_drawings(record: Record) -> tuple[Drawing, ...]:
    """The values of a finite world as they were measured, on one scale; none where none were."""
    measured = _measured(record)
    if not measured:
        return ()
    states = len(measured[-1].values)
    measured = _spread([each for each in measured if len(each.values) == states], states)
    grid = _grid(record.last("world"), states)
    low = min(min(each.values) for each in measured)
    high = max(max(each.values) for each in measured)
    moments = tuple((each.step, draw(grid, each, low, high)) for each in measured)
    return (Drawing("What is expected of each state", _caption(grid, measured[-1]), moments),)


def draw(grid: Grid, measured: Measured, low: float, high: float) -> str:
    """One measurement as SVG.

    Args:
        grid: how states lie.
        measured: of as many states.
        low: what is drawn darkest.
        high: what is drawn lightest.
    """
    written = grid.num_states <= _WRITTEN_UP_TO
    cells: list[str] = []
    arrows = {"#fff": "", "#111": ""}
    for state, value in enumerate(measured.values):
        x, y = state % grid.width * _CELL, state // grid.width * _CELL
        color, ink = _colored((value - low) / (high - low) if high > low else 0.5)
        action = measured.actions[state] if measured.actions else None
        tip = f"state {state}: {value:.4g}" + (f", action {action}" if action is not None else "")
        cells.append(
            f'<rect x="{x}" y="{y}" width="{_CELL}" height="{_CELL}" fill="{color}"><title>{tip}</title></rect>'
        )
        centre = (x + _CELL / 2, y + _CELL / 2 - (6 if written else 0))
        if action is not None and action < len(grid.moves):
            arrows[ink] += _arrow(*centre, grid.moves[action])
        elif action is not None and written and not grid.moves:
            cells.append(_word(centre[0], centre[1] + 4, ink, 12, f"a{action}"))
        if written:
            cells.append(_word(x + _CELL / 2, y + _CELL - 5, ink, 10, _short(value)))
    lines = [f'<path d="{path}" fill="none" stroke="{ink}" stroke-width="2"/>' for ink, path in arrows.items() if path]
    width, height = grid.width * _CELL, grid.height * _CELL
    body = "".join((*cells, *lines, *_marks(grid), _scale(low, high, max(width, 220), height + 12)))
    box = f"-2 -2 {max(width, 220) + 4} {height + 44}"
    return f'<svg viewBox="{box}" role="img" aria-label="Value of each state">{body}</svg>'


def _measured(record: Record) -> list[Measured]:
    """All of them that can be drawn, the latest of each step."""
    found: dict[int, Measured] = {}
    for event in record.events:
        values = _finite(event.fields.get("values")) if event.kind == "values" else []
        if not values or len(values) > MAX_STATES:
            continue
        actions = _finite(event.fields.get("actions"))
        whole = tuple(int(action) for action in actions) if len(actions) == len(values) and min(actions) >= 0 else ()
        step = int(event.number("step") or 0)
        found[step] = Measured(step, tuple(values), whole)
    return [found[step] for step in sorted(found)]


def _finite(values: object) -> list[float]:
    """The numbers of a list, if there is nothing else in it."""
    numbers = [as_number(value) for value in values] if isinstance(values, list) else []
    good = [number for number in numbers if number is not None and math.isfinite(number)]
    return good if len(good) == len(numbers) else []


def _spread(measured: Sequence[Measured], states: int) -> list[Measured]:
    most = max(2, min(_MOST_MOMENTS, _MOST_CELLS // states))
    if len(measured) <= most:
        return list(measured)
    return [measured[round(number * (len(measured) - 1) / (most - 1))] for number in range(most)]


def _grid(world: Event | None, states: int) -> Grid:
    """As the world says that its states lie; else in rows that make a page."""
    height, width = (int(world.number(name) or 0) if world else 0 for name in ("height", "width"))
    if world is None or height * width != states:
        return Grid(states, min(states, max(12, math.ceil((2 * states) ** 0.5))))
    cells = as_mapping(world.fields.get("cells"))
    forbidden = frozenset(int(cell) for cell in _finite(cells.get("forbidden")) if 0 <= cell < states)
    target = as_number(cells.get("target"))
    inside = target is not None and 0 <= target < states
    return Grid(states, width, _moves(world), forbidden, int(target) if inside and target is not None else None)


def _moves(world: Event) -> tuple[tuple[int, int], ...]:
    told = world.fields.get("moves")
    if isinstance(told, list):
        pairs = [_finite(move) for move in told]
        return tuple((int(pair[0]), int(pair[1])) for pair in pairs) if all(len(p) == 2 for p in pairs) else ()
    name = world.text("env").lower()
    return next((moves for part, moves in _KNOWN_MOVES.items() if part.lower() in name), ())


def _caption(grid: Grid, last: Measured) -> str:
    words = ["All measurements are coloured on one scale."]
    if last.actions:
        stays = " (a ring: stay)" if _STAY in grid.moves else ""
        words.insert(0, f"Arrows are what the agent would do{stays}." if grid.moves else "aN is what it would do.")
    if grid.forbidden:
        words.append("Cells in dashed frames are forbidden.")
    if grid.target is not None:
        words.append("The cell in a whole frame is the target.")
    return " ".join(words)


def _colored(share: float) -> tuple[str, str]:
    """The colour of a share of the scale, and that of what is written on it."""
    place = min(max(share, 0.0), 1.0) * (len(SCALE) - 1)
    index = min(int(place), len(SCALE) - 2)
    part = place - index
    red, green, blue = (
        round(low + part * (high - low)) for low, high in zip(SCALE[index], SCALE[index + 1], strict=True)
    )
    weights = zip((red, green, blue), (0.2126, 0.7152, 0.0722), strict=True)
    luminance = sum(weight * (part / 255) ** 2.2 for part, weight in weights)
    return f"#{red:02x}{green:02x}{blue:02x}", "#111" if luminance > _MIDDLE else "#fff"


def _arrow(x: float, y: float, move: tuple[int, int]) -> str:
    """An arrow around a point, or a ring where it goes nowhere, as a path."""
    down, right = move
    length = math.hypot(down, right)
    if not length:
        return f"M{x - 4:g} {y:g}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0"
    u, v = right / length, down / length
    head = [(x + 9 * u - 5 * (u - s * v), y + 9 * v - 5 * (v + s * u)) for s in (-1, 1)]
    tip = f"{x + 9 * u:.4g} {y + 9 * v:.4g}"
    (a, b), (c, d) = head
    return f"M{x - 9 * u:.4g} {y - 9 * v:.4g}L{tip}M{a:.4g} {b:.4g}L{tip}L{c:.4g} {d:.4g}"


def _marks(grid: Grid) -> list[str]:
    """What is forbidden and what is sought."""
    framed = [(state, 'stroke="#e5484d" stroke-width="3" stroke-dasharray="5 3"') for state in sorted(grid.forbidden)]
    framed += [] if grid.target is None else [(grid.target, 'stroke="#e0731d" stroke-width="4"')]
    side = _CELL - 4
    return [
        f'<rect x="{state % grid.width * _CELL + 2}" y="{state // grid.width * _CELL + 2}" width="{side}" '
        f'height="{side}" fill="none" pointer-events="none" {stroke}/>'
        for state, stroke in framed
    ]


def _scale(low: float, high: float, width: int, y: int) -> str:
    """The colours from the smallest value to the largest."""
    num = 40
    bar = "".join(
        f'<rect x="{2.5 * i:g}" y="{y}" width="2.7" height="10" fill="{_colored(i / (num - 1))[0]}"/>'
        for i in range(num)
    )
    words = f'<text class="scale" x="106" y="{y + 9}">{_short(low)} to {_short(high)}</text>'
    return f'<g shape-rendering="crispEdges" transform="translate({max(0, (width - 200) / 2):g} 0)">{bar}{words}</g>'


def _word(x: float, y: float, ink: str, size: int, word: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" fill="{ink}" font-size="{size}" text-anchor="middle">{word}</text>'


def _short(value: float) -> str:
    """As many digits as a cell has room for."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
