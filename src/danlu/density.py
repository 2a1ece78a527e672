"""What learns a distribution of arrays: the words that its methods, its data and the engine share.

A row is some numbers, or an image, with what it is conditioned on: nothing, a class, or a vector. Rows are alike in
shape, so many of them are one array; nothing is padded. A method makes a `Density` and says how it is fitted; what
comes out samples, and, as far as it can, says how likely a row is, and of which noise it is made.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from danlu.config import Config
from danlu.contracts import LossMethod, Outcome
from danlu.errors import UnsupportedError
from danlu.random import normal, place_key, token_keys

Likelihood: TypeAlias = Literal["exact", "bound", "none"]
"""What a density can say of how likely a row is."""


@dataclass(frozen=True)
class Space:
    """What one row is.

    Attributes:
        shape: ``(D,)`` numbers, or ``(C, H, W)`` of an image.
        classes: how many classes it may be conditioned on; 0 where it is on none.
        features: how many numbers it is conditioned on; 0 where it is on none.
    """

    shape: tuple[int, ...]
    classes: int = 0
    features: int = 0

    @property
    def size(self) -> int:
        """How many numbers a row has, D."""
        return math.prod(self.shape)

    @property
    def context(self) -> int:
        """How many numbers `vector` makes of what a row is conditioned on; 0 where it is on nothing."""
        return self.classes or (self.features + 1 if self.features else 0)

    def vector(self, condition: Tensor | None, known: Bool[Tensor, " N"] | None = None) -> Float[Tensor, "N C"] | None:
        """Conditions as numbers that a network takes: a class as a one-hot vector, numbers with a 1 behind them.

        Args:
            condition: classes ``[N]`` (int64), or numbers ``[N, features]``; None where there is none.
            known: which of them are told; of the others all numbers are 0. All by default.
        """
        if condition is None:
            return None
        if self.classes:
            told = nn.functional.one_hot(condition, self.classes).float()
        else:
            told = torch.cat([condition, condition.new_ones(len(condition), 1)], 1)
        return told if known is None else told * known[:, None]


@dataclass(frozen=True, eq=False)
class Rows:
    """N rows that go through at once, or that must be seen together.

    Attributes:
        x: the rows, ``[N, *shape]`` (float32).
        condition: classes ``[N]`` (int64) or numbers ``[N, features]`` (float32); None where there are none.
        sample: which rows they are, ``[N]`` (int64, on the host); randomness is keyed by it.
        key: of the update.
        parts: how many rows each group in it has, in order.
        log_det: log of how much each row was spread out on its way from the data's units, ``[N]``; None before that.
        estimates: see `LossMethod.estimates`.
        visit: the pass over the data that each row is drawn in, ``[N]`` (int64, on the host), where these are several:
            what is random is another thing at each. None where they are one.
    """

    x: Tensor
    condition: Tensor | None
    sample: Int[Tensor, " N"]
    key: int
    parts: tuple[int, ...]
    log_det: Float[Tensor, " N"] | None = None
    estimates: Mapping[str, float] = field(default_factory=dict)
    visit: Int[Tensor, " N"] | None = None

    @staticmethod
    def of(x: Tensor, condition: Tensor | None, sample: Tensor, visit: Tensor | None = None) -> Rows:
        """One group, whose key is that of no update."""
        return Rows(x, condition, sample, 0, (len(x),), visit=visit)

    @staticmethod
    def join(groups: Sequence[Rows]) -> Rows:
        """Several groups of an update, at least one."""
        if len(groups) == 1:
            return groups[0]
        conditions = [g.condition for g in groups if g.condition is not None]
        visits = [g.visit for g in groups if g.visit is not None]
        return Rows(
            torch.cat([g.x for g in groups]),
            torch.cat(conditions) if conditions else None,
            torch.cat([g.sample for g in groups]),
            groups[0].key,
            tuple(n for g in groups for n in g.parts),
            visit=torch.cat(visits) if visits else None,
        )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def num_samples(self) -> int:
        """How many rows."""
        return len(self.x)

    @property
    def sample_ids(self) -> list[int]:
        """Which rows."""
        return self.sample.tolist()

    @property
    def origin(self) -> tuple[str, ...]:
        """Where it comes from, as a person finds it."""
        first, last = int(self.sample.min()), int(self.sample.max())
        return (f"row {first}" if first == last else f"{len(self)} rows from {first} to {last}",)

    @property
    def weights(self) -> Tensor:
        """What must be finite before any network is asked: the rows themselves."""
        return self.x

    def to(self, device: torch.device | str) -> Rows:
        """The same on another device."""
        if self.x.device == torch.device(device):
            return self
        condition = None if self.condition is None else self.condition.to(device)
        return replace(self, x=self.x.to(device), condition=condition)

    def keyed(self, key: int) -> Rows:
        """The same with the key of an update."""
        return replace(self, key=key)

    @cached_property
    def keys(self) -> Int[Tensor, " N"]:
        """A random key a row, ``[N]`` (int32); made where it is asked for, since most flows draw nothing."""
        visit = torch.zeros_like(self.sample) if self.visit is None else self.visit
        return token_keys(self.key, self.sample, visit).to(self.x.device)


class Density(nn.Module, ABC):
    """A distribution of rows, each made of noise of the same shape, which is standard normal unless it says otherwise.

    Every parameter and buffer is saved with a checkpoint. All methods take rows as the network sees them
    (`danlu.parts.frame`), and conditions as `Space.vector` makes them.

    Class attributes:
        likelihood: what `log_prob` gives.

    Args:
        space: what a row is.

    Attributes:
        evaluations: how often the network was asked by the last `encode`, `decode` or `log_prob`; 1 where these are no
            solving.
    """

    likelihood: ClassVar[Likelihood] = "exact"

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.space = space
        self.evaluations = 1

    def noise(self, keys: Int[Tensor, " N"]) -> Float[Tensor, "N ..."]:
        """Noise, a function of the keys."""
        return normal(keys, _NOISE, self.space.size).view(len(keys), *self.space.shape)

    @abstractmethod
    def decode(self, z: Float[Tensor, "N ..."], context: Tensor | None = None) -> Float[Tensor, "N ..."]:
        """The rows that are made of this noise."""

    @abstractmethod
    def encode(self, x: Float[Tensor, "N ..."], context: Tensor | None = None) -> Float[Tensor, "N ..."]:
        """The noise that these rows are made of."""

    @abstractmethod
    def log_prob(self, x: Float[Tensor, "N ..."], context: Tensor | None = None) -> Float[Tensor, " N"]:
        """How likely each row is, in nats, of the kind that `likelihood` says.

        Raises:
            UnsupportedError: where that is "none".
        """

    @abstractmethod
    def path(self, z: Float[Tensor, "N ..."], context: Tensor | None = None) -> list[Tensor]:
        """The way from noise to rows, both included, each stage ``[N, *shape]``."""


class DensityMethod(LossMethod, ABC):
    """How a distribution of rows is learned; its fields are what a recipe may say of it.

    Class attributes:
        one_step: whether a row is made by asking the network a fixed number of times, without solving.
        least: the least numbers a row must have.
        takes_images: whether it can make use of rows being images; it is given flat ones otherwise.
        later: the fields that may be others after training: how rows are made and scored, not what was learned.
    """

    learns_from = "rows"
    roles = ("density",)
    goal = "density estimation"
    one_step: ClassVar[bool] = True
    least: ClassVar[int] = 1
    takes_images: ClassVar[bool] = False
    later: ClassVar[frozenset[str]] = frozenset()

    @property
    def together(self) -> int | None:
        """How many rows must be seen together (a minibatch that is paired); None where each is seen for itself."""
        return None

    @property
    def notes(self) -> tuple[str, ...]:
        """What one should know of it as its fields are, a sentence each."""
        return ()

    @abstractmethod
    def density(self, space: Space, network: Config | None, seed: int) -> Density:
        """The density at its start.

        Args:
            space: what a row is.
            network: the recipe's model; None takes the method's own default.
            seed: weights follow from it.

        Raises:
            UnsupportedError: when such rows, or such a network, are not for it.
        """

    @abstractmethod
    def fit(self, density: Density, rows: Rows) -> Outcome:
        """The terms' sums over these rows, which are as the network sees them (`log_det` is there)."""

    def group(self, sample: Rows) -> Rows:
        """See `LossMethod`: the source has made it."""
        return sample

    def join(self, groups: Sequence[Rows]) -> Rows:
        """See `LossMethod`."""
        return Rows.join(groups)

    def counts(self, batch: Rows) -> dict[str, float]:
        """See `LossMethod`: rows, for every term."""
        return dict.fromkeys(self.terms, float(len(batch)))

    @property
    @abstractmethod
    def terms(self) -> tuple[str, ...]:
        """The names of all that `fit` gives, losses and metrics."""

    def loss(self, models: Mapping[str, nn.Module], batch: Rows) -> Outcome:
        """See `LossMethod`."""
        return models["density"](batch, self.fit)

    def summarize(self, averages: Mapping[str, float]) -> dict[str, float]:
        """See `LossMethod`: as they are."""
        return dict(averages)

    def check(self, space: Space) -> None:
        """Refuse rows that it cannot learn.

        Raises:
            UnsupportedError: naming what would do.
        """
        if space.size < self.least:
            name, numbers = type(self).__name__, "one number" if space.size == 1 else f"{space.size} numbers"
            what = f"{name} has one part of a row say how the other is moved, and a row here has {numbers}"
            raise UnsupportedError(what, where="data.train", do="Use cnf or flow_matching, or rows of more numbers.")


def options_of(network: Config | None, default: Config, kinds: tuple[type[Config], ...]) -> Any:
    """The network that a recipe names, or a default, where it is one of some kinds.

    Raises:
        UnsupportedError: for another.
    """
    if network is None:
        return default
    if not isinstance(network, kinds):
        known = " or ".join(kind.__name__.lower() for kind in kinds)
        what = f"this method's network is {known}, not {type(network).__name__.lower()}"
        raise UnsupportedError(what, where="model", do=f"Set model to {known}, or choose another method.")
    return network


_NOISE = place_key("density.noise")
