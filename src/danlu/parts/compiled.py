"""Compilation of small functions, switched on by whoever runs the network.

A part says which of its functions profit from being fused (`@compiled`); the engine decides whether they are
(`compilation(True)`), as the recipe says. Results agree to rounding either way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

_on = False
_VARIANTS = 64
"""Compilers specialise sizes of one and equal sizes, and windows; a function may have so many variants."""


@contextmanager
def compilation(on: bool) -> Iterator[None]:
    """Within, functions marked `compiled` are compiled, or not."""
    global _on  # noqa: PLW0603 - one switch a process, set by the engine for a run
    before, _on = _on, on
    try:
        with torch._dynamo.config.patch(recompile_limit=_VARIANTS) if on else nullcontext():
            yield
    finally:
        _on = before


def is_compiling() -> bool:
    """Whether compilation is on."""
    return _on


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile this function, for sizes that vary, when compilation is on."""
    fused: Callable[P, R] | None = None

    @functools.wraps(function)
    def choose(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal fused
        if not _on:
            return function(*args, **kwargs)
        if fused is None:  # only now: torch.compile imports the whole compiler, seconds that no one else should pay
            fused = torch.compile(function, dynamic=True)
        return fused(*args, **kwargs)

    return choose
