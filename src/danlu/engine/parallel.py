"""How a model lies over ranks, and how its gradient is summed over them.

| mode | weights | gradients | optimiser's averages | gradients travel |
|---|---|---|---|---|
| none | whole | whole | whole | |
| ddp | whole on every rank | whole | whole | once an update, while the last pack goes back |
| zero1 | whole during an update | whole | a share | once an update |
| zero2 | whole during an update | a share | a share | every pack |
| zero3 | a block at a time | a share | a share | every pack |

Gradients are summed and never averaged: every term was divided by its count over all ranks before. The stages of ZeRO
are FSDP2's `fully_shard` over the blocks that a model declares, told when to gather and when to scatter.

References:
    Rajbhandari et al., 2019, "ZeRO", https://arxiv.org/abs/1910.02054
    Li et al., 2020, "PyTorch distributed" (buckets), https://arxiv.org/abs/2006.15704
    Zhao et al., 2023, "PyTorch FSDP", https://arxiv.org/abs/2304.11277
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from danlu.contracts import SequenceModel
from danlu.engine.held import held
from danlu.engine.ranks import ALONE, Ranks
from danlu.errors import RecipeError, UnsupportedError

Mode: TypeAlias = Literal["auto", "none", "ddp", "zero1", "zero2", "zero3"]
"""How weights, gradients and the optimiser's averages lie over ranks."""

_BYTES_A_PARAMETER = 16
"""Weight, gradient and two averages in float32."""
_ROOMY = 0.5
"""The share of a device's memory up to which these are kept whole."""
_BUCKET_BYTES = 25 << 20


class Parallel:
    """One process, or the base of what several do: weights, gradients and averages are whole.

    Args:
        ranks: the processes.
        ring: so many neighbouring ranks share the rows of each pack (`danlu.engine.context`); divides their number.
    """

    mode: Mode = "none"

    def __init__(self, ranks: Ranks = ALONE, ring: int = 1) -> None:
        self.ranks, self.ring = ranks, ring
        self._around: Callable[[SequenceModel, bool], SequenceModel] | None = None
        self._rings: dict[str, tuple[SequenceModel, SequenceModel]] = {}

    @property
    def shares(self) -> int:
        """How many shares the samples of an update are dealt out in."""
        return self.ranks.size // self.ring

    @property
    def share(self) -> int:
        """Which of them is this rank's, and its ring's."""
        return self.ranks.rank // self.ring

    def asked(self, models: Mapping[str, SequenceModel], *, values: bool) -> Mapping[str, SequenceModel]:
        """Models as a method asks them: each rank of a ring is given whole packs and answers for its rows of them.

        Args:
            models: by role.
            values: whether it takes values of all rows instead, and answers for its part of what it makes of them.
        """
        if self.ring == 1:
            return models
        if self._around is None:
            from danlu.engine.context import ringed  # brings the compiler, most of a second

            self._around = ringed(self.ranks, self.ring)
        before = self._rings
        self._rings = {
            role: before[role] if role in before and before[role][0] is model else (model, self._around(model, values))
            for role, model in models.items()
        }
        return {role: around for role, (_, around) in self._rings.items()}

    def lay_out(self, model: nn.Module, device: torch.device) -> None:
        """Put a model that is whole, on the host, the way it is to lie on a device; before its optimiser is made."""
        model.to(device)

    def lay_out_frozen(self, model: SequenceModel, device: torch.device) -> None:
        """Put a model that is only asked the way it is to lie."""
        model.to(device)

    def begin_pack(self, model: nn.Module, *, last: bool) -> None:
        """Say what is to become of gathered weights and of the gradient in the pack that comes next."""

    def end_update(self, model: nn.Module) -> None:
        """Leave in every parameter the gradient summed over ranks, after the last pack."""
        for parameter in model.parameters():
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.to_dense()

    def settle(self, model: nn.Module) -> None:
        """Put weights back the way they lie after they were only looked at."""

    def gathered(self, model: nn.Module) -> dict[str, Tensor] | None:
        """Every parameter whole, on the host of rank 0; None where the model itself holds them. All ranks must ask."""
        return None

    def norms(self, parameters: Sequence[nn.Parameter]) -> Float[Tensor, " P"]:
        """The length of each one's gradient, over all of it; 0 where there is none."""
        absent = torch.zeros(0, device=parameters[0].device)
        return torch.stack(torch._foreach_norm([absent if p.grad is None else held(p.grad) for p in parameters]))


class Replicated(Parallel):
    """Every rank has all of it; gradients are summed in buckets, each as soon as the last pack has filled it."""

    mode: Mode = "ddp"

    def __init__(self, ranks: Ranks, ring: int = 1) -> None:
        super().__init__(ranks, ring)
        self._buckets: list[list[nn.Parameter]] = []
        self._place: dict[nn.Parameter, int] = {}
        self._missing: list[int] = []
        self._sent: list[tuple[Tensor, Any]] = []
        self._last = False

    def lay_out(self, model: nn.Module, device: torch.device) -> None:
        """See `Parallel`."""
        super().lay_out(model, device)
        self._buckets = list(_buckets([p for p in model.parameters() if p.requires_grad][::-1]))
        for number, bucket in enumerate(self._buckets):
            for parameter in bucket:
                self._place[parameter] = number
                parameter.register_post_accumulate_grad_hook(self._arrived)

    def begin_pack(self, model: nn.Module, *, last: bool) -> None:
        """See `Parallel`."""
        self._last, self._sent = last, []
        self._missing = [len(bucket) for bucket in self._buckets]

    def _arrived(self, parameter: nn.Parameter) -> None:
        if self._last:
            self._missing[self._place[parameter]] -= 1
            while len(self._sent) < len(self._buckets) and not self._missing[len(self._sent)]:
                self._send()

    def _send(self) -> None:
        """Begin to sum the next bucket; every rank does so in one order."""
        bucket = self._buckets[len(self._sent)]
        there = [_dense(p.grad) for p in bucket]
        flat = [torch.zeros_like(p).view(-1) if g is None else g.view(-1) for p, g in zip(bucket, there, strict=True)]
        flags = torch.tensor([float(g is not None) for g in there], device=bucket[0].device)
        summed = torch.cat([*flat, flags.to(flat[0].dtype)])
        self._sent.append((summed, dist.all_reduce(summed, async_op=True)))

    def end_update(self, model: nn.Module) -> None:
        """See `Parallel`; a parameter that no rank has used has no gradient."""
        while len(self._sent) < len(self._buckets):
            self._send()
        with self.ranks.lost():
            for bucket, (summed, work) in zip(self._buckets, self._sent, strict=True):
                work.wait()
                *parts, flags = summed.split([*(p.numel() for p in bucket), len(bucket)])
                for parameter, part, used in zip(bucket, parts, flags.tolist(), strict=True):
                    parameter.grad = part.view_as(parameter) if used else None
        self._sent, self._last = [], False


class Sharded(Parallel):
    """A stage of ZeRO, by FSDP2.

    Args:
        ranks: the processes.
        ring: see `Parallel`.
        stage: 1 shares out the optimiser's averages, 2 gradients too, 3 weights too.
    """

    def __init__(self, ranks: Ranks, ring: int = 1, *, stage: Literal[1, 2, 3]) -> None:
        super().__init__(ranks, ring)
        modes: dict[int, Mode] = {1: "zero1", 2: "zero2", 3: "zero3"}
        self.stage, self.mode = stage, modes[stage]

    def lay_out(self, model: Any, device: torch.device) -> None:
        """See `Parallel`; a block at a time is whole on the device."""
        for part in model.modules():
            if isinstance(part, nn.Embedding):
                part.sparse = False  # its gradient is scattered as it is
        self._shard(model, device, {part: self.stage == 3 and part is not model for part in (*model.blocks, model)})
        for part in _sharded(model):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)

    def lay_out_frozen(self, model: SequenceModel, device: torch.device) -> None:
        """See `Parallel`; whole, unless the trained model's weights are shared out, too."""
        if self.stage < 3:
            super().lay_out_frozen(model, device)
        else:
            self._shard(model, device, dict.fromkeys((*model.blocks, model), True))

    def _shard(self, model: SequenceModel, device: torch.device, reshard: Mapping[nn.Module, bool]) -> None:
        """Share out a model part by part, each whole again after its forward or not."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard  # half a second, which only those who shard should pay

        mesh = init_device_mesh(device.type, (self.ranks.size,))
        for part, after_forward in reshard.items():
            part.register_forward_hook(_without_views)
            fully_shard(part, mesh=mesh, reshard_after_forward=after_forward)
        for buffer in model.buffers():
            buffer.data = buffer.data.to(device)

    def begin_pack(self, model: nn.Module, *, last: bool) -> None:
        """See `Parallel`."""
        for part in _sharded(model):
            part.set_requires_gradient_sync(self.stage > 1 or last, recurse=False)
            part.set_reshard_after_backward(self.stage == 3 or last, recurse=False)

    def end_update(self, model: nn.Module) -> None:
        """See `Parallel`; FSDP has done it on the way."""

    def settle(self, model: nn.Module) -> None:
        """See `Parallel`."""
        for part in _sharded(model):
            part.reshard()

    def gathered(self, model: nn.Module) -> dict[str, Tensor]:
        """See `Parallel`."""
        weights = {}
        for name, parameter in model.named_parameters():
            full = parameter.detach().full_tensor()  # type: ignore[attr-defined]
            if self.ranks.leads:
                weights[name] = full.cpu()
        return weights

    def norms(self, parameters: Sequence[nn.Parameter]) -> Float[Tensor, " P"]:
        """See `Parallel`."""
        squares = super().norms(parameters).square()
        with self.ranks.lost():
            dist.all_reduce(squares)
        return squares.sqrt()


def choose(mode: Mode, ranks: Ranks, model: SequenceModel, memory_bytes: int, *, ring: int = 1) -> Parallel:
    """What a recipe's mode comes to; one process is `none` whatever it says.

    Args:
        mode: the recipe's.
        ranks: the processes.
        model: not yet laid out.
        memory_bytes: a rank's.
        ring: ranks that share the rows of a pack.

    Raises:
        RecipeError: when the processes that were started do not fit.
        UnsupportedError: when the rows of the model's packs cannot be shared out.
    """
    if ranks.size % ring:
        raise RecipeError(
            f"run.context_parallel is {ring}, and {ranks.size} processes do not divide by it",
            do=f"Start a multiple of {ring}: torchrun --nproc-per-node {ring} -m danlu ...",
        )
    if ranks.size == 1:
        return Parallel(ranks)
    if ring > 1:
        check_ringed(model)
    if mode == "none":
        raise RecipeError(
            f"run.parallel is none, and {ranks.size} processes were started",
            do="Set run.parallel=auto, or start one process.",
        )
    if mode == "auto":
        needed = _BYTES_A_PARAMETER * sum(p.numel() for p in model.parameters())
        mode = "ddp" if needed <= _ROOMY * memory_bytes else "zero3"
    if mode == "ddp":
        return Replicated(ranks, ring)
    stages: dict[Mode, Literal[1, 2, 3]] = {"zero1": 1, "zero2": 2, "zero3": 3}
    return Sharded(ranks, ring, stage=stages[mode])


def check_ringed(model: SequenceModel) -> None:
    """See that the rows of a model's packs can be shared out over a ring.

    Raises:
        UnsupportedError: when an adapter puts rows of its own among them.
    """
    if model.adapted is not None and model.adapted.adds_rows:
        what = "an adapter puts rows of its own into packs, and a ring of ranks cannot share these out"
        raise UnsupportedError(what, where="run.context_parallel", do="Set it to 1, or use adapter=prefix.")


def _sharded(model: nn.Module) -> list[Any]:
    from torch.distributed.fsdp import FSDPModule

    return [part for part in model.modules() if isinstance(part, FSDPModule)]


def _without_views(_: nn.Module, __: Any, output: Any) -> Any:
    """What a part gives, none of it a view: changed in place, a view would lose FSDP's place in the backward pass."""
    return tree_map_only(Tensor, lambda given: given.clone() if given._is_view() else given, output)


def _dense(gradient: Tensor | None) -> Tensor | None:
    """A table that was looked up, and is no head's, has a sparse gradient."""
    return gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    held = 0
    for parameter in parameters:
        size = parameter.numel() * parameter.element_size()
        if bucket and (held + size > _BUCKET_BYTES or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, held = [], 0
        bucket.append(parameter)
        held += size
    if bucket:
        yield bucket
