"""Steps as an agent takes them: what is kept of them, what the world is told, and going on in the middle of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from danlu.acting import Agent, Choice
from danlu.errors import UnsupportedError
from danlu.experience.source import Acted
from danlu.spaces import Spaces
from danlu.world.environments import Environments


class Wild(Agent):
    """Pushes with any strength, also where there is no such action."""

    def __init__(self, spaces: Spaces, scale: float = 5.0) -> None:
        super().__init__(spaces)
        self._scale = scale

    def act(self, observations: Tensor, chance: torch.Generator | None) -> Choice:
        drawn = (
            torch.zeros(len(observations), 1) if chance is None else torch.randn(len(observations), 1, generator=chance)
        )
        return Choice(self._scale * drawn, {"log_prob": -drawn[:, 0]})


def source(num_envs: int = 3, remembers: int = 0) -> Acted:
    environments = Environments("Pendulum-v1", num_envs, seed=1, time_limit=20)
    return Acted(environments, "Pendulum-v1", seed=1, budget=300, remembers=remembers, folder=None)


def test_steps_hold_what_was_meant_and_the_world_is_told_what_is_possible() -> None:
    acted = source()
    steps = acted.rollout(Wild(acted.spaces), 25)
    assert steps.actions.shape == (25, 3, 1)
    assert float(steps.actions.abs().max()) > 2
    torch.testing.assert_close(steps.said["log_prob"], -steps.actions[..., 0] / 5)
    first = steps.following[:-1][~steps.ended[:-1]], steps.observations[1:][~steps.ended[:-1]]
    assert torch.equal(*first)
    assert steps.truncated.sum() == 3
    assert not steps.terminated.any()
    assert (acted.env_steps, acted.epochs, acted.exhausted) == (75, 0.25, False)
    tally = acted.tally()
    assert (tally.env_steps, tally.lengths) == (75, [20] * 3)
    torch.testing.assert_close(torch.tensor(tally.returns).float(), steps.rewards[:20].sum(0), rtol=1e-5, atol=1e-4)
    assert acted.tally().env_steps == 0


def test_it_goes_on_in_the_middle_of_an_episode_to_the_bit() -> None:
    one, other = source(remembers=100), source(remembers=100)
    agent = Wild(one.spaces)
    for _ in range(3):
        one.rollout(agent, 5)
    other.load_state_dict(json.loads(json.dumps({**one.state_dict(), "remembered": 0})))
    expected, found = one.rollout(agent, 7), other.rollout(agent, 7)
    for name in ("observations", "actions", "rewards", "following", "truncated"):
        assert torch.equal(getattr(expected, name), getattr(found, name)), name


def test_how_far_it_is_cut_changes_nothing_without_chance() -> None:
    whole, parts = source(), source()
    agent = Wild(whole.spaces)
    expected = whole.rollout(agent, 12, explore=False)
    found = [parts.rollout(agent, n, explore=False).rewards for n in (5, 7)]
    assert torch.equal(expected.rewards, torch.cat(found))


def test_an_episode_is_whole_and_leaves_the_others_where_they_are() -> None:
    acted = source()
    acted.rollout(Wild(acted.spaces), 3)
    before = acted.environments.observations.copy()
    episode = acted.episode(Wild(acted.spaces), longest=15)
    assert episode.rewards.shape == (15, 1)
    assert episode.truncated[-1, 0]
    assert not episode.ended[:-1].any()
    np.testing.assert_array_equal(before, acted.environments.observations)
    again = acted.episode(Wild(acted.spaces), longest=15)
    assert not torch.equal(episode.observations, again.observations)
    assert len(acted.episode(Wild(acted.spaces), longest=100)) == 20, "the run's own limit cuts it, too"


def test_nothing_is_known_of_a_world_that_does_not_say() -> None:
    with pytest.raises(UnsupportedError, match="does not say what its actions lead to"):
        _ = source().model
    with pytest.raises(UnsupportedError, match="there is no world"):
        _ = Acted(None, seed=0, budget=None, remembers=0, folder=None).spaces
