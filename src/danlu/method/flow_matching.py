"""Flow matching: a field learns to say how fast rows go on paths from noise to data, and is followed to make rows.

    x_t = (1 - t) x_0 + t x_1,    u_t = x_1 - x_0,    loss = mean over a row's D numbers of [f(t, x_t) - u_t]^2

x_0 is noise and x_1 a row; f(t, x) comes to E[u_t | x_t = x], which carries the noise to the data. With
`optimal_transport` noise and rows of a minibatch are paired so that they lie near each other, which leaves straighter
paths and needs fewer steps.

References:
    Lipman et al., 2022, "Flow matching for generative modeling", https://arxiv.org/abs/2210.02747
    Liu, Gong and Liu, 2022, "Flow straight and fast" (rectified flow), https://arxiv.org/abs/2209.03003
    Tong et al., 2023, "Improving and generalizing flow-based generative models with minibatch optimal transport",
    https://arxiv.org/abs/2302.00482
    Ho and Salimans, 2022, "Classifier-free diffusion guidance", https://arxiv.org/abs/2207.12598
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch.nn.functional import mse_loss

from danlu.config import Config
from danlu.contracts import Outcome
from danlu.density import Density, Rows, Space
from danlu.errors import UnsupportedError
from danlu.method.continuous import ContinuousMethod, Guided
from danlu.parts.continuous import ContinuousFlow, Solving, Timed
from danlu.parts.network import MLP
from danlu.parts.paths import PATHS, PathName, nearest_noise
from danlu.parts.solvers import Solver
from danlu.parts.times import Times, harmonic, noise_and_shares, times_of
from danlu.random import place_key
from danlu.registry import export

_DEFAULT = MLP(hidden=(64, 64), activation="silu", initial="uniform")
_CHANCE = place_key("flow_matching.chance")


@export("method", "flow_matching", source="Lipman et al., 2022, https://arxiv.org/abs/2210.02747")
class FlowMatching(ContinuousMethod, Guided):
    """Flow matching: a field of velocities learned on paths from noise to data."""

    mechanism = "regression of velocities"
    later = ContinuousMethod.later | Guided.later

    path: PathName = "linear"
    """The way from noise to data: `linear`, at an even pace; or `trigonometric`, along a quarter of a circle."""
    pairing: Literal["none", "optimal_transport"] = "none"
    """Which noise goes to which row: any; or that which makes the squared distances of a minibatch least in sum, among
    rows of the same class."""
    minibatch: int = Field(256, ge=2)
    """How many rows are paired at once, by optimal_transport."""
    times: Times = "uniform"
    """Where on a path a row is learned from: anywhere alike; `logit_normal` more in the middle; `beta` more where there
    is mostly noise."""
    frequencies: int = Field(8, ge=1)
    """The network is told sin and cos of so many multiples of pi t."""

    @property
    def together(self) -> int | None:
        """See `DensityMethod`: what is paired."""
        return self.minibatch if self.pairing == "optimal_transport" else None

    @property
    def terms(self) -> tuple[str, ...]:
        """See `DensityMethod`: the velocities' squared error."""
        return ("velocity",)

    def density(self, space: Space, network: Config | None, seed: int) -> ContinuousFlow:
        """See `DensityMethod`; its log-density is solved by dopri5, whatever makes its rows."""
        network = network or _DEFAULT
        field = Timed(space, network, harmonic(self.frequencies), seed)
        exactly = Solver("dopri5", tolerance=self.tolerance)
        solving = Solving(self.following, exactly, self.trace, self.probe, guidance=self.guidance)
        return ContinuousFlow(space, network, field, solving)

    def fit(self, density: Density, rows: Rows) -> Outcome:
        """See `DensityMethod`."""
        assert isinstance(density, ContinuousFlow)
        space, path, x = density.space, PATHS[self.path], rows.x
        noise, (u, told) = noise_and_shares(rows.keys, _CHANCE, space.size, 2)
        noise = noise.view(x.shape)
        if self.pairing == "optimal_transport":
            classes = rows.condition if space.classes else None
            noise = noise[nearest_noise(noise, x, rows.parts, classes)]
        t = times_of(u, self.times, path.noise_at)
        known = told >= self.condition_dropout if self.condition_dropout else None
        said = density.field(t, path.at(t, noise, x), space.vector(rows.condition, known))
        error = mse_loss(said, path.velocity(t, noise, x), reduction="sum")
        return Outcome({"velocity": error / space.size}, {})

    def check(self, space: Space) -> None:
        """See `DensityMethod`.

        Raises:
            UnsupportedError: for rows conditioned on numbers that noise is to be paired with.
        """
        super().check(space)
        if space.features and self.pairing == "optimal_transport":
            raise UnsupportedError(
                "noise is paired among rows of the same class, and rows that are conditioned on numbers have none",
                where="method.pairing",
                do="Set it to none, or condition on a class.",
            )
