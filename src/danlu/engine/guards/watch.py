"""Where in a network numbers first stop being finite: hooks on every module, for one pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from danlu.engine.held import held


class Seen(NamedTuple):
    """A module that was seen to do something.

    Attributes:
        module: its name.
        order: how many looks there had been by then; comparable between ranks that run the same modules.
    """

    module: str
    order: int


class Watch:
    """What was seen of one forward and one backward pass.

    Attributes:
        output: the first module, in order of execution, whose output was not finite; of those that end with the same
            output, the innermost.
        backward: the first module, in order of the backward pass, that was given a finite gradient and gave back one
            that is not.
        gradient: the first module whose output's gradient was not finite.
    """

    def __init__(self) -> None:
        self.output: Seen | None = None
        self._looks = 0
        self._given: list[Seen] = []
        self._returned: list[Seen] = []
        self._going_back = False

    @property
    def backward(self) -> Seen | None:
        """See the class."""
        given = {seen.module for seen in self._given}
        return next((seen for seen in self._returned if seen.module not in given), None)

    @property
    def gradient(self) -> Seen | None:
        """See the class."""
        return next(iter(self._given), None)

    def after(self, name: str, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        """To be called when a module has been."""
        if self._going_back:  # computed again, for its gradient
            return
        outputs = list(_tensors(output))
        self._looks += 1
        if self.output is None and not all(map(finite, outputs)):
            self.output = Seen(name, self._looks)
        for tensors, seen in ((outputs, self._given), (list(_tensors([*args, *kwargs.values()])), self._returned)):
            for tensor in tensors:
                if tensor.requires_grad:
                    tensor.register_hook(partial(self._back, seen, name))

    def _back(self, seen: list[Seen], name: str, gradient: Tensor) -> None:
        self._going_back = True
        self._looks += 1
        if not finite(gradient):
            seen.append(Seen(name, self._looks))


@contextmanager
def watching(models: Mapping[str, nn.Module]) -> Iterator[Watch]:
    """Within, what these models do is seen; where there are several, a module's name begins with its model's role."""
    watch = Watch()
    with ExitStack() as stack:
        for role, model in models.items():
            for name, module in model.named_modules():
                known = name if len(models) == 1 else f"{role}.{name}".rstrip(".")
                hook = module.register_forward_hook(partial(watch.after, known), with_kwargs=True)
                stack.callback(hook.remove)
        yield watch


def finite(tensor: Tensor) -> bool:
    """Whether all of a tensor is finite, of a sharded one what is on this rank."""
    here = held(tensor.detach())
    here = here.coalesce().values() if here.is_sparse else here
    return not here.is_floating_point() or bool(torch.isfinite(here).all())


def _tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a module was given or gave."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _tensors([getattr(value, field.name) for field in fields(value)])
