"""What learns from acting: the words that methods, sources of experience and the engine share.

A turn of the loop is a turn of the method: it takes as much experience as it wants and learns from it as its paper says
(`ActingMethod.learn`). What it has of the world it has through `Experience`: steps that its agent takes (`rollout`),
steps from long ago (`replay`), or all there is to know of a finite world (`model`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from danlu.config import Config
from danlu.contracts import Method
from danlu.errors import UnsupportedError
from danlu.registry import exported, name_of
from danlu.spaces import Spaces, in_words

Level: TypeAlias = Literal["table", "features", "network"]
"""What a method keeps what it learned in: a table of a finite world, fixed features' weights, or a network."""
Goal: TypeAlias = Literal["prediction", "control", "approximation"]
"""What for: to value a policy, to find a good one, or to find a number."""


@dataclass(frozen=True, eq=False)
class Steps:
    """Steps of N environments side by side, T in a row.

    Attributes:
        observations: before each step, ``[T, N, ...]``.
        actions: ``[T, N]`` (int64) of a choice, ``[T, N, A]`` (float32) of numbers.
        rewards: ``[T, N]``.
        terminated: whether the step ended its episode, after which nothing is to be had, ``[T, N]``.
        truncated: whether the episode was cut there, which would have gone on, ``[T, N]``.
        following: what the step led to, before a new episode began, ``[T, N, ...]``.
        said: what the agent said as it chose, by name, ``[T, N, ...]`` each: "log_prob", "value".
    """

    observations: Tensor
    actions: Tensor
    rewards: Float[Tensor, "T N"]
    terminated: Bool[Tensor, "T N"]
    truncated: Bool[Tensor, "T N"]
    following: Tensor
    said: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def ended(self) -> Bool[Tensor, "T N"]:
        """Whether a new episode began after the step."""
        return self.terminated | self.truncated

    def __len__(self) -> int:
        """How many steps, T times N."""
        return self.rewards.numel()


@dataclass(frozen=True, eq=False)
class Choice:
    """What an agent does.

    Attributes:
        actions: one for each environment: ``[N]`` (int64) of a choice, ``[N, A]`` of numbers.
        said: what is kept with the step, by name, ``[N, ...]``.
    """

    actions: Tensor
    said: Mapping[str, Tensor] = field(default_factory=dict)


class Agent(nn.Module, ABC):
    """What acts: its networks or tables, and all that is kept beside them, as parameters or buffers.

    Every parameter and buffer is saved with a checkpoint; what gradients move is a parameter with `requires_grad`.

    Args:
        spaces: of the environments it acts in.
    """

    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        self.spaces = spaces

    @abstractmethod
    def act(self, observations: Tensor, chance: torch.Generator | None) -> Choice:
        """One action for each observation, ``[N, ...]``, without a gradient.

        Args:
            observations: as the environments show them.
            chance: what it explores by; None to do what it thinks best.
        """

    def values(self, observations: Tensor) -> Float[Tensor, " N"] | None:
        """What it expects to come of each observation; None where it has no opinion."""
        return None

    def groups(self) -> list[dict[str, Any]]:
        """What gradients move, as an optimiser takes it: "params", and "lr_scale", their rate as a multiple of its."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr_scale": 1.0}]


@dataclass(frozen=True, eq=False)
class World:
    """All there is to know of a finite world with S states and A actions.

    Attributes:
        moves: the chance of each next state, ``[S, A, S]``, dense; or, for large worlds, the K states that may follow,
            ``[S, A, K]`` int64, whose chances are `chances`.
        chances: None where `moves` is dense; else ``[S, A, K]``.
        rewards: what is expected of each action in each state, ``[S, A]``.
        terminal: states after which nothing is to be had, ``[S]``.
    """

    moves: np.ndarray
    chances: np.ndarray | None
    rewards: np.ndarray
    terminal: np.ndarray

    @property
    def num_states(self) -> int:
        """S."""
        return len(self.rewards)

    @property
    def num_actions(self) -> int:
        """A."""
        return int(self.rewards.shape[1])


class Replay(Protocol):
    """Steps from long ago."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def sample(self, size: int, chance: np.random.Generator) -> Steps:
        """Some of them, each as likely as another: as steps of one environment, ``[size, 1]``."""
        ...


class Experience(Protocol):
    """What a method has of the world."""

    @property
    def spaces(self) -> Spaces:
        """What one environment shows and takes."""
        ...

    @property
    def num_envs(self) -> int:
        """How many environments run side by side, N."""
        ...

    def rollout(self, agent: Agent, steps: int, *, explore: bool = True) -> Steps:
        """The agent's next steps in every environment, T of them, on from where these are."""
        ...

    def episode(self, agent: Agent, *, start: tuple[int, int] | None = None, longest: int) -> Steps:
        """One whole episode of one environment; in a finite world it may begin with a state and an action."""
        ...

    @property
    def replay(self) -> Replay:
        """All steps so far, as many as are kept; `rollout` adds to it where the method says `remembers`."""
        ...

    @property
    def model(self) -> World:
        """All there is to know of a finite world.

        Raises:
            UnsupportedError: where that is not to be had.
        """
        ...


@dataclass(frozen=True, eq=False)
class Turn:
    """One turn of the loop, as a method sees it.

    Attributes:
        number: turns before it.
        share: of the run that is done, 0 to 1.
        optimizer: moves the agent's parameters; those without a gradient (`.grad` is None) stay.
        seed: of this turn.
        clip_norm: a gradient is scaled down to this norm when it is longer; None never does.
        norms: those of the turn's gradients so far, before that.
    """

    number: int
    share: float
    optimizer: torch.optim.Optimizer
    seed: int
    clip_norm: float | None = None
    norms: list[float] = field(default_factory=list)

    def torch_chance(self) -> torch.Generator:
        """Chance that is the turn's own, whatever was drawn before."""
        return torch.Generator().manual_seed(self.seed % 2**63)

    def numpy_chance(self) -> np.random.Generator:
        """The same for numpy."""
        return np.random.Generator(np.random.Philox(key=self.seed))


class ActingMethod(Method, ABC):
    """How an agent learns from what comes of acting; its fields are what a recipe may say of it.

    Class attributes:
        level: what it keeps what it learned in.
        goal: what for.
        mechanism: how, in two or three words, as a catalogue has it ("policy gradient", "temporal difference").
        acts_in: the kinds of action it can choose: of some ("discrete"), or as numbers ("continuous").
        finite: whether it needs a world of finitely many states.
        by_episode: whether it takes whole episodes, one after another, rather than steps.
        remembers: how many steps its replay keeps; 0 where it has none. A property where a field says it.
    """

    learns_from = "experience"
    level: ClassVar[Level] = "network"
    goal: ClassVar[Goal] = "control"
    mechanism: ClassVar[str] = ""
    acts_in: ClassVar[frozenset[str]] = frozenset({"discrete", "continuous"})
    finite: ClassVar[bool] = False
    by_episode: ClassVar[bool] = False

    @property
    def remembers(self) -> int:
        """See the class."""
        return 0

    @property
    def discount(self) -> float | None:
        """What a reward one step later is worth; None where it has no use for rewards."""
        return None

    @property
    def root(self) -> float | None:
        """The number that is looked for (its first component), where that is known; None where a policy is."""
        return None

    @abstractmethod
    def agent(self, spaces: Spaces, network: Config | None, seed: int) -> Agent:
        """The agent at its start.

        Args:
            spaces: of the environments.
            network: the recipe's model; None where the method has no use for one.
            seed: weights follow from it.
        """

    @abstractmethod
    def learn(self, agent: Agent, experience: Experience, turn: Turn) -> Mapping[str, float | Tensor]:
        """One turn: take experience, and learn from it in place; what is to be recorded of it, "loss" among it."""

    def check(self, spaces: Spaces) -> None:
        """Refuse what it cannot act in.

        Raises:
            UnsupportedError: naming the space, and what would do.
        """
        action = spaces.action
        kind = "discrete" if isinstance(action, Discrete) else "continuous" if isinstance(action, Box) else "other"
        name = name_of(type(self))
        if kind not in self.acts_in:
            what = f"{name} chooses {' or '.join(sorted(self.acts_in))} actions, and these are {in_words(action)}"
            raise UnsupportedError(what, where="data.env", do=_others(kind))
        if isinstance(action, Box) and (len(action.shape) != 1 or np.dtype(action.dtype).kind != "f"):  # type: ignore[arg-type]
            what = f"{name} chooses an array of real numbers with one axis, and actions are {in_words(action)}"
            do = "Wrap the environment so that an action is one (gymnasium.wrappers.TransformAction)."
            raise UnsupportedError(what, where="data.env", do=do)
        if self.finite and spaces.num_states is None:
            shown = in_words(spaces.observation)
            what = f"{name} keeps a number for each state, and there is no end of them in {shown}"
            do = "Choose a finite world (gridworld), or a method with a network."
            raise UnsupportedError(what, where="data.env", do=do)
        if not isinstance(spaces.observation, Box | Discrete | MultiBinary | MultiDiscrete):
            what = f"observations are {type(spaces.observation).__name__}, which no network here takes"
            raise UnsupportedError(what, where="data.env")


def _others(kind: str) -> str:
    """What acts where actions are of that kind, whatever is shown."""
    if kind == "other":
        return "Wrap the environment so that an action is one choice, or an array of numbers."
    methods = ((e.name, e.target) for e in exported("method") if issubclass(e.target, ActingMethod))
    fit = (name for name, m in methods if m.goal == "control" and m.level == "network" and kind in m.acts_in)
    return f"These do: {', '.join(fit)}."


class Discounting(ActingMethod):
    """A method to which a reward is worth less the later it comes."""

    gamma: float = Field(0.99, ge=0, le=1)
    """What a reward one step later is worth."""

    @property
    def discount(self) -> float:
        """See `ActingMethod`."""
        return self.gamma
