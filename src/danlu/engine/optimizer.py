"""Optimisers: from gradients to updates."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from danlu.config import Config, Kind
from danlu.engine.schedule import Cosine, Schedule
from danlu.registry import export

Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Config):
    """How gradients move weights."""

    lr: float = Field(3e-4, gt=0)
    """The highest learning rate; the schedule takes a share of it."""
    clip_norm: float | None = Field(1.0, gt=0)
    """The gradient is scaled down to this norm when it is longer; null never does."""
    schedule: Annotated[Schedule, Kind("schedule")] = Field(default_factory=Cosine)
    """How the rate changes over the run."""

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of the model's trainable parameters."""
        return self.of([{"params": [p for p in model.parameters() if p.requires_grad]}])

    @abstractmethod
    def of(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimiser of parameters in groups: "params", and whatever else is a group's own."""


@export("optimizer", "adamw", source="Loshchilov and Hutter, 2017, https://arxiv.org/abs/1711.05101")
class AdamW(OptimizerConfig):
    """Adam with decoupled weight decay."""

    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """How slowly the averages of the gradient and of its square forget."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second average."""
    weight_decay: float = Field(0.1, ge=0)
    """Share of a matrix taken off at each update, times the rate; biases, norms and other vectors keep theirs."""

    def of(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """See `OptimizerConfig`."""
        present: list[dict[str, Any]] = []
        for group in groups:
            if not self.weight_decay:
                present.append({**group, "weight_decay": 0.0})
                continue
            matrices = [p for p in group["params"] if p.dim() >= 2]
            vectors = [p for p in group["params"] if p.dim() < 2]
            for params, decay in ((matrices, self.weight_decay), (vectors, 0.0)):
                if params:
                    present.append({**group, "params": params, "weight_decay": decay})
        return torch.optim.AdamW(present, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)
