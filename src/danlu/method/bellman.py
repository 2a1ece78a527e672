"""Bellman's equations in a finite world whose model is known: what states are worth, in closed form and by sweeps.

Under a policy, and under the best one, for every state s

    v(s) = sum_a pi(a | s) [ r(s, a) + gamma sum_s' p(s' | s, a) v(s') ]            v = r_pi + gamma P_pi v
    v(s) = max_a          [ r(s, a) + gamma sum_s' p(s' | s, a) v(s') ]            v = max_pi (r_pi + gamma P_pi v)

and v = 0 where the world has ended. Both right sides bring any two v nearer to each other by gamma in the largest
difference, so sweeps of them come to the one solution, and a sweep that changes v by at most d leaves it within
d gamma / (1 - gamma) of there.

Letters: S states, A actions, K states that may follow.

References:
    Bellman, 1957, "Dynamic programming"
    Zhao, 2025, "Mathematical foundations of reinforcement learning", chapters 2 to 4,
    https://github.com/MathFoundationRL/Book-Mathematical-Foundation-of-Reinforcement-Learning
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from danlu.acting import World
from danlu.errors import RunError

_BLOCK = 1 << 15
"""States that are swept at once: few enough that what is made of them stays in a core's own memory."""
_DENSE = 2000
"""The most states whose equations are solved as they stand."""


@dataclass(frozen=True, eq=False)
class Chain:
    """A world in which it is settled what one does: what each state brings, and what follows it.

    Attributes:
        rewards: what is expected of the next step, ``[S]``, float64; 0 in a terminal state.
        moves: the chance of each next state, ``[S, S]``; or the states that may follow, ``[K, S]`` int64.
        chances: of those that may follow, ``[K, S]``; None where each is certain (K = 1), or where `moves` is dense.
        terminal: the terminal states, by number.
        gamma: what a reward is worth a step later.
    """

    rewards: Float[Tensor, " S"]
    moves: Tensor
    chances: Float[Tensor, "K S"] | None
    terminal: Int[Tensor, " E"]
    gamma: float

    @property
    def dense(self) -> bool:
        """Whether `moves` says a chance for each pair of states."""
        return self.moves.is_floating_point()

    def sweep(self, values: Float[Tensor, " S"], out: Float[Tensor, " S"] | None = None) -> Float[Tensor, " S"]:
        """The right side of Bellman's equation, ``r + gamma P v``, into `out`, which is not `values`."""
        out = torch.empty_like(values) if out is None else out
        scaled = values * self.gamma
        if self.dense:
            torch.addmv(self.rewards, self.moves, scaled, out=out)
        else:
            spare = torch.empty(min(_BLOCK, len(out)), dtype=out.dtype)
            for first in range(0, len(out), _BLOCK):
                self.block(scaled, first, out[first : first + _BLOCK], spare)
        out[self.terminal] = 0.0
        return out

    def block(self, scaled: Float[Tensor, " S"], first: int, out: Tensor, spare: Tensor) -> None:
        """The same for as many states from `first` on as `out` has room for, given ``gamma v``; of sparse moves."""
        here, spare = slice(first, first + len(out)), spare[: len(out)]
        if self.chances is None:
            torch.index_select(scaled, 0, self.moves[0, here], out=out)
            out += self.rewards[here]
            return
        out.copy_(self.rewards[here])
        for follow, chance in zip(self.moves, self.chances, strict=True):
            torch.index_select(scaled, 0, follow[here], out=spare)
            out.addcmul_(spare, chance[here])

    def matrix(self) -> Float[Tensor, "S S"]:
        """The chance of each next state, with none after a terminal one."""
        num = len(self.rewards)
        if self.dense:
            whole = self.moves.clone()
        else:
            chances = torch.ones(1, num, dtype=torch.float64) if self.chances is None else self.chances
            whole = torch.zeros(num, num, dtype=torch.float64)
            for follow, chance in zip(self.moves, chances, strict=True):
                whole[torch.arange(num), follow] += chance
        whole[self.terminal] = 0.0
        return whole

    def solve(self) -> Float[Tensor, " S"]:
        """What each state is worth in closed form, ``v = (I - gamma P)^-1 r``.

        Raises:
            RunError: when nothing settles it: rewards without end, and gamma is 1.
        """
        system = torch.eye(len(self.rewards), dtype=torch.float64) - self.gamma * self.matrix()
        values, failed = torch.linalg.solve_ex(system, self.rewards[:, None])
        if bool(failed) or not bool(values.isfinite().all()):
            raise RunError("the values have no end", where="method.gamma", do="Let gamma be less than 1.")
        return values[:, 0]

    def settle(
        self, values: Float[Tensor, " S"], tolerance: float, longest: int = 100_000
    ) -> tuple[Float[Tensor, " S"], int]:
        """What each state is worth by sweeps from `values` on, to within `tolerance`, and how many it took.

        Raises:
            RunError: when `longest` sweeps do not bring it there.
        """
        return _settled(self.sweep, values, self.gamma, tolerance, longest)

    def values(self, tolerance: float = 1e-10, start: Float[Tensor, " S"] | None = None) -> Float[Tensor, " S"]:
        """What each state is worth: in closed form where there are few states, else by sweeps to within `tolerance`."""
        if len(self.rewards) <= _DENSE:
            return self.solve()
        return self.settle(torch.zeros_like(self.rewards) if start is None else start, tolerance)[0]

    def stationary(self) -> Float[Tensor, " S"]:
        """The share of time that one spends in each state in the long run, in a world that does not end."""
        num = len(self.rewards)
        system = torch.cat([self.matrix().T - torch.eye(num, dtype=torch.float64), torch.ones(1, num).double()])
        goal = torch.zeros(num + 1, dtype=torch.float64)
        goal[-1] = 1.0
        return torch.linalg.lstsq(system, goal[:, None], driver="gelsd").solution[:, 0]


class Bellman:
    """A world as its equations need it: one `Chain` for each action, a state's numbers side by side.

    Args:
        world: all there is to know of it.
        gamma: what a reward is worth a step later, 0 to 1.
    """

    def __init__(self, world: World, gamma: float) -> None:
        self.world, self.gamma = world, gamma
        self.terminal = torch.from_numpy(np.flatnonzero(world.terminal).astype(np.int64))
        self.chains: Sequence[Chain] = [self._chain(action) for action in range(world.num_actions)]

    def _chain(self, action: int) -> Chain:
        world = self.world
        rewards = torch.tensor(np.ascontiguousarray(world.rewards[:, action]), dtype=torch.float64)
        rewards[self.terminal] = 0.0
        if world.chances is None:
            moves = torch.tensor(np.ascontiguousarray(world.moves[:, action]), dtype=torch.float64)
            return Chain(rewards, moves, None, self.terminal, self.gamma)
        follow = torch.from_numpy(np.array(world.moves[:, action].T, dtype=np.int64, order="C"))
        chances: np.ndarray | None = np.array(world.chances[:, action].T, dtype=np.float64, order="C")
        if len(follow) == 1 and chances is not None and bool((chances == 1).all()):
            chances = None
        kept = None if chances is None else torch.from_numpy(chances)
        return Chain(rewards, follow, kept, self.terminal, self.gamma)

    def under(self, policy: Tensor) -> Chain:
        """The world under a policy: an action a state, ``[S]`` int64, or the chance of each, ``[S, A]``."""
        if not policy.is_floating_point():
            return self._doing(policy)
        rewards = torch.stack([chain.rewards for chain in self.chains], 1)
        mean = (rewards * policy).sum(1)
        if self.chains[0].dense:
            whole = sum((p[:, None] * chain.moves for p, chain in zip(policy.T, self.chains, strict=True)))
            return Chain(mean, torch.as_tensor(whole), None, self.terminal, self.gamma)
        moves = torch.cat([chain.moves for chain in self.chains])
        chances = torch.cat([p * _weights(chain) for p, chain in zip(policy.T, self.chains, strict=True)])
        return Chain(mean, moves, chances, self.terminal, self.gamma)

    def _doing(self, actions: Int[Tensor, " S"]) -> Chain:
        first = self.chains[0]
        rewards, moves = first.rewards.clone(), first.moves.clone()
        chances = None if first.dense or all(c.chances is None for c in self.chains) else _weights(first).clone()
        for number, chain in enumerate(self.chains[1:], 1):
            which = (actions == number).nonzero()[:, 0]
            rewards[which] = chain.rewards[which]
            if chain.dense:
                moves[which] = chain.moves[which]
            else:
                moves[:, which] = chain.moves[:, which]
            if chances is not None:
                chances[:, which] = _weights(chain)[:, which]
        return Chain(rewards, moves, chances, self.terminal, self.gamma)

    def action_values(self, values: Float[Tensor, " S"], out: Tensor | None = None) -> Float[Tensor, "S A"]:
        """What each action is worth when what follows is worth `values`: ``r(s, a) + gamma sum p v``."""
        out = torch.empty(len(values), len(self.chains), dtype=torch.float64) if out is None else out
        spare = torch.empty_like(values)
        for action, chain in enumerate(self.chains):
            out[:, action] = chain.sweep(values, spare)
        return out

    def sweep(self, values: Float[Tensor, " S"], out: Float[Tensor, " S"] | None = None) -> Float[Tensor, " S"]:
        """The right side of Bellman's optimality equation, into `out`, which is not `values`."""
        out = torch.empty_like(values) if out is None else out
        if self.chains[0].dense:
            torch.amax(self.action_values(values), 1, out=out)
            return out
        scaled = values * self.gamma
        each, spare = torch.empty(2, min(_BLOCK, len(out)), dtype=torch.float64).unbind()
        for first in range(0, len(out), _BLOCK):
            best = out[first : first + _BLOCK]
            self.chains[0].block(scaled, first, best, spare)
            for chain in self.chains[1:]:
                other = each[: len(best)]
                chain.block(scaled, first, other, spare)
                torch.maximum(best, other, out=best)
        out[self.terminal] = 0.0
        return out

    def settle(
        self, values: Float[Tensor, " S"], tolerance: float, longest: int = 100_000
    ) -> tuple[Float[Tensor, " S"], int]:
        """What each state is worth under the best policy, by sweeps, to within `tolerance`, and how many it took.

        Raises:
            RunError: when `longest` sweeps do not bring it there.
        """
        return _settled(self.sweep, values, self.gamma, tolerance, longest)


def change(before: Float[Tensor, " S"], after: Float[Tensor, " S"]) -> float:
    """The largest difference of two tables."""
    return max(
        float((b - a).abs_().max()) for b, a in zip(before.split(_BLOCK), after.split(_BLOCK), strict=True) if len(b)
    )


def _settled(
    sweep: Callable[[Tensor, Tensor], Tensor], values: Tensor, gamma: float, tolerance: float, longest: int
) -> tuple[Tensor, int]:
    bound = tolerance * (1 - gamma) / gamma if 0 < gamma < 1 else tolerance
    here, there = values.clone(), torch.empty_like(values)
    for number in range(1, longest + 1):
        sweep(here, there)
        if change(here, there) <= bound:
            return there, number
        here, there = there, here
    raise RunError(f"{longest} sweeps have not settled the values", where="method.gamma", do="Let gamma be smaller.")


def greedy(
    action_values: Float[Tensor, "S A"], keep: Int[Tensor, " S"] | None = None, slack: float = 0.0
) -> Int[Tensor, " S"]:
    """The best action of each state, the first of equals; or that of `keep` where it is within `slack` of the best."""
    best, actions = action_values.max(1)
    if keep is None:
        return actions
    own = action_values.gather(1, keep[:, None])[:, 0]
    return torch.where(own >= best - slack, keep, actions)


def _weights(chain: Chain) -> Float[Tensor, "K S"]:
    return torch.ones(chain.moves.shape, dtype=torch.float64) if chain.chances is None else chain.chances
