from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from danlu.engine.guards.weights import Motion, same_weights, trainable
from danlu.engine.ranks import ALONE, Ranks
from danlu.errors import RunError, UnsupportedError

from .threads import Threads


class Net(nn.Module):
    """Layers, one of which nothing depends on, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.idle = nn.Linear(3, 3, bias=False)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.last = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.frozen(self.first(x)).tanh())


def test_a_model_with_nothing_to_train_is_refused() -> None:
    net = Net()
    assert trainable(net) == 4 * 3 + 3 + 9 + 3 + 1
    with pytest.raises(UnsupportedError, match=r"nothing would be trained: all 7 parameters of the model are frozen"):
        trainable(net.requires_grad_(False))


def trained(net: Net, updates: int, *, lr: float = 0.1, after: int = 3, ranks: Ranks = ALONE) -> list[str | None]:
    motion = Motion(net, after=after, ranks=ranks)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr)
    told = []
    for step in range(updates):
        optimizer.zero_grad()
        net(torch.randn(5, 4, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        optimizer.step()
        told.append(motion.note())
    return told


def test_what_does_not_move_is_named_once() -> None:
    sentence = (
        "trained parameters that have not moved after 3 updates: "
        "no gradient comes to idle.weight, so the loss does not depend on it"
    )
    assert trained(Net(), 5) == [None, None, sentence, None, None]
    net = Net()
    net.idle.requires_grad_(False)
    assert trained(net, 5) == [None] * 5


def test_what_gets_a_gradient_and_does_not_move_is_told_apart() -> None:
    net = Net()
    with torch.no_grad():
        net.last.weight.fill_(1e6)
    (told,) = trained(net, 1, lr=1e-12, after=1)
    assert told is not None
    assert "a gradient comes to last.weight" in told
    assert "and its update is lost in rounding or not applied" in told
    assert "no gradient comes to idle.weight" in told


def test_a_parameter_has_moved_when_it_has_on_any_rank() -> None:
    """Each rank holds a part of it, and the part of some ranks is empty or has stayed."""

    def work(ranks: Ranks) -> str | None:
        part = nn.Module()
        part.all_stay = nn.Parameter(torch.ones(2))
        part.one_moves = nn.Parameter(torch.ones(3 if ranks.rank else 0))
        part.one_is_pulled = nn.Parameter(torch.ones(2))
        motion = Motion(part, after=1, ranks=ranks)
        if ranks.rank == 2:
            part.one_moves.data[1] += 1
            part.one_is_pulled.grad = torch.tensor([0.0, 1.0])
        return motion.note()

    told = Threads.run(3, work)
    assert told == [told[0]] * 3
    assert told[0] == (
        "trained parameters that have not moved after 1 updates: "
        "no gradient comes to all_stay, so the loss does not depend on it; "
        "a gradient comes to one_is_pulled, and its update is lost in rounding or not applied"
    )


@pytest.mark.parametrize(("size", "changed", "named"), [(2, {1}, "1"), (4, {2}, "2"), (5, {0, 3}, "0, 3")])
def test_ranks_that_hold_other_weights_are_named(size: int, changed: set[int], named: str) -> None:
    torch.manual_seed(0)
    net = Net()

    def work(ranks: Ranks) -> None:
        mine = deepcopy(net)
        same_weights(mine, ranks)
        if ranks.rank in changed:
            mine.frozen.bias.data.view(torch.int32)[1] ^= 1
            mine.last.weight.data[0, 1] += 1
        same_weights(mine, ranks)

    told = Threads.run(size, work)
    assert all(isinstance(each, RunError) for each in told)
    assert {each.what for each in told} == {
        f"the ranks no longer hold the same weights: 'frozen.bias' differs on rank {named}"
    }


def test_ranks_that_hold_the_same_go_on() -> None:
    torch.manual_seed(0)
    net = Net()
    assert Threads.run(3, lambda ranks: same_weights(deepcopy(net), ranks)) == [None] * 3
    same_weights(net, ALONE)
