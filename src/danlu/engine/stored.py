"""The way back: tensors of a checkpoint, whole or in parts, as many or few as its readers want.

`torch.distributed.checkpoint` plans what is read from where; each rank plans for itself and none waits for another.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from danlu.engine.ranks import Ranks
from danlu.engine.staging import STATE, Snapshot
from danlu.errors import CheckpointError

_PART = re.compile(r"(?P<file>.+?)(-\d{5}-of-\d{5})?\.safetensors")
_SHOWN = 3
"""Differences that an error names."""


class Saved:
    """A checkpoint that was found whole.

    Args:
        step: updates done.
        folder: where it is.
        names: its files.
        ranks: who reads it.

    Attributes:
        step: updates done.
        folder: where it is.
        state: everything that is no tensor.

    Raises:
        CheckpointError: when it cannot be read.
    """

    def __init__(self, step: int, folder: Path, names: Iterable[str], ranks: Ranks) -> None:
        parts: dict[str, list[str]] = {}
        for name in names:
            if matched := _PART.fullmatch(name):
                parts.setdefault(matched["file"], []).append(name)
        self.step, self.folder, self._ranks = step, folder, ranks
        with self._reading():
            self.state: Mapping[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
            self._files = {file: _File(folder, own) for file, own in parts.items()}

    def specs(self, file: str) -> Mapping[str, Tensor]:
        """What a file holds, as tensors of the meta device: whole shapes, and dtypes; nothing where there is none."""
        return self._files[file].specs if file in self._files else {}

    def read_into(self, file: str, tensors: Mapping[str, Tensor]) -> None:
        """Read all of a file's tensors in place, however they were, and now are, divided over ranks.

        Raises:
            CheckpointError: when names, shapes or dtypes differ, with nothing changed; or it cannot be read.
        """

        def read() -> None:
            if different := _differences(self.specs(file), tensors):
                more = f"; and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
                what = f"step {self.step} is of another {file}: {'; '.join(different[:_SHOWN])}{more}"
                raise CheckpointError(what, where=self.folder, do="Go on with the recipe that it was written by.")
            if file in self._files:
                with self._reading():
                    self._files[file].read_into(tensors)

        self._ranks.each(read)

    def read(self) -> Snapshot:
        """All of it, tensors whole and on the CPU.

        Raises:
            CheckpointError: when it cannot be read.
        """
        tensors = {
            file: {name: torch.empty_like(spec, device="cpu") for name, spec in stored.specs.items()}
            for file, stored in self._files.items()
        }
        with self._reading():
            for file, stored in self._files.items():
                stored.read_into(tensors[file])
        return Snapshot(self.step, tensors, self.state)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"step {self.step} cannot be read: {error}", where=self.folder) from error


class _File:
    """One file's tensors, in as many parts as ranks wrote it."""

    def __init__(self, folder: Path, parts: Iterable[str]) -> None:
        self._reader = HuggingFaceStorageReader(str(folder))
        self._reader.fs = _Only(parts)
        self._metadata = self._reader.read_metadata()
        self.specs = {
            name: torch.empty(each.size, dtype=each.properties.dtype, device="meta")
            for name, each in self._metadata.state_dict_metadata.items()
            if isinstance(each, TensorStorageMetadata)
        }

    @torch.no_grad()
    def read_into(self, tensors: Mapping[str, Tensor]) -> None:
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        planner.set_up_planner({name: tensor.detach() for name, tensor in tensors.items()}, self._metadata, True)
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)
        plan = self._reader.prepare_local_plan(planner.create_local_plan())
        self._reader.read_data(planner.finish_plan(plan), planner).wait()


class _Only(FileSystem):
    """A folder seen as though it held some of its files only."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = list(names)

    def ls(self, path: str | os.PathLike[str]) -> list[str]:
        return [str(Path(path, name)) for name in self._names]


def _differences(stored: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """In what tensors differ from what is stored, in words."""
    both = [(name, _words(stored[name]), _words(tensor)) for name, tensor in tensors.items() if name in stored]
    return [
        *(f"'{name}' is {there} there and {here} here" for name, there, here in both if there != here),
        *(f"'{name}' is not there" for name in tensors if name not in stored),
        *(f"'{name}' is not here" for name in stored if name not in tensors),
    ]


def _words(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
