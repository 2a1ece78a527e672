"""A grid world drawn with numpy alone: cells, values, arrows and the agent."""

from __future__ import annotations

import numpy as np

ARROWS = "↑→↓←○"
"""What each action is written as: up, right, down, left, stay."""

_WHITE = (255, 255, 255)
_FORBIDDEN = (245, 176, 92)
_TARGET = (120, 190, 235)
_LINE = (190, 190, 190)
_INK = (60, 60, 60)
_ARROW = (34, 130, 70)
_AGENT = (204, 62, 62)
_LARGEST = 72  # pixels of a cell
_PICTURE = 720  # pixels of a picture, about
_WITH_ARROWS = 12  # pixels of a cell from which arrows can be seen
_WITH_NUMBERS = 32

_FONT = {
    "0": (7, 5, 5, 5, 7),
    "1": (2, 6, 2, 2, 7),
    "2": (7, 1, 7, 4, 7),
    "3": (7, 1, 7, 1, 7),
    "4": (5, 5, 7, 1, 1),
    "5": (7, 4, 7, 1, 7),
    "6": (7, 4, 7, 5, 7),
    "7": (7, 1, 1, 1, 1),
    "8": (7, 5, 7, 5, 7),
    "9": (7, 5, 7, 1, 7),
    "-": (0, 0, 7, 0, 0),
    ".": (0, 0, 0, 0, 2),
    "e": (0, 7, 5, 6, 7),
    "+": (0, 2, 7, 2, 0),
    " ": (0, 0, 0, 0, 0),
}
"""Rows of three bits."""


def write(
    size: tuple[int, int], forbidden: np.ndarray, target: int, agent: int | None, policy: np.ndarray | None
) -> str:
    """The grid as text: ``.`` a cell, ``#`` forbidden, ``T`` the target, ``@`` the agent; beside it the policy."""
    marks = np.where(forbidden, "#", ".")
    marks[target] = "T"
    if agent is not None:
        marks[agent] = "@"
    lines = [" ".join(row) for row in marks.reshape(size)]
    if policy is not None:
        best = np.array(list(ARROWS))[policy.argmax(1)].reshape(size)
        lines = [f"{line}   {' '.join(row)}" for line, row in zip(lines, best, strict=True)]
    return "\n".join(lines) + "\n"


def draw(
    size: tuple[int, int],
    forbidden: np.ndarray,
    target: int,
    values: np.ndarray | None,
    policy: np.ndarray | None,
) -> np.ndarray:
    """The grid as a picture, without the agent.

    Args:
        size: rows and columns, of S cells.
        forbidden: ``[S]`` bool.
        target: its number.
        values: of each cell, ``[S]``: shades its colour, and is written where there is room.
        policy: the chance of each action, ``[S, 5]``: an arrow as long as it is likely.

    Returns:
        ``[H, W, 3]`` uint8.
    """
    rows, columns = size
    side = int(np.clip(_PICTURE // max(rows, columns), 1, _LARGEST))
    colours = np.full((rows * columns, 3), _WHITE, np.float64)
    colours[forbidden] = _FORBIDDEN
    colours[target] = _TARGET
    if values is not None:
        colours *= 1 - 0.35 * (1 - _share(values))[:, None]
    picture = np.repeat(np.repeat(colours.reshape(rows, columns, 3), side, 0), side, 1).round().astype(np.uint8)
    if side >= 6:
        picture[::side] = picture[:, ::side] = picture[-1:] = picture[:, -1:] = _LINE
    if side >= _WITH_ARROWS and policy is not None:
        for cell in range(rows * columns):
            _arrows(_inside(picture, cell, columns, side), policy[cell])
    if side >= _WITH_NUMBERS and values is not None:
        for cell in range(rows * columns):
            _number(_inside(picture, cell, columns, side), float(values[cell]))
    return picture


def draw_agent(picture: np.ndarray, size: tuple[int, int], agent: int) -> None:
    """Draw the agent into a picture that `draw` made."""
    _disc(_inside(picture, agent, size[1], len(picture) // size[0]), 0.24, _AGENT)


def _share(values: np.ndarray) -> np.ndarray:
    """Where values lie between the least and the greatest, 0 to 1; what is no number is least."""
    finite = np.isfinite(values)
    if not finite.any():
        return np.ones_like(values)
    low, high = values[finite].min(), values[finite].max()
    share = (np.where(finite, values, low) - low) / (high - low) if high > low else np.ones_like(values)
    return np.asarray(share)


def _inside(picture: np.ndarray, cell: int, columns: int, side: int) -> np.ndarray:
    row, column = divmod(cell, columns)
    return picture[row * side : (row + 1) * side, column * side : (column + 1) * side]


def _disc(tile: np.ndarray, radius: float, colour: tuple[int, int, int]) -> None:
    """Radius as a share of the side."""
    side = len(tile)
    away = np.arange(side) - (side - 1) / 2
    tile[away[:, None] ** 2 + away**2 <= max(radius * side, 0.5) ** 2] = colour


def _arrows(tile: np.ndarray, chances: np.ndarray) -> None:
    """An arrow from the middle for each action that is taken at times, a ring for staying."""
    side = len(tile)
    away = (np.arange(side) - (side - 1) / 2) / side
    y, x = np.meshgrid(away, away, indexing="ij")
    thin = max(0.02, 0.6 / side)
    for (down, right), chance in zip(((-1, 0), (0, 1), (1, 0), (0, -1)), chances, strict=False):
        if not chance > 0.01:
            continue
        along, across = y * down + x * right, np.abs(y * right + x * down)
        length = 0.12 + 0.28 * float(chance)
        shaft = (along >= 0) & (along <= length - 0.08) & (across <= thin)
        head = (along > length - 0.1) & (along <= length) & (across <= (length - along) * 0.8)
        tile[shaft | head] = _ARROW
    if chances[4] > 0.01:
        ring = np.hypot(y, x)
        radius = 0.06 + 0.1 * float(chances[4])
        tile[np.abs(ring - radius) <= thin] = _ARROW


def _number(tile: np.ndarray, value: float) -> None:
    """A number in the upper left corner, with one decimal where it fits."""
    if not np.isfinite(value):
        return
    scale = max(1, len(tile) // 36)
    room = (len(tile) - 4) // (4 * scale)
    text = next((t for t in (f"{value:.1f}", f"{value:.0f}", f"{value:.0e}") if len(t) <= room), "")
    for place, letter in enumerate(text):
        bits = np.array([[row >> bit & 1 for bit in (2, 1, 0)] for row in _FONT[letter]], bool)
        glyph = np.repeat(np.repeat(bits, scale, 0), scale, 1)
        top, left = 3, 3 + place * 4 * scale
        tile[top : top + len(glyph), left : left + glyph.shape[1]][glyph] = _INK
