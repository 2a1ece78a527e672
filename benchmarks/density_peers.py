"""The flows of `zuko` and `nflows`, and flow matching and diffusion as people write them, by our methods' names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

BINS, BOUND = 8, 5.0
"""Of splines, on all sides."""
TOLERANCE = 1e-5
"""Of solvers, on all sides; absolute ones are a tenth of it."""
STEPS = 50
"""Of samplers whose steps are fixed."""
TIMES = 1000
"""Of diffusion."""
LOOP = "a plain loop"
"""For information: what it would take without a library, without guards, checkpoints, metrics or resuming."""
PEERS = {
    "nice": "nflows",
    "realnvp": "zuko",
    "maf": "zuko",
    "spline_coupling": "nflows",
    "cnf": "zuko",
    "flow_matching": LOOP,
    "diffusion": LOOP,
}
"""Who each method is measured beside."""


@dataclass(frozen=True)
class Peer:
    """A density of another library.

    Attributes:
        parameters: what is trained.
        loss: of a batch, to be made smaller.
        sample: so many rows.
        log_prob: of a batch; None where there is none.
    """

    parameters: Sequence[Any]
    loss: Callable[[Any], Any]
    sample: Callable[[int], Any]
    log_prob: Callable[[Any], Any] | None = None
    eval: Callable[[], Any] = lambda: None


def make(
    library: str,
    method: str,
    features: int,
    hidden: Sequence[int],
    layers: int,
    *,
    exact: bool = True,
    shuffled: bool = False,
    tolerance: float = TOLERANCE,
) -> Peer:
    """The peer of a method.

    Args:
        library: "zuko", "nflows" or "a plain loop".
        method: what ours is called.
        features: numbers of a row.
        hidden: widths of each network's layers.
        layers: couplings or autoregressive layers, where there are several.
        exact: whether zuko's continuous flow learns by the exact trace; it is always scored by it.
        shuffled: whether zuko's layers have the numbers of a row in an order drawn at random, each its own.
        tolerance: that zuko's continuous flow learns by; it is scored by `TOLERANCE`.
    """
    if library == "zuko":
        return _zuko(method, features, hidden, layers, exact, shuffled, tolerance)
    if library == "nflows":
        return _nflows(method, features, hidden, layers)
    return (_velocity if method == "flow_matching" else _noise)(features, hidden)


def _zuko(
    method: str,
    features: int,
    hidden: Sequence[int],
    layers: int,
    exact: bool,
    shuffled: bool,
    tolerance: float,
) -> Peer:
    import zuko
    from torch import nn

    flows, transforms, several = zuko.flows, zuko.transforms, {"transforms": layers, "hidden_features": hidden}
    couplings, solving = several | {"randmask": shuffled}, {"atol": tolerance, "rtol": tolerance, "exact": exact}
    spline = {"univariate": partial(transforms.MonotonicRQSTransform, bound=BOUND), "shapes": _SHAPES}
    made = {
        "nice": lambda: flows.NICE(features, univariate=transforms.AdditiveTransform, shapes=[()], **couplings),
        "realnvp": lambda: flows.NICE(features, **couplings),
        "maf": lambda: flows.MAF(features, randperm=shuffled, **several),
        "spline_coupling": lambda: flows.NICE(features, **spline, **couplings),
        "cnf": lambda: flows.CNF(features, hidden_features=hidden, activation=nn.SiLU, **solving),
    }
    flow = made[method]()

    def score() -> None:
        flow.eval()
        for part in flow.modules():
            if isinstance(part, flows.FFJTransform):
                part.exact, part.atol, part.rtol = True, TOLERANCE, TOLERANCE

    return Peer(
        list(flow.parameters()),
        lambda x: -flow().log_prob(x).mean(),
        lambda num: flow().sample((num,)),
        lambda x: flow().log_prob(x),
        score,
    )


_SHAPES = [(BINS,), (BINS,), (BINS - 1,)]


def _nflows(method: str, features: int, hidden: Sequence[int], layers: int) -> Peer:
    import torch
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import (
        AdditiveCouplingTransform,
        CompositeTransform,
        PiecewiseRationalQuadraticCouplingTransform,
    )

    kind = {
        "nice": AdditiveCouplingTransform,
        "spline_coupling": partial(
            PiecewiseRationalQuadraticCouplingTransform, num_bins=BINS, tails="linear", tail_bound=BOUND
        ),
    }[method]

    def network(inputs: int, outputs: int) -> Any:
        return _Conditioner(inputs, outputs, hidden)

    masks = [torch.tensor([1.0 if (i + layer) % 2 else -1.0 for i in range(features)]) for layer in range(layers)]
    couplings = CompositeTransform([kind(mask=mask, transform_net_create_fn=network) for mask in masks])
    flow = Flow(couplings, StandardNormal([features]))
    return Peer(list(flow.parameters()), lambda x: -flow.log_prob(x).mean(), flow.sample, flow.log_prob, flow.eval)


def _Conditioner(inputs: int, outputs: int, hidden: Sequence[int]) -> Any:  # noqa: N802 - it makes one
    """The network of `nflows` without residuals, which its couplings can call."""
    from nflows.nn.nets import MLP

    class Conditioner(MLP):  # type: ignore[misc]
        def forward(self, inputs: Any, context: Any = None) -> Any:
            return super().forward(inputs)

    return Conditioner((inputs,), (outputs,), list(hidden))


def _network(features: int, hidden: Sequence[int], activation: str) -> Any:
    from itertools import pairwise

    from torch import nn

    widths, layers = (features + 1, *hidden), []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), getattr(nn, activation)()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], features))


def _velocity(features: int, hidden: Sequence[int]) -> Peer:
    """Flow matching on straight paths, sampled by Euler's method."""
    import torch

    network = _network(features, hidden, "SiLU")

    def loss(x1: Any) -> Any:
        x0, t = torch.randn_like(x1), torch.rand(len(x1), 1)
        x_t = (1 - t) * x0 + t * x1
        return (network(torch.cat([x_t, t], 1)) - (x1 - x0)).pow(2).mean()

    def sample(num: int) -> Any:
        x = torch.randn(num, features)
        for step in range(STEPS):
            t = torch.full((num, 1), step / STEPS)
            x = x + network(torch.cat([x, t], 1)) / STEPS
        return x

    return Peer(list(network.parameters()), loss, sample)


def _noise(features: int, hidden: Sequence[int]) -> Peer:
    """Diffusion that predicts noise, sampled by DDIM."""
    import torch

    network = _network(features, hidden, "SiLU")
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, TIMES), 0)

    def loss(x: Any) -> Any:
        t, noise = torch.randint(0, TIMES, (len(x),)), torch.randn_like(x)
        a = kept[t][:, None]
        x_t = a.sqrt() * x + (1 - a).sqrt() * noise
        return (network(torch.cat([x_t, t[:, None] / TIMES], 1)) - noise).pow(2).mean()

    def sample(num: int) -> Any:
        x = torch.randn(num, features)
        times = torch.linspace(TIMES - 1, 0, STEPS).long().tolist()
        for t, then in zip(times, [*times[1:], None], strict=True):
            a, b = kept[t], torch.tensor(1.0) if then is None else kept[then]
            noise = network(torch.cat([x, torch.full((num, 1), t / TIMES)], 1))
            x = b.sqrt() * (x - (1 - a).sqrt() * noise) / a.sqrt() + (1 - b).sqrt() * noise
        return x

    return Peer(list(network.parameters()), loss, sample)
