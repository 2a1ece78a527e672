"""Bellman's equations against linear algebra, against all policies one by one, and against the book's digits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from danlu.acting import World
from danlu.errors import RunError
from danlu.method import bellman
from danlu.method.bellman import Bellman, greedy
from danlu.method.policy_iteration import PolicyIteration
from danlu.method.truncated_policy_iteration import TruncatedPolicyIteration
from danlu.method.value_iteration import ValueIteration
from experience_of import ExperienceOf, book_grid, corridor, some_world, sparse
from method.turns import taught

BOOK = np.array(
    [
        "5.8",
        "5.6",
        "6.2",
        "6.5",
        "5.8",
        "6.5",
        "7.2",
        "8.0",
        "7.2",
        "6.5",
        "7.2",
        "8.0",
        "10.",
        "8.0",
        "7.2",
        "8.0",
        "10.",
        "10.",
        "10.",
        "8.0",
        "7.2",
        "9.0",
        "10.",
        "9.0",
        "8.1",
    ],
    dtype=float,
)
"""The best values of the book's grid world, to a digit (figure 3.4)."""
WORLDS = {
    "grid": book_grid(),
    "chance": some_world(0),
    "chance that ends": some_world(1, num_states=7, ends=2),
    "corridor": corridor(),
}
FORMS = {"dense": lambda world: world, "sparse": sparse}


def by_hand(world: World, policy: np.ndarray, gamma: float) -> np.ndarray:
    """What states are worth under a policy [S, A], by numpy, from the dense model."""
    going = (~world.terminal).astype(float)
    moves = np.einsum("sa,sat->st", policy, world.moves) * going[:, None]
    rewards = (policy * world.rewards).sum(1) * going
    return np.linalg.solve(np.eye(len(rewards)) - gamma * moves, rewards)


def best_by_hand(world: World, gamma: float) -> np.ndarray:
    """What states are worth under the best of all policies, tried one by one."""
    each = np.eye(world.num_actions)
    every = itertools.product(range(world.num_actions), repeat=int((~world.terminal).sum()))
    padding = [0] * int(world.terminal.sum())
    return np.max([by_hand(world, each[[*actions, *padding]], gamma) for actions in every], axis=0)


@pytest.fixture(params=list(WORLDS))
def world(request: pytest.FixtureRequest) -> World:
    return WORLDS[request.param]


@pytest.fixture(params=list(FORMS))
def formed(request: pytest.FixtureRequest, world: World) -> World:
    return FORMS[request.param](world)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.95])
def test_a_policys_values_solve_its_equations(world: World, formed: World, gamma: float) -> None:
    chances = np.random.default_rng(3).dirichlet(np.ones(world.num_actions), world.num_states)
    oracle = by_hand(world, chances, gamma)
    chain = Bellman(formed, gamma).under(torch.from_numpy(chances))
    np.testing.assert_allclose(chain.solve(), oracle, atol=1e-11)
    np.testing.assert_allclose(chain.sweep(torch.from_numpy(oracle)), oracle, atol=1e-12)
    swept, number = chain.settle(torch.zeros(world.num_states).double(), 1e-9)
    assert np.abs(swept.numpy() - oracle).max() <= 1e-9
    assert number > 1


def test_a_policy_of_one_action_a_state_is_a_policy_of_chances(world: World, formed: World) -> None:
    actions = torch.from_numpy(np.random.default_rng(4).integers(world.num_actions, size=world.num_states))
    chain = Bellman(formed, 0.8).under(actions)
    np.testing.assert_allclose(chain.solve(), by_hand(world, np.eye(world.num_actions)[actions], 0.8), atol=1e-11)
    np.testing.assert_allclose(
        chain.sweep(torch.ones(world.num_states).double()),
        Bellman(formed, 0.8).action_values(torch.ones(world.num_states).double()).gather(1, actions[:, None])[:, 0],
    )


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("name", ["chance", "chance that ends", "corridor"])
def test_the_best_values_are_those_of_the_best_of_all_policies(name: str, form: str) -> None:
    world = WORLDS[name]
    equations = Bellman(FORMS[form](world), 0.9)
    found, _ = equations.settle(torch.zeros(world.num_states).double(), 1e-9)
    oracle = best_by_hand(world, 0.9)
    assert np.abs(found.numpy() - oracle).max() <= 1e-9
    actions = greedy(equations.action_values(found))
    np.testing.assert_allclose(equations.under(actions).solve(), oracle, atol=1e-9)


@pytest.mark.parametrize("form", list(FORMS))
def test_the_books_grid_world(form: str) -> None:
    best, _ = Bellman(FORMS[form](book_grid()), 0.9).settle(torch.zeros(25).double(), 1e-9)
    assert np.abs(best.numpy() - BOOK).max() <= 0.05 + 1e-9
    harder, _ = Bellman(FORMS[form](book_grid(forbidden=-10)), 0.9).settle(torch.zeros(25).double(), 1e-9)
    assert np.abs(harder.numpy()[:5] - [3.5, 3.9, 4.3, 4.8, 5.3]).max() <= 0.05 + 1e-9


@pytest.mark.parametrize(("scale", "shift"), [(2.0, 0.0), (1.0, 3.0), (0.5, -4.0)])
def test_rewards_that_are_scaled_and_shifted_change_no_policy(scale: float, shift: float) -> None:
    plain, moved = Bellman(book_grid(), 0.9), Bellman(book_grid(scale=scale, shift=shift), 0.9)
    v, _ = plain.settle(torch.zeros(25).double(), 1e-11)
    w, _ = moved.settle(torch.zeros(25).double(), 1e-11)
    np.testing.assert_allclose(w, scale * v + shift / (1 - 0.9), atol=1e-9)
    near = [q >= q.amax(1, keepdim=True) - 1e-8 for q in (plain.action_values(v), moved.action_values(w))]
    assert torch.equal(*near)


def test_blocks_of_states_are_seams_that_do_not_show(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.from_numpy(np.random.default_rng(5).normal(size=world.num_states))
    whole = Bellman(world, 0.9).sweep(values)
    monkeypatch.setattr(bellman, "_BLOCK", 2)
    equations = Bellman(sparse(world), 0.9)
    np.testing.assert_allclose(equations.sweep(values), whole, atol=1e-12)
    np.testing.assert_allclose(equations.action_values(values).amax(1), whole, atol=1e-12)
    assert bellman.change(values, values - torch.linspace(0, 1, len(values)).double()) == pytest.approx(1.0)


def test_without_discount_a_world_must_end() -> None:
    right = torch.ones(5).long()
    assert Bellman(corridor(), 1.0).under(right).solve().tolist() == [-4, -3, -2, -1, 0]
    assert Bellman(corridor(), 1.0).settle(torch.zeros(5).double(), 1e-9)[0].tolist() == [-4, -3, -2, -1, 0]
    with pytest.raises(RunError, match="gamma"):
        Bellman(corridor(), 1.0).under(torch.zeros(5).long()).solve()
    with pytest.raises(RunError, match="gamma"):
        Bellman(corridor(), 1.0).under(torch.zeros(5).long()).settle(torch.zeros(5).double(), 1e-9, longest=100)


def test_shares_of_time_are_those_of_the_long_run() -> None:
    world = some_world(6)
    policy = np.full((6, 3), 1 / 3)
    shares = Bellman(world, 0.9).under(torch.from_numpy(policy)).stationary().numpy()
    moves = np.einsum("sa,sat->st", policy, world.moves)
    np.testing.assert_allclose(shares, np.linalg.matrix_power(moves, 10_000)[0], atol=1e-10)


def test_sweeps_of_value_iteration_come_nearer_by_gamma() -> None:
    best, _ = Bellman(book_grid(), 0.9).settle(torch.zeros(25).double(), 1e-12)
    for turns in (1, 5, 20):
        agent, told = taught(ValueIteration(), ExperienceOf(book_grid()), turns)
        assert float((agent.v - best).abs().max()) <= 0.9**turns * float(best.abs().max()) + 1e-9
        assert float((agent.v - best).abs().max()) <= told[-1]["loss"] / (1 - 0.9) + 1e-9
    several, _ = taught(ValueIteration(sweeps=5), ExperienceOf(book_grid()), 4)
    assert torch.equal(several.v, agent.v)


@pytest.mark.parametrize("evaluation", ["auto", "closed", "sweeps"])
def test_policy_iteration_never_gets_worse_and_ends_at_the_best(world: World, evaluation: str) -> None:
    best, _ = Bellman(world, 0.9).settle(torch.zeros(world.num_states).double(), 1e-12)
    before = None
    for turns in range(1, 12):
        agent, told = taught(PolicyIteration(evaluation=evaluation), ExperienceOf(world), turns)
        assert before is None or bool((agent.v >= before - 1e-8).all())
        before = agent.v.clone()
    np.testing.assert_allclose(agent.v.detach(), best, atol=1e-8)
    assert told[-1]["changed"] == 0.0
    assert told[0]["changed"] > 0.0
    assert told[-1]["loss"] < 1e-8 < told[0]["loss"]
    assert agent.act(torch.arange(world.num_states), None).actions.tolist() == agent.policy.tolist()


def test_truncated_policy_iteration_is_value_iteration_or_policy_iteration(world: World) -> None:
    one, _ = taught(TruncatedPolicyIteration(sweeps=1), ExperienceOf(world), 7)
    by_values, _ = taught(ValueIteration(), ExperienceOf(world), 7)
    np.testing.assert_allclose(one.v.detach(), by_values.v.detach(), atol=1e-8)
    many, _ = taught(TruncatedPolicyIteration(sweeps=400), ExperienceOf(world), 3)
    by_policies = PolicyIteration().agent(ExperienceOf(world).spaces, None, 0)
    equations = Bellman(world, 0.9)
    for _ in range(3):
        by_policies.policy.copy_(greedy(equations.action_values(by_policies.v), by_policies.policy, 1e-10))
        by_policies.v.copy_(equations.under(by_policies.policy).solve())
    np.testing.assert_allclose(many.v.detach(), by_policies.v.detach(), atol=1e-8)


def test_what_is_planned_needs_the_model() -> None:
    with pytest.raises(Exception, match="nobody knows"):
        taught(ValueIteration(), ExperienceOf(corridor(), known=False), 1)


def test_what_is_as_good_as_the_best_is_kept() -> None:
    q = torch.tensor([[1.0, 1.0 + 1e-12, 0.0], [1.0, 2.0, 2.0], [3.0, 0.0, 0.0]], dtype=torch.float64)
    assert greedy(q).tolist() == [1, 1, 0]
    assert greedy(q, torch.tensor([0, 2, 1]), 1e-10).tolist() == [0, 2, 0]
