"""Actions chosen evenly, whatever is seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import Space
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from danlu.errors import UnsupportedError


def even_actions(action: Space[Any], num: int, chance: torch.Generator) -> Tensor:
    """Actions, each as likely as another: ``[num]`` (int64) of a choice, ``[num, A]`` of numbers with bounds."""
    if isinstance(action, Discrete):
        return torch.randint(int(action.start), int(action.start + action.n), (num,), generator=chance)
    assert isinstance(action, Box), "actions are choices or numbers"
    low, high = torch.from_numpy(action.low.flatten()), torch.from_numpy(action.high.flatten())
    return low + (high - low) * torch.rand(num, len(low), generator=chance)


def require_bounds(action: Box, who: str) -> None:
    """Refuse numbers without bounds.

    Raises:
        UnsupportedError: for these.
    """
    if not (np.isfinite(action.low).all() and np.isfinite(action.high).all()):
        what = f"{who} takes actions between bounds, and {action} has none"
        raise UnsupportedError(what, where="data.env", do="Choose ppo, or an environment whose actions are bounded.")
