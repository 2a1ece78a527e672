"""Shapes and dtypes checked in tests: what jaxtyping annotations say of danlu's core holds at every call.

`install` puts jaxtyping's import hook before the modules named below. Two kinds of code stay unchecked: functions that
are being compiled (a compiler cannot trace the checker), and annotations that beartype cannot check (a protocol that is
not `runtime_checkable`, `Self` outside its class). The modules of the CPU's back-ends are left out:
`torch.library.custom_op` reads its operators' annotations as they are written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import beartype
import jaxtyping
import torch
from beartype.roar import BeartypeDecorHintException

CHECKED = (
    "danlu.architecture",
    "danlu.contracts",
    "danlu.method",
    "danlu.packed",
    "danlu.parts.attention",
    "danlu.parts.attention_alike",
    "danlu.parts.attention_parts",
    "danlu.parts.attention_ring",
    "danlu.parts.bijection",
    "danlu.parts.block",
    "danlu.parts.conditioner",
    "danlu.parts.convolution",
    "danlu.parts.coupling",
    "danlu.parts.cross_entropy",
    "danlu.parts.feedforward",
    "danlu.parts.flow",
    "danlu.parts.frame",
    "danlu.parts.linear",
    "danlu.parts.masked",
    "danlu.parts.multiscale",
    "danlu.parts.nets",
    "danlu.parts.norm",
    "danlu.parts.order",
    "danlu.parts.patches",
    "danlu.parts.prior",
    "danlu.parts.readout",
    "danlu.parts.rope",
    "danlu.parts.spline",
    "danlu.parts.unet",
    "danlu.random",
    "danlu.sight",
)


_checker = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype, where it can."""
    try:
        return _checker(function)
    except BeartypeDecorHintException:
        return function


class _OffWhileCompiling(type(jaxtyping.config)):  # type: ignore[misc]
    """jaxtyping's switch, off in whatever is being traced by a compiler."""

    @property
    def jaxtyping_disable(self) -> bool:
        return torch.compiler.is_compiling() or bool(self.__dict__["jaxtyping_disable"])

    @jaxtyping_disable.setter
    def jaxtyping_disable(self, value: bool) -> None:
        self.__dict__["jaxtyping_disable"] = value


def install() -> None:
    """Check every function of the modules named above that is imported from now on."""
    jaxtyping.config.__class__ = _OffWhileCompiling
    jaxtyping.install_import_hook(list(CHECKED), "checking.check")
