"""What the methods share whose values are weighed features of a state: their agents."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from danlu.acting import Agent, Choice
from danlu.errors import UnsupportedError
from danlu.method.features import FeatureMap, Features
from danlu.method.step_size import StepSize
from danlu.method.tables import drawn, explored, table
from danlu.spaces import Spaces, in_words


class LinearAgent(Agent):
    """What agents know whose values are linear in features.

    Args:
        spaces: of the environments.
        features: which.

    Attributes:
        features: the map from observations to them.
        num_actions: A.
    """

    def __init__(self, spaces: Spaces, features: Features) -> None:
        super().__init__(spaces)
        self.features = FeatureMap(features, spaces.observation)
        if spaces.num_actions is None:
            raise UnsupportedError(f"there is no end of actions in {in_words(spaces.action)}", where="data.env")
        self.num_actions = spaces.num_actions
        action: Any = spaces.action
        self.first_action = int(action.start)

    def seen(self, observations: Tensor) -> np.ndarray:
        """The features of observations, ``[N, F]`` float64."""
        return self.features(observations.cpu().numpy())

    def columns(self, actions: Tensor) -> np.ndarray:
        """The actions, counted from 0."""
        return actions.cpu().numpy() - self.first_action


class Weighing:
    """Weights that are learnt, and what a turn's updates come to.

    Args:
        w: the weights, ``[F]`` or ``[F, A]``, moved in place.
        k: steps learnt from before.
        size: how far they move at the k-th step.

    Attributes:
        squares: the turn's errors', summed.
    """

    def __init__(self, w: np.ndarray, k: int, size: StepSize) -> None:
        self.w, self.k, self.size = w, k, size
        self.before, self.squares = k, 0.0

    def move(self, phi: np.ndarray, goal: float, action: int | None = None) -> None:
        """Move them towards what was seen: ``w <- w + a_k (goal - phi^T w) phi``; an action's, where one is given."""
        w = self.w if action is None else self.w[:, action]
        self.k += 1
        error = goal - float(phi.dot(w))
        w += self.size.move(error, self.k) * phi
        self.squares += error * error

    def told(self) -> dict[str, float]:
        """As it is recorded: "loss", the mean squared error, and "step_size"."""
        return {"loss": self.squares / max(1, self.k - self.before), "step_size": self.size.at(max(1, self.k))}


class LinearValue(LinearAgent):
    """An agent whose policy is given, and whose values of states are weighed features.

    Attributes:
        w: a weight each, ``[F]``.
        policy: the chance of each action in each state, ``[S, A]``; or ``[1, A]``, the same everywhere.
        k: how many steps were learnt from, int64.
    """

    def __init__(self, spaces: Spaces, features: Features, policy: Float[Tensor, "S A"]) -> None:
        super().__init__(spaces, features)
        self.w, self.policy = table(self.features.num), table(*policy.shape)
        self.policy.copy_(policy)
        self.k: Tensor
        self.register_buffer("k", torch.zeros((), dtype=torch.int64))

    def act(self, observations: Tensor, chance: torch.Generator | None) -> Choice:
        """See `Agent`."""
        policy = self.policy.numpy()
        if len(policy) == 1:
            chances = np.repeat(policy, len(observations), 0)
        else:
            space: Any = self.spaces.observation
            chances = policy[observations.cpu().numpy() - int(space.start)]
        return Choice(torch.from_numpy(drawn(chances, chance).astype(np.int64) + self.first_action))

    def values(self, observations: Tensor) -> Float[Tensor, " N"]:
        """What each state is worth."""
        return torch.from_numpy(self.seen(observations) @ self.w.numpy()).float()


class LinearActionValue(LinearAgent):
    """An agent that knows what actions are worth by weighed features, and takes the best but for a share epsilon.

    Attributes:
        w: a weight for each feature and action, ``[F, A]``.
        epsilon: the share of actions drawn from all alike, where it explores.
        k: how many steps were learnt from, int64.
    """

    def __init__(self, spaces: Spaces, features: Features, epsilon: float) -> None:
        super().__init__(spaces, features)
        self.w = table(self.features.num, self.num_actions)
        self.epsilon: Tensor
        self.k: Tensor
        self.register_buffer("epsilon", torch.tensor(epsilon, dtype=torch.float64))
        self.register_buffer("k", torch.zeros((), dtype=torch.int64))

    def act(self, observations: Tensor, chance: torch.Generator | None) -> Choice:
        """See `Agent`; the first of the best."""
        columns = (self.seen(observations) @ self.w.numpy()).argmax(-1)
        columns = explored(columns, self.num_actions, float(self.epsilon), chance)
        return Choice(torch.from_numpy(columns.astype(np.int64) + self.first_action))

    def values(self, observations: Tensor) -> Float[Tensor, " N"]:
        """What the best action is worth in each state."""
        return torch.from_numpy((self.seen(observations) @ self.w.numpy()).max(-1)).float()
