"""What the methods share that find a number from noisy looks at it: the iterate, and what it is looking for.

They act in no environment: what they see is drawn from the turn's own chance.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from danlu.acting import ActingMethod, Agent, Choice, Experience, Goal, Level, Turn
from danlu.config import Config
from danlu.errors import RunError, UnsupportedError
from danlu.method.tables import table
from danlu.spaces import Spaces

_FAR = 1e50


class Iterate(Agent):
    """What was found so far.

    Args:
        spaces: of nothing.
        start: the first guess, ``[D]``.

    Attributes:
        w: the guess, ``[D]``.
        k: how many steps it took, int64.
    """

    def __init__(self, spaces: Spaces, start: Float[Tensor, " D"]) -> None:
        super().__init__(spaces)
        self.w = table(len(start))
        self.w.copy_(start)
        self.k: Tensor
        self.register_buffer("k", torch.zeros((), dtype=torch.int64))

    def act(self, observations: Tensor, chance: torch.Generator | None) -> Choice:
        """It does not.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError("what finds a number has nothing to act by", do="Read what it found instead (w).")


class Approximation(ActingMethod):
    """Finds a number from noisy looks at it.

    Recorded, after the turn's last step: "iterate", the guess (its first component); "error", how far it is from what
    is looked for; "step_size"; "loss", half the squared error.
    """

    level: ClassVar[Level] = "table"
    goal: ClassVar[Goal] = "approximation"
    mechanism: ClassVar[str] = "stochastic approximation"

    steps: int = Field(1, ge=1)
    """Steps a turn, a look at each."""
    noise: float = Field(1.0, ge=0)
    """The standard deviation of what is seen about what is there."""

    def agent(self, spaces: Spaces, network: Config | None, seed: int) -> Iterate:
        """See `ActingMethod`; neither the environments nor a network are looked at."""
        return Iterate(spaces, torch.tensor(self.first(), dtype=torch.float64))

    def check(self, spaces: Spaces) -> None:
        """Nothing is refused."""

    def learn(self, agent: Agent, experience: Experience | None, turn: Turn) -> Mapping[str, float | Tensor]:
        """So many steps.

        Raises:
            RunError: when the guess has gone out of sight.
        """
        assert isinstance(agent, Iterate)
        chance, w, k = turn.numpy_chance(), agent.w.numpy().copy(), int(agent.k)
        size = 0.0
        for step in range(k + 1, k + self.steps + 1):
            w, size = self.step(w, step, chance)
            if not np.all(np.abs(w) < _FAR):
                what = f"after {step} steps the guess has left for {w[0]:.3g}: they are too long for where it is steep"
                raise RunError(what, where="method.step_size", do="Begin nearer, or let steps be smaller.")
        with torch.no_grad():
            agent.w.copy_(torch.from_numpy(w))
            agent.k.fill_(k + self.steps)
        error = float(np.linalg.norm(w - self.sought()))
        return {"loss": error * error / 2, "iterate": float(w[0]), "error": error, "step_size": size}

    @property
    def root(self) -> float:
        """See `ActingMethod`."""
        return float(self.sought()[0])

    @abstractmethod
    def first(self) -> list[float]:
        """The first guess, D numbers."""

    @abstractmethod
    def sought(self) -> np.ndarray:
        """What is looked for, ``[D]``."""

    @abstractmethod
    def step(self, w: np.ndarray, k: int, chance: np.random.Generator) -> tuple[np.ndarray, float]:
        """The k-th step from w, k = 1, 2, ...: where it leads, and its size."""
