"""An optimiser's state as named tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from danlu.errors import CheckpointError

_SEPARATOR = "/"
_STEP = "step"
"""How torch's optimisers call their count of updates, which is no average of a parameter's size."""


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of the state as "parameter/name"."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}{_SEPARATOR}{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def optimizer_slots(
    optimizer: torch.optim.Optimizer, model: nn.Module, saved: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Make the state that was saved, of zeros, for its tensors to be read into; rates stay as the recipe says.

    What has its parameter's shape is divided over ranks as the parameter is.

    Args:
        optimizer: whatever state it has is forgotten.
        model: whose parameters it moves.
        saved: by "parameter/name"; shapes and dtypes alone matter.

    Returns:
        the tensors of the new state by "parameter/name".

    Raises:
        CheckpointError: when a tensor has no parameter it belongs to.
    """
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    parameters = {name: parameter for name, parameter in model.named_parameters() if id(parameter) in groups}
    if strangers := [name for name in saved if name.rpartition(_SEPARATOR)[0] not in parameters]:
        stranger = strangers[0].rpartition(_SEPARATOR)[0]
        raise CheckpointError(f"the optimiser's state names '{stranger}', which is not trained here")
    optimizer.state.clear()
    for name, spec in saved.items():
        owner, _, key = name.rpartition(_SEPARATOR)
        parameter = parameters[owner]
        group = groups[id(parameter)]
        optimizer.state[parameter][key] = _zeros(key, spec, parameter, group.get("fused") or group.get("capturable"))
    return optimizer_tensors(optimizer, model)


@torch.no_grad()
def _zeros(key: str, spec: Tensor, parameter: Tensor, on_device: bool | None) -> Tensor:
    if key == _STEP and spec.dim() == 0:  # where torch.optim keeps it
        return torch.zeros((), dtype=spec.dtype, device=parameter.device if on_device else "cpu")
    if spec.shape == parameter.shape:
        return torch.zeros_like(parameter, dtype=spec.dtype, requires_grad=False)
    return torch.zeros(spec.shape, dtype=spec.dtype, device=parameter.device)
