from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from danlu.engine.optimizer import AdamW
from danlu.engine.state import optimizer_slots, optimizer_tensors
from danlu.errors import CheckpointError
from danlu.registry import exported

NAMES = [entry.name for entry in exported("optimizer")]


class Net(nn.Module):
    """Matrices, vectors, and one of each that is frozen."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.matrix = nn.Parameter(torch.randn(4, 3))
        self.vector = nn.Parameter(torch.randn(4))
        self.frozen = nn.Parameter(torch.randn(3, 3), requires_grad=False)

    def set_gradients(self, step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        for parameter in (self.matrix, self.vector):
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def by_hand(config: AdamW, weight: Tensor, gradients: list[Tensor], rates: list[float], decay: float) -> Tensor:
    """Loshchilov and Hutter, 2017, algorithm 2, with the decay scaled by the rate."""
    w, m, v = weight.double(), 0.0, 0.0
    (b1, b2), eps = config.betas, config.eps
    for t, (g, lr) in enumerate(zip(gradients, rates, strict=True), start=1):
        m = b1 * m + (1 - b1) * g.double()
        v = b2 * v + (1 - b2) * g.double() ** 2
        w = w - lr * decay * w - lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)) ** 0.5 + eps)
    return w


@pytest.mark.parametrize("fields", [{}, {"betas": (0.8, 0.99), "eps": 1e-3, "weight_decay": 0.5}])
def test_adamw_is_the_papers_and_decays_matrices_only(fields: dict[str, object]) -> None:
    config = AdamW(lr=1.0, **fields)  # type: ignore[arg-type]
    net = Net()
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = config.build(net)
    rates = [0.1, 0.05, 0.2, 0.01, 0.1]
    seen: dict[str, list[Tensor]] = {"matrix": [], "vector": []}
    for step, rate in enumerate(rates):
        net.set_gradients(step)
        for name, gradients in seen.items():
            gradients.append(net.get_parameter(name).grad.clone())
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    for name, decay in (("matrix", config.weight_decay), ("vector", 0.0)):
        expected = by_hand(config, start[name], seen[name], rates, decay)
        torch.testing.assert_close(net.get_parameter(name).detach().double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(net.frozen, start["frozen"])


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_state_goes_on_to_the_bit(name: str) -> None:
    config = next(e.target for e in exported("optimizer") if e.name == name)(lr=0.1)
    net, other = Net(), Net(seed=1)
    optimizer, resumed = config.build(net), config.build(other)
    for step in range(4):
        if step == 2:
            saved = {key: value.clone() for key, value in optimizer_tensors(optimizer, net).items()}
            other.load_state_dict(net.state_dict())
            for key, slot in optimizer_slots(resumed, other, saved).items():
                slot.copy_(saved[key])
            assert saved.keys() == optimizer_tensors(resumed, other).keys()
        net.set_gradients(step)
        optimizer.step()
        if step >= 2:
            other.set_gradients(step)
            resumed.step()
    assert torch.equal(net.matrix, other.matrix)
    assert torch.equal(net.vector, other.vector)
    assert not torch.equal(net.matrix, Net().matrix)


def test_a_state_of_other_parameters_is_refused() -> None:
    net = Net()
    with pytest.raises(CheckpointError, match=r"names 'layers\.0\.matrix', which is not trained here"):
        optimizer_slots(AdamW().build(net), net, {"layers.0.matrix/exp_avg": torch.zeros(4, 3)})
