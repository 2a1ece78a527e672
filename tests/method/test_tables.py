"""Learning from experience in finite worlds, against the equations' solutions."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from danlu.acting import Agent, Steps, World
from danlu.errors import UnsupportedError
from danlu.method.bellman import Bellman
from danlu.method.expected_sarsa import ExpectedSarsa
from danlu.method.exploring import Exploring, epsilon_greedy
from danlu.method.monte_carlo import Outcomes
from danlu.method.monte_carlo_basic import MonteCarloBasic
from danlu.method.monte_carlo_epsilon_greedy import MonteCarloEpsilonGreedy
from danlu.method.monte_carlo_exploring_starts import MonteCarloExploringStarts
from danlu.method.n_step_sarsa import NStepSarsa
from danlu.method.policy_iteration import PolicyIteration
from danlu.method.q_learning import QLearning
from danlu.method.sarsa import Sarsa
from danlu.method.step_size import StepSize
from danlu.method.tables import ActionTable
from danlu.method.td0 import TD0
from danlu.method.temporal import Learning
from experience_of import ExperienceOf, book_grid, corridor, some_world, steps_from
from method.turns import taught, turn

HARMONIC = StepSize(kind="harmonic")
SETTLING = StepSize(kind="polynomial", start=1.0, power=0.7)
TABLES = [Sarsa, NStepSarsa, ExpectedSarsa, QLearning]


def best(world: World, gamma: float = 0.9) -> torch.Tensor:
    """What actions are worth under the best policy."""
    equations = Bellman(world, gamma)
    return equations.action_values(equations.settle(torch.zeros(world.num_states).double(), 1e-12)[0])


def steady(epsilon: float) -> Exploring:
    """The same all along."""
    return Exploring(start=epsilon, end=None)


def best_exploring(world: World, epsilon: float, gamma: float = 0.9) -> torch.Tensor:
    """What actions are worth under an epsilon-greedy policy that is so in these values: sweeps of the expectation."""
    q, going = np.zeros(world.rewards.shape), ~world.terminal[:, None]
    for _ in range(2000):
        worth = (epsilon_greedy(q, epsilon) * q).sum(-1)
        q = (world.rewards + gamma * world.moves @ worth) * going
    return torch.from_numpy(q)


@dataclass
class Watched(ExperienceOf):
    """Experience that keeps what went through it, and the agent's table as it acted."""

    seen: list[Steps] = field(default_factory=list)
    tables: list[torch.Tensor] = field(default_factory=list)

    def rollout(self, agent: Agent, steps: int, *, explore: bool = True) -> Steps:
        assert isinstance(agent, ActionTable)
        self.tables.append(agent.q.detach().clone())
        self.seen.append(super().rollout(agent, steps, explore=explore))
        return self.seen[-1]


def test_td0_comes_to_the_uniform_policys_values() -> None:
    world = some_world(2)
    oracle = Bellman(world, 0.7).under(torch.full((6, 3), 1 / 3).double()).solve()
    agent, told = taught(TD0(gamma=0.7, step_size=SETTLING, steps=5000), ExperienceOf(world, seed=1), 8)
    np.testing.assert_allclose(agent.v.detach(), oracle, atol=0.05)
    assert int(agent.visits.sum()) == 40_000
    assert told[-1]["step_size"] < told[0]["step_size"]


def test_td0_values_the_policy_it_is_given() -> None:
    agent, _ = taught(
        TD0(policy=(1,) * 5, gamma=1.0, steps=500, step_size=StepSize(start=0.5)), ExperienceOf(corridor()), 1
    )
    np.testing.assert_allclose(agent.v.detach(), [-4, -3, -2, -1, 0], atol=1e-6)
    chances = TD0(policy=(0, 1, 1, 0, 1), epsilon=0.2).agent(ExperienceOf(corridor()).spaces, None, 0).policy
    assert chances[:2].tolist() == [[0.9, 0.1], [0.1, 0.9]]
    with pytest.raises(UnsupportedError, match="5 states"):
        TD0(policy=(1,) * 4).agent(ExperienceOf(corridor()).spaces, None, 0)


@pytest.mark.parametrize("behaviour", ["epsilon_greedy", "uniform"])
def test_q_learning_finds_the_best_values_where_nothing_is_random(behaviour: str) -> None:
    method = QLearning(behaviour=behaviour, epsilon=steady(0.5), step_size=StepSize(start=0.9), steps=1000)
    agent, told = taught(method, ExperienceOf(book_grid(), num_envs=8, limit=50), 6)
    np.testing.assert_allclose(agent.q.detach(), best(book_grid()), atol=1e-3)
    assert told[0]["epsilon"] == (1.0 if behaviour == "uniform" else 0.5)
    assert told[-1]["loss"] < 1e-4 < told[0]["loss"]


def test_q_learning_finds_the_best_values_of_a_world_of_chance() -> None:
    world = some_world(3)
    method = QLearning(gamma=0.6, behaviour="uniform", step_size=SETTLING, steps=10_000)
    agent, _ = taught(method, ExperienceOf(world), 5)
    np.testing.assert_allclose(agent.q.detach(), best(world, 0.6), atol=0.1)


def test_expected_sarsa_finds_the_values_of_the_policy_it_follows() -> None:
    method = ExpectedSarsa(gamma=0.7, epsilon=steady(0.5), step_size=StepSize(start=0.9), steps=1000)
    agent, _ = taught(method, ExperienceOf(book_grid(), num_envs=8, limit=20), 5)
    np.testing.assert_allclose(agent.q.detach(), best_exploring(book_grid(), 0.5, 0.7), atol=1e-3)


@pytest.mark.parametrize("method", [Sarsa(), NStepSarsa(n=3)], ids=["sarsa", "n-step"])
def test_sarsa_finds_the_values_of_the_policy_it_follows(method: Sarsa | NStepSarsa) -> None:
    world = corridor()
    method = method.model_copy(update={"epsilon": steady(0.3), "step_size": SETTLING, "steps": 1000})
    agent, _ = taught(method, ExperienceOf(world, num_envs=2), 6)
    oracle = best_exploring(world, 0.3)
    np.testing.assert_allclose(agent.q.detach(), oracle, atol=0.25)
    assert agent.q[:4].argmax(1).tolist() == [1, 1, 1, 1]
    assert agent.q[4].tolist() == [0.0, 0.0], "nothing is to be had behind the end"


def test_one_step_sarsa_is_sarsa_to_the_bit() -> None:
    fields = {"epsilon": Exploring(start=0.4, end=0.1), "steps": 60, "step_size": SETTLING}
    for world, limit in ((some_world(4, ends=1), None), (book_grid(), 7)):
        one, told_one = taught(NStepSarsa(n=1, **fields), ExperienceOf(world, num_envs=3, limit=limit), 5)
        plain, told = taught(Sarsa(**fields), ExperienceOf(world, num_envs=3, limit=limit), 5)
        assert torch.equal(one.q, plain.q)
        assert torch.equal(one.visits, plain.visits)
        assert told_one == told
        assert int(plain.visits.sum()) == 5 * 60 * 3


def test_sarsas_goal_is_what_was_done_next() -> None:
    experience = Watched(some_world(5), seed=3)
    agent, _ = taught(Sarsa(epsilon=steady(0.5), step_size=StepSize(start=0.3), steps=40), experience, 1)
    q = torch.zeros(6, 3).double()
    for before, after in zip(experience.seen, experience.seen[1:], strict=False):
        s, a, s2, a2 = (int(x[0, 0]) for x in (before.observations, before.actions, before.following, after.actions))
        q[s, a] += 0.3 * (float(before.rewards) + 0.9 * q[s2, a2] - q[s, a])
    last = experience.seen[-1]
    place = int(last.observations), int(last.actions)
    agent.q[place], q[place] = 0.0, 0.0
    np.testing.assert_allclose(agent.q.detach(), q, atol=1e-12)


def test_n_step_sarsa_with_n_without_end_learns_from_returns() -> None:
    experience = Watched(corridor(), seed=2)
    method = NStepSarsa(n=10_000, epsilon=steady(1.0), step_size=StepSize(start=0.2), steps=400, gamma=0.8)
    agent, _ = taught(method, experience, 1)
    places = [(int(s.observations), int(s.actions)) for s in experience.seen]
    ends = [t for t, s in enumerate(experience.seen) if bool(s.terminated)]
    q, begin = torch.zeros(5, 2).double(), 0
    for end in ends:
        for t in range(begin, end + 1):
            q[places[t]] += 0.2 * (-sum(0.8**i for i in range(end + 1 - t)) - q[places[t]])
        begin = end + 1
    left = {places[t] for t in range(begin, len(places))}
    kept = [place for place in np.ndindex(5, 2) if place not in left]
    assert len(ends) > 5
    assert len(kept) > 2
    for place in kept:
        assert float(agent.q[place]) == pytest.approx(float(q[place]), abs=1e-12)


@pytest.mark.parametrize("method", [Sarsa, ExpectedSarsa, QLearning, NStepSarsa])
def test_it_acts_by_the_table_as_it_stands(method: type) -> None:
    experience = Watched(book_grid(), num_envs=2)
    taught(method(epsilon=Exploring(start=0.0), steps=30), experience, 2)
    for table, seen in zip(experience.tables, experience.seen, strict=True):
        assert seen.actions[0].tolist() == table[seen.observations[0]].argmax(1).tolist()
    assert len({tuple(table.flatten().tolist()) for table in experience.tables}) > 5, "it moves from step to step"


def test_expected_sarsa_that_does_not_explore_is_q_learning() -> None:
    fields = {"epsilon": Exploring(start=0.0), "initial": 1.0}
    expected, _ = taught(ExpectedSarsa(**fields), ExperienceOf(some_world(6)), 3)
    greedy, _ = taught(QLearning(**fields), ExperienceOf(some_world(6)), 3)
    assert torch.equal(expected.q, greedy.q)
    assert not torch.equal(greedy.q, torch.ones_like(greedy.q))


def test_an_epsilon_greedy_table_does_what_its_policy_says() -> None:
    agent = ActionTable(ExperienceOf(some_world(7)).spaces, epsilon=0.3)
    agent.q.copy_(torch.from_numpy(np.random.default_rng(0).normal(size=(6, 3))))
    chance = torch.Generator().manual_seed(0)
    taken = agent.act(torch.full((60_000,), 2), chance).actions
    seen = torch.bincount(taken, minlength=3).double() / len(taken)
    oracle = epsilon_greedy(agent.q.numpy(), 0.3)[2]
    assert sorted(oracle.round(12)) == pytest.approx([0.1, 0.1, 0.8])
    np.testing.assert_allclose(seen, oracle, atol=0.01)
    assert set(agent.act(torch.full((50,), 2), None).actions.tolist()) == {int(agent.q[2].argmax())}


def test_exploring_follows_its_line() -> None:
    line = Exploring(start=1.0, end=0.2, over=0.5)
    assert [line.at(share) for share in (0, 0.25, 0.5, 1.0)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert [Exploring(start=0.3, end=end).at(0.9) for end in (None, 0.4, 0.3, 0.1)] == [0.3, 0.3, 0.3, 0.1]
    assert Exploring(start=0.0).at(1.0) == 0.0


def test_monte_carlo_basic_is_policy_iteration_without_the_model() -> None:
    world, gamma = book_grid(), 0.5
    agent, told = taught(MonteCarloBasic(gamma=gamma, longest=30), ExperienceOf(world, known=False), 10)
    np.testing.assert_allclose(agent.q.detach(), best(world, gamma), atol=1e-6)
    planned, _ = taught(PolicyIteration(gamma=gamma), ExperienceOf(world), 10)
    np.testing.assert_allclose(agent.q.amax(1).detach(), planned.v.detach(), atol=1e-6)
    assert told[-1]["length"] == 30


@pytest.mark.parametrize("visits", ["every", "first"])
def test_exploring_starts_find_the_way(visits: str) -> None:
    method = MonteCarloExploringStarts(
        gamma=0.9, longest=50, episodes=20, visits=visits, step_size=StepSize(start=0.2), initial=-10.0, unfinished=40
    )
    agent, _ = taught(method, ExperienceOf(corridor()), 15)
    np.testing.assert_allclose(agent.q.detach()[:4], best(corridor())[:4], atol=0.1)


def test_an_epsilon_greedy_policy_needs_no_exploring_starts() -> None:
    world, method = (
        corridor(4),
        MonteCarloEpsilonGreedy(
            epsilon=steady(0.3), longest=200, episodes=60, step_size=StepSize(kind="polynomial", start=1.0)
        ),
    )
    agent, told = taught(method, ExperienceOf(world, begins=(0,)), 10)
    np.testing.assert_allclose(agent.q.detach()[:3], best_exploring(world, 0.3)[:3], atol=0.5)
    assert agent.q[:3].argmax(1).tolist() == [1, 1, 1]
    assert told[-1]["return"] == pytest.approx(
        float((best_exploring(world, 0.3)[0] * torch.tensor([0.15, 0.85])).sum()), abs=0.4
    )


def test_harmonic_steps_make_a_table_of_means() -> None:
    experience = ExperienceOf(some_world(8, ends=1), seed=4)
    method = MonteCarloEpsilonGreedy(
        epsilon=steady(1.0), gamma=1.0, longest=500, episodes=1, visits="every", step_size=HARMONIC
    )
    agent, _ = taught(method, experience, 3)
    again, found = ExperienceOf(some_world(8, ends=1), seed=4), {}
    agent_again = method.agent(again.spaces, None, 0)
    for _ in range(3):
        steps = again.episode(agent_again, longest=500)
        after = torch.flip(torch.flip(steps.rewards[:, 0], [0]).cumsum(0), [0])
        for s, a, g in zip(
            steps.observations[:, 0].tolist(), steps.actions[:, 0].tolist(), after.tolist(), strict=True
        ):
            found.setdefault((s, a), []).append(g)
    assert sum(map(len, found.values())) > 10
    for place in np.ndindex(6, 3):
        assert float(agent.q[place]) == pytest.approx(np.mean(found.get(place, [0.0])), abs=1e-10)
        assert int(agent.visits[place]) == len(found.get(place, []))


def test_an_unfinished_episodes_last_steps_are_left_out() -> None:
    experience = ExperienceOf(book_grid())
    method = MonteCarloEpsilonGreedy(longest=30, unfinished=10, episodes=1, visits="every")
    agent, _ = taught(method, experience, 1)
    assert int(agent.visits.sum()) == 20


@pytest.mark.parametrize("method", TABLES)
def test_turns_go_on_from_what_a_table_holds(method: type) -> None:
    made = method(step_size=SETTLING)
    experience = ExperienceOf(some_world(9))
    agent, _ = taught(made, experience, 2)
    copied = made.agent(experience.spaces, None, 1)
    copied.load_state_dict(agent.state_dict())
    one, other = ExperienceOf(some_world(9), seed=5), ExperienceOf(some_world(9), seed=5)
    assert dict(made.learn(agent, one, turn(2, 3))) == dict(made.learn(copied, other, turn(2, 3)))
    assert torch.equal(agent.q, copied.q)


@pytest.mark.parametrize("method", TABLES)
def test_nothing_is_to_be_had_behind_the_end_whatever_is_thought_of_it(method: type) -> None:
    """The end's own entries keep what they began with, which no other entry hears of."""
    fields = {"epsilon": steady(0.5), "step_size": StepSize(start=0.5), "steps": 300}
    agent, _ = taught(method(initial=5.0, **fields), ExperienceOf(corridor()), 1)
    assert agent.q[4].tolist() == [5.0, 5.0]
    assert float(agent.q[3, 1]) == pytest.approx(-1.0, abs=1e-6)


def test_an_action_that_is_not_taken_is_drawn_from_the_policy() -> None:
    """Where each turn is a step, Sarsa's next action is always drawn."""
    world = corridor(4)
    method = Sarsa(epsilon=steady(0.6), step_size=SETTLING, steps=1)
    agent, _ = taught(method, ExperienceOf(world, num_envs=8), 1000)
    oracle = best_exploring(world, 0.6)
    np.testing.assert_allclose(agent.q.detach(), oracle, atol=0.25)
    assert float((oracle - best(world)).abs().max()) > 0.5, "what it is not to find is far"


@pytest.mark.parametrize("limit", [1, 6])
def test_an_episode_that_was_cut_would_have_gone_on(limit: int) -> None:
    world, stay = book_grid(), (4,) * 25
    oracle = Bellman(world, 0.5).under(torch.tensor(stay)).solve()
    method = TD0(policy=stay, gamma=0.5, step_size=StepSize(start=0.9), steps=3000)
    agent, _ = taught(method, ExperienceOf(world, limit=limit), 1)
    np.testing.assert_allclose(agent.v.detach(), oracle, atol=1e-6)


def test_first_and_every_visit() -> None:
    """State 0 is met at once and two steps later; from there on 1 + 2 + 4 and 4 come."""
    steps = steps_from(
        [([s], [0], [r], [t], [False], [n]) for s, r, t, n in ((0, 1, False, 1), (1, 2, False, 0), (0, 4, True, 2))]
    )
    for visits, first in (("every", (7 + 4) / 2), ("first", 7.0)):
        method = MonteCarloEpsilonGreedy(gamma=1.0, visits=visits, step_size=HARMONIC)
        agent = method.agent(ExperienceOf(some_world(0, num_states=3)).spaces, None, 0)
        method.take(agent, steps, Outcomes(Learning(agent.q.numpy(), agent.visits.numpy(), method.way)))
        assert agent.q[:, 0].tolist() == [first, 6.0, 0.0]
