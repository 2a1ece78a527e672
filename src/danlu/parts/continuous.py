"""A density whose rows are noise carried along a field: dx/dt = f(t, x), noise at time 0, data at time 1.

    d log p(x_t) / dt = -tr(df / dx),      log p(x_1) = log N(x_0; 0, 1) - integral_0^1 tr(df / dx) dt

Where rows are conditioned on something, the field can be asked with it and without: guidance w makes rows by
f(x | nothing) + w [f(x | c) - f(x | nothing)], both asked in one pass.

References:
    Chen et al., 2018, "Neural ordinary differential equations", https://arxiv.org/abs/1806.07366
    Ho and Salimans, 2022, "Classifier-free diffusion guidance", https://arxiv.org/abs/2207.12598
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from danlu.config import Config
from danlu.density import Density, Space
from danlu.parts.nets import network_of
from danlu.parts.network import MLP
from danlu.parts.solver_gradients import adjoint, retraced
from danlu.parts.solvers import Field, Solved, Solver
from danlu.parts.times import Clock
from danlu.parts.trace import ByVectors, OfLayers, Probe, Trace, Traced, keys_of, probes_of

_STAGES = 31
"""How many stages a path from noise to rows has, both ends included."""
_NATS = 1e-2
"""What a nat counts against the numbers of a row where a step's error is judged."""


class Timed(nn.Module):
    """A network that is told the time: t, x and a context to as many numbers as x has.

    Args:
        space: what a row is.
        network: the recipe's model.
        frequencies: of its clock.
        seed: weights follow from it.
        zero_last: begin with a field of zeros.
    """

    def __init__(
        self, space: Space, network: Config, frequencies: Float[Tensor, " F"], seed: int, *, zero_last: bool = False
    ) -> None:
        super().__init__()
        self.clock = Clock(frequencies)
        told = len(self.clock) + space.context
        self.network = network_of(network, space.shape, space.shape, told, seed, zero_last=zero_last)

    def forward(
        self, t: Float[Tensor, " N"], x: Float[Tensor, "N ..."], context: Float[Tensor, "N C"] | None
    ) -> Float[Tensor, "N ..."]:
        """Of rows that each have their own time."""
        told = self.clock(t)
        return self.network(x, told if context is None else torch.cat([told, context], 1))

    def at(self, t: float, x: Float[Tensor, "N ..."], context: Float[Tensor, "N C"] | None) -> Float[Tensor, "N ..."]:
        """Of rows at one time."""
        told = self.clock.at(t).expand(len(x), -1)
        return self.network(x, told if context is None else torch.cat([told, context], 1))

    def guided(
        self, t: float, x: Float[Tensor, "N ..."], context: Float[Tensor, "N C"] | None, guidance: float
    ) -> Float[Tensor, "N ..."]:
        """The same with and without a context, extrapolated from the one to the other.

        Args:
            t: the time.
            x: rows.
            context: what they are conditioned on.
            guidance: 0 is without, 1 with, and more than 1 goes beyond that.
        """
        if context is None or guidance == 1:
            return self.at(t, x, context)
        without = torch.zeros_like(context)
        if guidance == 0:
            return self.at(t, x, without)
        both = self.at(t, torch.cat([x, x]), torch.cat([without, context]))
        plain, told = both.chunk(2)
        return torch.lerp(plain, told, guidance)


@dataclass(frozen=True)
class Solving:
    """How a continuous flow is solved.

    Attributes:
        decode: from noise to rows, and back.
        likelihood: from rows to noise with the log-density.
        trace: how the trace is had.
        probe: what vectors an estimate of it is made with.
        adjoint: whether a gradient of the log-density is solved backwards rather than traced back through the steps.
        guidance: see `Timed.guided`; the log-density is that of guidance 1.
    """

    decode: Solver
    likelihood: Solver
    trace: Trace = "exact"
    probe: Probe = "rademacher"
    adjoint: bool = False
    guidance: float = 1.0


class ContinuousFlow(Density):
    """Noise carried along a field.

    Args:
        space: what a row is.
        network: the recipe's model.
        field: the network, told the time.
        solving: how it is solved.
    """

    def __init__(self, space: Space, network: Config, field: Timed, solving: Solving) -> None:
        super().__init__(space)
        self.field, self.solving = field, solving
        self._activation = network.activation if isinstance(network, MLP) else None

    def decode(self, z: Float[Tensor, "N ..."], context: Tensor | None = None) -> Float[Tensor, "N ..."]:
        """See `Density`: along the field, guided."""
        return self._arrived(self.solving.decode.solve(self._guided(context), z, 0.0, 1.0))

    def encode(self, x: Float[Tensor, "N ..."], context: Tensor | None = None) -> Float[Tensor, "N ..."]:
        """See `Density`: backwards along the field that `decode` follows."""
        return self._arrived(self.solving.decode.solve(self._guided(context), x, 1.0, 0.0))

    def path(self, z: Float[Tensor, "N ..."], context: Tensor | None = None) -> list[Tensor]:
        """See `Density`."""
        stages, self.evaluations = self.solving.decode.stages(self._guided(context), z, 0.0, 1.0, _STAGES)
        return stages

    def log_prob(
        self,
        x: Float[Tensor, "N ..."],
        context: Tensor | None = None,
        keys: Int[Tensor, " N"] | None = None,
    ) -> Float[Tensor, " N"]:
        """See `Density`.

        Args:
            x: rows.
            context: what they are conditioned on.
            keys: what an estimate's vectors are functions of; None takes the rows themselves.
        """
        size, solver = self.space.size, self.solving.likelihood
        traced = self.traced(context, x, keys)

        def both(t: float, state: Tensor) -> Tensor:
            y, trace = traced(state[:, :size], self.field.clock.at(t))
            return torch.cat([y, trace[:, None] * _NATS], 1)

        state = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], 1)
        backwards = self.solving.adjoint and torch.is_grad_enabled()
        end = self._arrived((adjoint if backwards else retraced)(solver, both, state, 1.0, 0.0, traced.weights))
        z, gained = end.split([size, 1], 1)
        return gained[:, 0] / _NATS - z.square().sum(1) / 2 - size * math.log(2 * math.pi) / 2

    def traced(
        self, context: Tensor | None, x: Float[Tensor, "N ..."], keys: Int[Tensor, " N"] | None = None
    ) -> Traced:
        """The field with its trace, for one solving; see `log_prob`."""
        size, shape, network = self.space.size, self.space.shape, self.field.network
        probes = None
        if self.solving.trace == "hutchinson":
            probes = probes_of(keys_of(x) if keys is None else keys, size, self.solving.probe).to(x.dtype)
        if self._activation is not None:
            sizes = (size, len(self.field.clock))
            return OfLayers(list(network.parameters()), self._activation, sizes, context, probes)
        if len(shape) == 1:
            return ByVectors(network, network.parameters(), context, probes)

        def flat(x: Tensor, told: Tensor) -> Tensor:
            return network(x.view(-1, *shape), told).flatten(1)

        return ByVectors(flat, network.parameters(), context, probes)

    def _guided(self, context: Tensor | None) -> Field:
        guidance, guided = self.solving.guidance, self.field.guided
        return lambda t, x: guided(t, x, context, guidance)

    def _arrived(self, solved: Solved) -> Tensor:
        self.evaluations = solved.evaluations
        return solved.z
