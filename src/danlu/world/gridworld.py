"""A grid world: cells to walk over, some of them forbidden, one of them the target.

Forbidden cells can be entered, at a price; walking over the boundary leaves the agent where it is, at a price too. The
default is the five by five grid of the reference book, whose target does not end the episode: the best an agent can do
is to go there and stay.

References:
    Zhao, 2025, "Mathematical Foundations of Reinforcement Learning", chapters 1 to 3,
    https://github.com/MathFoundationRL/Book-Mathematical-Foundation-of-Reinforcement-Learning
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete

from danlu.errors import RecipeError
from danlu.world.drawing import draw, draw_agent, write

if TYPE_CHECKING:
    from danlu.acting import World

Cell: TypeAlias = Sequence[int]
"""A row and a column, from 0 at the top left."""

MOVES = np.array([(-1, 0), (0, 1), (1, 0), (0, -1), (0, 0)])
"""What each action does to (row, column): up, right, down, left, stay."""

_BOOK = ((1, 1), (1, 2), (2, 2), (3, 1), (3, 3), (4, 1))
_BOOK_TARGET = (3, 2)
_BOOK_SIZE = (5, 5)
DENSE = 400
"""States up to which the chances of all next states are written out."""


@dataclass(frozen=True, eq=False)
class Layout:
    """A grid world as tables, of S cells in row-major order and five actions.

    Attributes:
        size: rows and columns.
        following: the cell each action leads to when nothing slips, ``[S, 5]`` int64.
        rewards: of that, ``[S, 5]`` float64.
        forbidden: ``[S]`` bool.
        target: its number.
        terminal: cells that end the episode when entered, ``[S]`` bool.
        starts: cells an episode may start in, each as likely as another.
    """

    size: tuple[int, int]
    following: np.ndarray
    rewards: np.ndarray
    forbidden: np.ndarray
    target: int
    terminal: np.ndarray
    starts: np.ndarray


class GridWorld(gymnasium.Env[Any, Any]):
    """A grid of cells; observations are the number of the cell the agent is in, row by row.

    Actions are 0 up, 1 right, 2 down, 3 left, 4 stay. The reward follows from where a step leads: over the boundary,
    into (or staying in) a forbidden cell, into (or staying in) the target, or anywhere else.

    Args:
        size: rows and columns.
        forbidden: cells that cost `reward_forbidden`; None for the book's where the size is its own, else none.
        target: the cell to be in; None for the book's where the size is its own, else the bottom right corner.
        reward_boundary: of a step over the boundary.
        reward_forbidden: of a step into a forbidden cell.
        reward_target: of a step into the target.
        reward_step: of any other step.
        starts: the cells an episode may start in; None for any cell that does not end it.
        absorbing: whether the target ends the episode.
        slip: the chance that an action drawn evenly from all five is done instead of the one asked for, 0 to 1.
        max_steps: after how many steps an episode is cut; None for never.
        render_mode: "rgb_array" (``[H, W, 3]`` uint8) or "ansi" (text).

    Raises:
        RecipeError: for a size, a cell or a chance that cannot be meant.

    Example:
        >>> env = GridWorld()
        >>> _ = env.reset(seed=0, options={"state": 16})
        >>> env.step(1)[:3]  # right, into the target
        (17, 1.0, False)
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "ansi"], "render_fps": 8}  # noqa: RUF012

    def __init__(
        self,
        size: Sequence[int] = _BOOK_SIZE,
        forbidden: Sequence[Cell] | None = None,
        target: Cell | None = None,
        reward_boundary: float = -1.0,
        reward_forbidden: float = -1.0,
        reward_target: float = 1.0,
        reward_step: float = 0.0,
        starts: Sequence[Cell] | None = None,
        absorbing: bool = False,
        slip: float = 0.0,
        max_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        if len(size) != 2 or any(isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1 for n in size):
            raise RecipeError(f"the size of a grid is rows and columns, and this is {list(size)}", where="size")
        rewards = (reward_boundary, reward_forbidden, reward_target, reward_step)
        if not np.all(np.isfinite(rewards)):
            raise RecipeError(f"a grid's rewards are numbers, and these are {rewards}", where="reward_*")
        if not 0 <= slip <= 1:
            raise RecipeError(f"a chance lies between 0 and 1, and this is {slip}", where="slip")
        if max_steps is not None and max_steps < 1:
            raise RecipeError(f"an episode has at least one step, and this is {max_steps}", where="max_steps")
        shape = (int(size[0]), int(size[1]))
        book = shape == _BOOK_SIZE
        forbidden = (_BOOK if book else ()) if forbidden is None else forbidden
        target = (_BOOK_TARGET if book else (shape[0] - 1, shape[1] - 1)) if target is None else target
        self.layout = _layout(shape, forbidden, target, rewards, starts, absorbing)
        self.slip = float(slip)
        self.max_steps = max_steps
        self.render_mode = render_mode
        self.observation_space = Discrete(shape[0] * shape[1])
        self.action_space = Discrete(len(MOVES))
        self._cell = -1
        self._elapsed = 0
        self._values: np.ndarray | None = None
        self._policy: np.ndarray | None = None
        self._picture: np.ndarray | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: of the cell it starts in, and of what slips.
            options: ``{"state": cell}`` to start in one.

        Raises:
            RecipeError: where there is no such cell.
        """
        super().reset(seed=seed)
        starts = self.layout.starts
        self._cell = int(starts[self.np_random.integers(len(starts))])
        self._elapsed = 0
        if options is not None and "state" in options:
            self._cell = self._number(options["state"])
        return self._cell, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        """Take one step.

        Raises:
            RecipeError: where there is no such action.
        """
        if not 0 <= action < len(MOVES):
            raise RecipeError(f"a grid world's actions are 0 to {len(MOVES) - 1}, and none is {action!r}")
        if self.slip and self.np_random.random() < self.slip:
            action = int(self.np_random.integers(len(MOVES)))
        layout = self.layout
        reward = float(layout.rewards[self._cell, action])
        self._cell = int(layout.following[self._cell, action])
        self._elapsed += 1
        cut = self.max_steps is not None and self._elapsed >= self.max_steps
        return self._cell, reward, bool(layout.terminal[self._cell]), cut, {}

    def set_overlay(self, values: np.ndarray | None = None, policy: np.ndarray | None = None) -> None:
        """Give what is drawn over the cells.

        Args:
            values: of each cell, ``[S]``; None for none.
            policy: an action for each cell, ``[S]``, or the chance of each action, ``[S, 5]``; None for none.

        Raises:
            RecipeError: for arrays of another shape.
        """
        states, actions = self.layout.rewards.shape
        if values is not None and np.shape(values) != (states,):
            raise RecipeError(f"values of {states} cells are wanted, and these have shape {np.shape(values)}")
        if policy is not None and np.shape(policy) not in ((states,), (states, actions)):
            what = f"a policy of {states} cells and {actions} actions is wanted, and this has shape {np.shape(policy)}"
            raise RecipeError(what)
        self._picture = None
        self._values = None if values is None else np.asarray(values, np.float64)
        if policy is None:
            self._policy = None
        elif np.ndim(policy) == 1:
            self._policy = np.eye(actions)[np.asarray(policy)]
        else:
            self._policy = np.asarray(policy, np.float64)

    def render(self) -> Any:
        """What the grid looks like now, as `render_mode` says: an array or a text; None where no mode was asked for."""
        agent = self._cell if self._cell >= 0 else None
        layout = self.layout
        if self.render_mode == "ansi":
            return write(layout.size, layout.forbidden, layout.target, agent, self._policy)
        if self.render_mode == "rgb_array":
            if self._picture is None:
                self._picture = draw(layout.size, layout.forbidden, layout.target, self._values, self._policy)
            picture = self._picture.copy()
            if agent is not None:
                draw_agent(picture, layout.size, agent)
            return picture
        return None

    def world(self, *, dense: bool | None = None) -> World:
        """All there is to know of this grid.

        Args:
            dense: whether the chances of all next states are written out; None to do so where there are few cells.
        """
        from danlu.acting import World

        layout = self.layout
        states, actions = layout.rewards.shape
        if dense is None:
            dense = states <= DENSE
        if self.slip:
            share = np.full((actions, actions), self.slip / actions) + (1 - self.slip) * np.eye(actions)
            rewards = layout.rewards @ share.T
            moves = np.repeat(layout.following[:, None, :], actions, 1)
            chances = np.repeat(share[None], states, 0)
        else:
            rewards, moves, chances = layout.rewards, layout.following[..., None], np.ones((states, actions, 1))
        if dense:
            full = np.zeros((states, actions, states))
            row, column = np.ogrid[:states, :actions]
            np.add.at(full, (row[..., None], column[..., None], moves), chances)
            return World(full, None, rewards.copy(), layout.terminal.copy())
        return World(moves.copy(), chances, rewards.copy(), layout.terminal.copy())

    def _number(self, state: Any) -> int:
        num = len(self.layout.terminal)
        if isinstance(state, int | np.integer) and not isinstance(state, bool) and 0 <= state < num:
            return int(state)
        raise RecipeError(f"this grid has cells 0 to {num - 1}, and none is {state!r}", where="state")


def _layout(
    size: tuple[int, int],
    forbidden: Sequence[Cell],
    target: Cell,
    rewards: tuple[float, float, float, float],
    starts: Sequence[Cell] | None,
    absorbing: bool,
) -> Layout:
    boundary, into_forbidden, into_target, step = map(float, rewards)
    rows, columns = size
    is_forbidden = np.zeros(rows * columns, bool)
    is_forbidden[_numbers(forbidden, size, "forbidden")] = True
    goal = int(_numbers([target], size, "target")[0])
    if is_forbidden[goal]:
        raise RecipeError(f"the target {list(target)} is a forbidden cell", where="target", do="Choose another cell.")
    row, column = np.divmod(np.arange(rows * columns), columns)
    to_row, to_column = row[:, None] + MOVES[:, 0], column[:, None] + MOVES[:, 1]
    outside = (to_row < 0) | (to_row >= rows) | (to_column < 0) | (to_column >= columns)
    following = np.clip(to_row, 0, rows - 1) * columns + np.clip(to_column, 0, columns - 1)
    reward = np.full(following.shape, step)
    reward[is_forbidden[following]] = into_forbidden
    reward[following == goal] = into_target
    reward[outside] = boundary
    terminal = np.zeros(rows * columns, bool)
    terminal[goal] = absorbing
    begins = np.flatnonzero(~terminal) if starts is None else _numbers(starts, size, "starts")
    if not len(begins):
        raise RecipeError("an episode has nowhere to start", where="starts", do="Give at least one cell.")
    if terminal[begins].any():
        raise RecipeError("an episode cannot start where it ends, at the absorbing target", where="starts")
    return Layout(size, following, reward, is_forbidden, goal, terminal, begins)


def _numbers(cells: Sequence[Cell], size: tuple[int, int], where: str) -> np.ndarray:
    """Numbers of cells given as rows and columns."""
    try:
        array = np.asarray(cells)
    except ValueError:
        array = np.zeros(0)
    if array.size == 0 and len(cells) == 0:
        return np.zeros(0, np.int64)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iu":
        raise RecipeError(f"cells are pairs of a row and a column, and these are {list(cells)!r}", where=where)
    inside = ((array >= 0) & (array < np.array(size))).all(1)
    if not inside.all():
        wrong = array[~inside][0].tolist()
        raise RecipeError(f"a grid of {size[0]} x {size[1]} has no cell {wrong} (rows and columns from 0)", where=where)
    return (array[:, 0] * size[1] + array[:, 1]).astype(np.int64)
