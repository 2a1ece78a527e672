"""Turns of a method, as the loop would take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from danlu.acting import ActingMethod, Agent, Experience, Turn
from danlu.random import fold


def turn(number: int, turns: int, seed: int = 0) -> Turn:
    none = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    return Turn(number, number / turns, none, fold(seed, number))


def taught(
    method: ActingMethod, experience: Experience, turns: int, seed: int = 0
) -> tuple[Any, list[Mapping[str, Any]]]:
    """An agent after so many turns, and what was told of each."""
    agent: Agent = method.agent(experience.spaces, None, seed)
    return agent, [method.learn(agent, experience, turn(number, turns, seed)) for number in range(turns)]
