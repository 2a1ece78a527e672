"""An optimiser's state as named tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from danlu.errors import CheckpointError

_SEPARATOR = "/"


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of the state as "parameter/name"."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}{_SEPARATOR}{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put a saved state back; rates and the like stay as the recipe says.

    Raises:
        CheckpointError: when a tensor has no parameter it belongs to.
    """
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    index = {names[id(parameter)]: i for i, parameter in enumerate(order)}
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition(_SEPARATOR)
        if parameter not in index:
            raise CheckpointError(f"the optimiser's state names '{parameter}', which is not trained here")
        state.setdefault(index[parameter], {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
