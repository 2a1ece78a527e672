"""Log-probabilities, entropies and divergences against `torch.distributions`, and draws against both."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary
from torch import distributions as d

from danlu.errors import UnsupportedError
from danlu.parts.distributions import Categorical, DiagonalGaussian, Family, family_of

B, A = 11, 3
NONE = torch.zeros(0, dtype=torch.float64)


def numbers(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return (
        2 * torch.randn(B, A, generator=chance, dtype=torch.float64),
        0.5 * torch.randn(A, generator=chance, dtype=torch.float64),
    )


def test_a_choice_is_torchs() -> None:
    (z, _), (other, _) = numbers(0), numbers(1)
    ours, theirs, others = Categorical(A), d.Categorical(logits=z), d.Categorical(logits=other)
    actions = theirs.sample()
    torch.testing.assert_close(ours.log_prob(z, NONE, actions), theirs.log_prob(actions))
    torch.testing.assert_close(Categorical(A, 5).log_prob(z, NONE, actions + 5), theirs.log_prob(actions))
    torch.testing.assert_close(ours.entropy(z, NONE), theirs.entropy())
    torch.testing.assert_close(ours.kl(z, NONE, other, NONE), d.kl_divergence(theirs, others))


def test_numbers_are_torchs() -> None:
    (m, s), (other, wide) = numbers(0), numbers(1)
    theirs = d.Independent(d.Normal(m, s.exp().expand_as(m)), 1)
    others = d.Independent(d.Normal(other, wide.exp().expand_as(m)), 1)
    ours, actions = DiagonalGaussian(A), theirs.sample()
    torch.testing.assert_close(ours.log_prob(m, s, actions), theirs.log_prob(actions))
    torch.testing.assert_close(ours.entropy(m, s), theirs.entropy())
    torch.testing.assert_close(ours.kl(m, s, other, wide), d.kl_divergence(theirs, others))


@pytest.mark.parametrize(
    "family", [Categorical(A), Categorical(A, 4), DiagonalGaussian(A)], ids=["choice", "from 4", "numbers"]
)
def test_a_draw_says_how_likely_it_was(family: Family) -> None:
    z, s = numbers(2)
    own = s if family.own else NONE
    for chance in (None, torch.Generator().manual_seed(0)):
        actions, log_prob = family.draw(z.numpy(), own.numpy(), chance)
        expected = family.log_prob(z, own, torch.from_numpy(actions))
        torch.testing.assert_close(torch.from_numpy(log_prob), expected)
        if chance is None:
            assert (
                expected
                >= family.log_prob(z, own, torch.from_numpy(family.draw(z.numpy(), own.numpy(), torch.Generator())[0]))
            ).all()


def test_draws_come_as_often_as_they_should() -> None:
    n, z = 40_000, numbers(3)[0][0]
    chance = torch.Generator().manual_seed(0)
    actions, _ = Categorical(A).draw(np.tile(z.numpy(), (n, 1)), NONE.numpy(), chance)
    often, p = np.bincount(actions, minlength=A) / n, z.softmax(0).numpy()
    assert (abs(often - p) < 5 * np.sqrt(p * (1 - p) / n)).all()
    mean, own = numbers(4)[0][:1], numbers(4)[1]
    drawn, _ = DiagonalGaussian(A).draw(mean.expand(n, A).numpy(), own.numpy(), chance)
    std = own.exp().numpy()
    assert (abs(drawn.mean(0) - mean[0].numpy()) < 5 * std / np.sqrt(n)).all()
    assert (abs(drawn.std(0) / std - 1) < 5 / np.sqrt(2 * n)).all()


def test_a_family_for_each_space() -> None:
    assert isinstance(family_of(Discrete(3, start=2)), Categorical)
    assert family_of(Box(-1, 1, (4,))).outputs == 4
    with pytest.raises(UnsupportedError, match="MultiBinary"):
        family_of(MultiBinary(3))
