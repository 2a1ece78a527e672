"""What was done since each episode began, and arrays as text."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from danlu.errors import CheckpointError
from danlu.world.checks import Stacked

_ROWS = 256  # steps there is room for at first


def to_text(array: np.ndarray) -> dict[str, Any]:
    """An array as JSON, to the bit."""
    plain = np.ascontiguousarray(array)
    data = base64.b64encode(plain.tobytes()).decode()
    return {"dtype": plain.dtype.str, "shape": list(array.shape), "data": data}


def from_text(said: Mapping[str, Any]) -> np.ndarray:
    """The array that `to_text` wrote.

    Raises:
        CheckpointError: where it is something else.
    """
    try:
        flat = np.frombuffer(base64.b64decode(said["data"], validate=True), np.dtype(said["dtype"]))
        return flat.reshape(said["shape"]).copy()
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"an array of the environments' state cannot be read: {error}") from None


class History:
    """The actions of N environments since each one's episode began.

    Actions of all are kept in one array, a row a step, in the smallest type that holds them; what is older than every
    episode is dropped.

    Args:
        actions: the space of one.
        num_envs: N.
    """

    def __init__(self, actions: Stacked, num_envs: int) -> None:
        self._dtype = actions.dtype
        kept = actions.dtype
        if kept.kind in "iu" and np.min(actions.low) >= 0:
            kept = np.min_scalar_type(int(np.max(actions.high)))
        self._rows = np.zeros((_ROWS, num_envs, *actions.shape), kept)
        self._size = 0
        self._since = np.zeros(num_envs, np.int64)

    def add(self, actions: np.ndarray) -> None:
        """Note a step, ``[N, ...]``."""
        if self._size == len(self._rows):
            self._make_room()
        self._rows[self._size] = actions
        self._size += 1

    def begin(self, indices: Any) -> None:
        """Forget what some environments did: their episodes begin now."""
        self._since[indices] = self._size

    def of(self, index: int) -> np.ndarray:
        """What an environment did since its episode began, ``[T, ...]``, in the space's type."""
        return self._rows[self._since[index] : self._size, index].astype(self._dtype)

    def save(self) -> list[dict[str, Any]]:
        """What each environment did, as JSON."""
        return [to_text(self._rows[since : self._size, index]) for index, since in enumerate(self._since.tolist())]

    def load(self, saved: list[dict[str, Any]]) -> None:
        """Put back what `save` gave.

        Raises:
            CheckpointError: where it is not of these environments.
        """
        episodes = [from_text(each) for each in saved]
        shape, kept = self._rows.shape[1:], self._rows.dtype
        if len(episodes) != shape[0] or any(e.shape[1:] != shape[1:] or e.dtype != kept for e in episodes):
            raise CheckpointError(
                "the saved actions are of other environments", do="Resume with the recipe they ran with."
            )
        self._size = max(map(len, episodes))
        self._rows = np.zeros((max(_ROWS, 2 * self._size), *shape), kept)
        for index, episode in enumerate(episodes):
            self._since[index] = self._size - len(episode)
            self._rows[self._since[index] : self._size, index] = episode

    def _make_room(self) -> None:
        oldest = int(self._since.min())
        kept = self._rows[oldest : self._size]
        size = len(self._rows)
        while size < 2 * len(kept):
            size *= 2
        rows = np.zeros((size, *self._rows.shape[1:]), self._rows.dtype)
        rows[: len(kept)] = kept
        self._rows, self._size, self._since = rows, len(kept), self._since - oldest
