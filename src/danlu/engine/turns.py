"""An update of a method that acts: one turn of it, and one measurement."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from danlu.acting import ActingMethod, Agent, Experience, Turn
from danlu.engine.device import Device
from danlu.engine.learner import Learner, Measured
from danlu.engine.parallel import Parallel
from danlu.engine.schedule import Schedule
from danlu.errors import RunError
from danlu.random import fold
from danlu.registry import name_of


class Tally(Protocol):
    """What a turn took of the world."""

    env_steps: int
    returns: Sequence[float]
    lengths: Sequence[int]


class Tallied(Experience, Protocol):
    """Experience that counts."""

    env_steps: int

    def tally(self) -> Tally:
        """What has come since this was asked last."""
        ...


@dataclass
class Turns(Learner):
    """Has a method take its turns.

    Attributes:
        agent: what acts.
        method: how it learns.
        optimizer: moves the agent's parameters.
        schedule: of the learning rate.
        lr: the highest rate.
        clip_norm: the longest gradient, or None.
        share: how much of the run is done after so many turns.
        tried: asked for what the agent comes to without exploring: returns of whole episodes.
        seed: everything random follows from it.
        way_on: asked for what one does when a turn has failed.
        parallel: of one process.
    """

    agent: Agent
    method: ActingMethod
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    lr: float
    clip_norm: float | None
    share: Callable[[int], float]
    tried: Callable[[Agent], Sequence[float]]
    seed: int
    way_on: Callable[[], str]
    parallel: Parallel = field(default_factory=Parallel)
    _torn: bool = False
    _norm: float | None = None
    _tally: Tally | None = None
    _taken: int = 0

    @property
    def policy(self) -> Agent:
        """See `Learner`."""
        return self.agent

    @property
    def kept(self) -> dict[str, Tensor]:
        """All that the agent is: what is trained, its targets, its tables."""
        return dict(self.agent.state_dict())

    @property
    def torn(self) -> bool:
        """A turn that was broken off has moved some weights, and taken some steps."""
        return self._torn

    def groups(self, samples: Sequence[Any]) -> list[Any]:
        """Experience is one group."""
        return list(samples)

    def gradient(self, groups: Sequence[Any], step: int, told: Callable[[], Any] = lambda: None) -> Measured:
        """Take a turn, weights and all.

        Raises:
            RunError: when what came of it is not finite.
        """
        experience: Tallied = groups[0]
        share = min(1.0, self.share(step))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * self.schedule.factor(min(1.0, self.share(step + 1))) * group.get("lr_scale", 1.0)
        self._torn = True
        turn = Turn(step, share, self.optimizer, fold(self.seed, "turn", step), self.clip_norm)
        try:
            metrics = {name: float(value) for name, value in self.method.learn(self.agent, experience, turn).items()}
        except RunError as error:
            do = f"{error.do} {self.way_on()}".strip()
            raise RunError(error.what, where=error.where, do=do) from error
        if turn.norms:
            metrics["grad_norm"] = float(np.max(turn.norms))  # which is NaN where one is
        if bad := [name for name, value in metrics.items() if not math.isfinite(value)]:
            what = f"turn {step + 1} of {name_of(type(self.method))} came to {bad[0]} = {metrics[bad[0]]}"
            raise RunError(what, do=f"Lower optimizer.lr. {self.way_on()}".strip())
        self._torn = False
        self._norm = metrics.pop("grad_norm", None)
        self._tally, self._taken = experience.tally(), experience.env_steps
        return Measured(metrics, samples=self._tally.env_steps, tokens=0, packs=0, flops=0.0, told=[told()])

    def blame(self, groups: Sequence[Any], step: int) -> str:
        """See `Learner`."""
        return f"the loss or gradient of turn {step + 1} is not finite"

    def clip(self) -> float:
        """The longest gradient of the turn, which has been clipped within it; 0 where there was none."""
        return self._norm or 0.0

    def move(self, lr: float) -> None:
        """The turn has moved the weights."""

    def moved(self, norm: float, lr: float) -> dict[str, float]:
        """See `Learner`; a table is moved without a gradient."""
        if not any(p.requires_grad for p in self.agent.parameters()):
            return {}
        return {"lr": lr} if self._norm is None else {"grad_norm": norm, "lr": lr}

    def facts(self, measured: Measured, seconds: float, device: Device) -> dict[str, Any]:
        """See `Learner`."""
        tally = self._tally
        assert tally is not None
        facts: dict[str, Any] = {"seconds": seconds}
        if self._taken:
            facts |= {
                "env_steps": tally.env_steps,
                "total_env_steps": self._taken,
                "steps_per_second": tally.env_steps / seconds,
                "episodes": len(tally.returns),
            }
        if tally.returns:
            facts |= {"return": float(np.mean(tally.returns)), "episode_length": float(np.mean(tally.lengths))}
        return facts

    def measure(self, samples: Iterable[Any]) -> dict[str, float]:
        """What whole episodes come to without exploring."""
        returns = self.tried(self.agent)
        if not len(returns):
            return {}
        mean, spread = float(np.mean(returns)), float(np.std(returns))
        return {"return": mean, "return_std": spread, "episodes": float(len(returns))}

    def regret(self, measured: Mapping[str, float]) -> float | None:
        """The best checkpoint is that of the highest return."""
        return None if "return" not in measured else -measured["return"]
