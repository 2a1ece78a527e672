"""What an agent has lived through, as far back as is kept: rows that are only ever added.

Rows lie in a ring of twice as many places as are remembered, in files mapped into memory. So what a checkpoint
remembers is overwritten only when as many rows again have come, and each row says which one it is: a run that goes on
from a checkpoint finds exactly the rows that it had then, or is told that it does not.

References:
    Lin, 1992, "Self-improving reactive agents" (experience replay), https://doi.org/10.1007/BF00992699
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from danlu.acting import Steps
from danlu.errors import CheckpointError, RunError
from danlu.spaces import Spaces

_ROOM = 2
"""How many times as many places there are as rows are remembered."""
_NUMBER = "number"
"""Which row it is, the first being 1; 0 where none was written."""


class Ring:
    """The newest rows of all that were added.

    Args:
        spaces: of the environments.
        size: rows that are remembered.
        folder: where its files are; None keeps it in memory only.

    Attributes:
        count: rows added so far.
    """

    def __init__(self, spaces: Spaces, size: int, folder: Path | None) -> None:
        self.size, self.count, self._folder = size, 0, folder
        observation = (spaces.observation.dtype or np.dtype(np.int64), spaces.observation.shape or ())
        action = (np.dtype(np.int64), ()) if spaces.num_actions else (np.dtype(np.float32), spaces.action.shape or ())
        fields = {"observations": observation, "actions": action, "rewards": (np.dtype(np.float32), ())}
        fields |= {"following": observation}
        fields |= {name: (np.dtype(np.bool_), ()) for name in ("terminated", "truncated")}
        fields |= {_NUMBER: (np.dtype(np.int64), ())}
        self._rows = {name: self._made(name, dtype, shape) for name, (dtype, shape) in fields.items()}

    def _made(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        whole = (_ROOM * self.size, *shape)
        if self._folder is None:
            return np.zeros(whole, dtype)
        file = self._folder / f"{name}.bin"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            num_bytes = int(np.prod(whole)) * dtype.itemsize
            with file.open("ab") as out:  # a hole in the file, which takes no room until it is written to
                out.truncate(num_bytes)
            return np.memmap(file, dtype, mode="r+", shape=whole)
        except OSError as error:
            raise RunError(f"what was lived through cannot be kept: {error}", where=file, do="Make room.") from error

    def add(self, steps: Mapping[str, np.ndarray]) -> None:
        """Add rows, ``[M, ...]`` each, in order."""
        num = len(steps["rewards"])
        places = np.arange(self.count, self.count + num) % len(self._rows[_NUMBER])
        for name, values in steps.items():
            self._rows[name][places] = values
        self._rows[_NUMBER][places] = np.arange(self.count + 1, self.count + num + 1)
        self.count += num

    def __len__(self) -> int:
        """How many rows are remembered."""
        return min(self.count, self.size)

    def sample(self, size: int, chance: np.random.Generator) -> Steps:
        """Rows drawn with replacement, as steps of one environment, ``[size, 1]``."""
        first = self.count - len(self)
        places = (first + chance.integers(0, len(self), size)) % len(self._rows[_NUMBER])

        def rows(name: str) -> Tensor:
            return torch.from_numpy(self._rows[name][places])[:, None]

        return Steps(
            observations=rows("observations"),
            actions=rows("actions"),
            rewards=rows("rewards"),
            terminated=rows("terminated"),
            truncated=rows("truncated"),
            following=rows("following"),
        )

    def go_back(self, count: int) -> None:
        """Remember what was remembered when so many rows had been added.

        Raises:
            CheckpointError: when some of these rows are gone.
        """
        numbers = np.arange(max(0, count - self.size), count)
        there = self._rows[_NUMBER][numbers % len(self._rows[_NUMBER])]
        if (lost := int((there != numbers + 1).sum())) > 0:
            what = f"{lost:,} of the {len(numbers):,} steps that the run remembered are gone"
            raise CheckpointError(what, where=self._folder, do="Go on from a later checkpoint, or begin the run anew.")
        self.count = count
