"""The way out: host memory that holds what a rank writes of a snapshot, and the files it becomes.

Memory is kept from one snapshot to the next, because touching new pages costs more than copying. Of what several ranks
hold alike, one writes: each takes what keeps their shares even, and nothing else is copied.

The files are those of `torch.distributed.checkpoint.HuggingFaceStorageWriter(save_distributed=True)`. That class builds
a file in memory and keeps the interpreter to itself meanwhile, so safetensors' own writer stands in for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from danlu.engine.held import held
from danlu.engine.ranks import Ranks
from danlu.tensor_file import save_tensors

if TYPE_CHECKING:
    from torch.distributed.checkpoint.planner import SavePlan

STATE = "state.json"
"""Where a checkpoint keeps what is no tensor."""
Tensors = Mapping[str, Mapping[str, Tensor]]
"""By file, then by name; each whole or a `DTensor`."""
_Offsets = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Snapshot:
    """What a run is made of at one moment.

    Attributes:
        step: updates done.
        tensors: by file, then by name; a `DTensor` is written by all ranks that hold a part of it.
        state: everything else, as JSON.
    """

    step: int
    tensors: Tensors
    state: Mapping[str, Any]

    @property
    def num_bytes(self) -> int:
        """See `bytes_on_disk`."""
        return bytes_on_disk(self.tensors, self.state)


def bytes_on_disk(tensors: Tensors, state: Mapping[str, Any]) -> int:
    """What a snapshot takes, of all ranks together; names and bounds of tensors, a small part, left out."""
    every = [tensor for named in tensors.values() for tensor in named.values()]
    return sum(t.numel() * t.element_size() for t in every) + len(json.dumps(state))


class Stage:
    """Host memory for one rank's part of snapshots that are alike.

    Args:
        ranks: who writes parts of the same snapshot.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._seen: list[Any] = []
        self._offsets: dict[str, _Offsets] = {}
        self._buffers: dict[tuple[str, str], Tensor] = {}

    @torch.no_grad()
    def fill(self, tensors: Tensors) -> None:
        """Copy what this rank writes; what it was copied from may change afterwards. All ranks do so at once.

        Raises:
            RunError: when a rank is gone.
        """
        every = {(file, name): tensor for file, named in tensors.items() for name, tensor in named.items()}
        local = {key: held(tensor) for key, tensor in every.items()}
        seen = [(key, every[key].shape, part.shape, part.dtype) for key, part in local.items()]
        if any(self._ranks.gather(seen != self._seen or self._offsets.keys() != tensors.keys())):
            self._offsets = {file: self._share(named) for file, named in tensors.items()}
            self._buffers = {
                (file, name): torch.empty(part.shape, dtype=part.dtype, pin_memory=part.device.type != "cpu")
                for (file, name), part in local.items()
                if name in self._offsets[file]
            }
            self._seen = seen
        for key, buffer in self._buffers.items():
            buffer.copy_(local[key], non_blocking=True)
        if any(buffer.is_pinned() for buffer in self._buffers.values()):
            torch.accelerator.synchronize()

    def write(self, folder: Path) -> list[Path]:
        """Write what was copied last, into a folder that is there.

        Raises:
            OSError: when it cannot be written.
            SafetensorError: likewise.
        """
        written = []
        for file, offsets in self._offsets.items():
            if not offsets and not self._ranks.leads:
                continue
            written.append(folder / f"{file}{self._suffix}.safetensors")
            own = {name: self._buffers[file, name] for name in offsets}
            save_tensors(own, written[-1], self._bounds(offsets))
        return written

    @property
    def _suffix(self) -> str:
        return f"-{self._ranks.rank + 1:05d}-of-{self._ranks.size:05d}" if self._ranks.size > 1 else ""

    def _bounds(self, offsets: _Offsets) -> dict[str, str]:
        """What a part says of where it belongs; a whole file says nothing, and is like any other."""
        if self._ranks.size == 1:
            return {"format": "pt"}
        sharding = {name: {"saved_offsets": offset} for name, offset in offsets.items()}
        return {"DCP_SHARDING_INFO": json.dumps(sharding), "DCP_VERSION": "1.0", "format": "pt"}

    def _share(self, tensors: Mapping[str, Tensor]) -> _Offsets:
        """What of a file's tensors this rank writes, and where in the whole tensor it begins."""
        if self._ranks.size == 1:
            return {name: (0,) * tensor.dim() for name, tensor in tensors.items()}
        from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

        planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        planner.set_up_planner(dict(tensors), is_coordinator=self._ranks.leads)
        plans = [_plan(rows) for rows in self._ranks.gather(_rows(planner.create_local_plan()))]
        plans, _ = planner.create_global_plan(plans)
        own = plans[self._ranks.rank].items
        return {item.index.fqn: tuple(item.index.offset or ()) for item in own}


def _rows(plan: SavePlan) -> list[Any]:
    """What ranks tell each other of a plan: name, offsets, sizes, and the whole tensor's; without what is empty."""
    rows = []
    for item in plan.items:
        assert item.tensor_data is not None
        sizes, whole = item.tensor_data.chunk.sizes, item.tensor_data.size
        if math.prod(sizes) or not math.prod(whole):
            rows.append([item.index.fqn, list(item.index.offset or ()), list(sizes), list(whole)])
    return rows


def _plan(rows: list[Any]) -> SavePlan:
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
    from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

    items = []
    for name, offsets, sizes, whole in rows:
        chunk = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        data = TensorWriteData(chunk, TensorProperties(), torch.Size(whole))
        items.append(WriteItem(MetadataIndex(name, offsets), WriteItemType.SHARD, tensor_data=data))
    return SavePlan(items)
