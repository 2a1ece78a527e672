"""Advantages against their definition, an infinite sum that ends where episodes do; and by hand where they are cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from danlu.acting import Agent, Choice, Steps
from danlu.method.advantages import advantages_of, standardised, values_following
from danlu.spaces import Spaces


def by_definition(rewards, values, following, terminated, truncated, gamma, lam):  # type: ignore[no-untyped-def]
    """A_t = sum_l (gamma lambda)^l delta_{t+l}, up to the end of the episode."""
    total = np.zeros_like(values)
    for t, n in np.ndindex(values.shape):
        for far, u in enumerate(range(t, len(values))):
            after = 0.0 if terminated[u, n] else following[u, n]
            total[t, n] += (gamma * lam) ** far * (rewards[u, n] + gamma * after - values[u, n])
            if terminated[u, n] or truncated[u, n]:
                break
    return total


@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
def test_they_are_their_definition(lam: float) -> None:
    chance = np.random.default_rng(0)
    rewards, values, following = chance.normal(size=(3, 40, 5))
    terminated, truncated = chance.random((2, 40, 5)) < 0.1
    assert (terminated & truncated).any()
    given = (rewards, values, following, terminated, truncated)
    ours = advantages_of(*given, gamma=0.97, lam=lam)
    np.testing.assert_allclose(ours, by_definition(*given, 0.97, lam), rtol=1e-12, atol=1e-12)


def test_an_episode_that_is_cut_goes_on_and_one_that_ends_does_not() -> None:
    rewards, values = np.array([[1.0], [2.0]]), np.array([[10.0], [20.0]])
    following, no, yes = np.array([[5.0], [7.0]]), [[False], [False]], [[True], [False]]

    def first(terminated, truncated):  # type: ignore[no-untyped-def]
        return advantages_of(rewards, values, following, np.array(terminated), np.array(truncated), gamma=0.5, lam=0.5)[
            0, 0
        ]

    last = 2 + 0.5 * 7 - 20
    assert first(no, no) == 1 + 0.5 * 5 - 10 + 0.25 * last
    assert first(no, yes) == 1 + 0.5 * 5 - 10
    assert first(yes, no) == first(yes, yes) == 1 - 10


class Tells(Agent):
    """Values an observation at itself, and remembers which it was asked about."""

    def __init__(self) -> None:
        super().__init__(Spaces(Box(-np.inf, np.inf, (1,)), Discrete(2)))
        self.asked: list[float] = []

    def act(self, observations: torch.Tensor, chance: torch.Generator | None) -> Choice:
        raise NotImplementedError

    def values(self, observations: torch.Tensor) -> torch.Tensor:
        self.asked += observations[:, 0].tolist()
        return observations[:, 0]


def test_values_of_what_followed_are_asked_only_where_no_step_began_from_it() -> None:
    observations = torch.tensor([[1.0, 11.0], [2.0, 12.0], [100.0, 13.0], [101.0, 200.0]])[..., None]
    following = torch.tensor([[2.0, 12.0], [3.0, 13.0], [101.0, 14.0], [102.0, 201.0]])[..., None]
    terminated = torch.tensor([[False, False], [False, False], [False, True], [False, True]])
    truncated = torch.tensor([[False, False], [True, False], [False, False], [False, False]])
    steps = Steps(observations, torch.zeros(4, 2), torch.zeros(4, 2), terminated, truncated, following)
    agent = Tells()
    found = values_following(agent, steps, observations[..., 0].numpy())
    assert agent.asked == [3.0, 102.0]
    lives = ~terminated.numpy()
    assert (found[lives] == following[..., 0].numpy()[lives]).all()


def test_standardised() -> None:
    z = standardised(torch.tensor([1.0, 2.0, 6.0]))
    assert abs(float(z.mean())) < 1e-6
    assert abs(float(z.std()) - 1) < 1e-6
    assert torch.equal(standardised(torch.tensor([3.0])), torch.tensor([3.0]))
