"""Adapters in `peft`'s format: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from danlu.adapter.contract import DEFAULT, Adapter, Attached
from danlu.contracts import SequenceModel
from danlu.errors import CheckpointError, UnsupportedError
from danlu.hub_files import read_json
from danlu.registry import exported
from danlu.tensor_file import load_tensors, save_tensors

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_BASE = "danlu_base"
"""In the file's metadata: the fingerprint of the base's weights."""


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter as it was saved.

    Attributes:
        directory: where.
        adapter: what it is.
        base: the checkpoint it belongs to: a path, or a name on the hub.
        tensors: its parameters, by `peft`'s names.
        fingerprint: of its base's weights; None where the file does not say.
        scores: whether its base is a model that scores sequences.
    """

    directory: Path
    adapter: Adapter
    base: str
    tensors: Mapping[str, Tensor]
    fingerprint: int | None
    scores: bool = False

    def attach(self, model: SequenceModel, *, name: str = DEFAULT, fingerprint: int | None = None) -> Attached:
        """Put it into a model.

        Args:
            model: its base.
            name: what it is called there.
            fingerprint: of the model's weights, if it is known.

        Raises:
            CheckpointError: when it belongs to another model.
        """
        if None not in (fingerprint, self.fingerprint) and fingerprint != self.fingerprint:
            what = "the adapter was trained on a base with other weights than these"
            raise CheckpointError(what, where=self.directory, do=f"Give the base it belongs to ({self.base}).")
        attached = self.adapter.attach(model, name=name)
        try:
            attached.load(self.tensors)
        except CheckpointError as fault:
            raise CheckpointError(fault.what, where=self.directory / _WEIGHTS, do=fault.do) from None
        return attached


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter rather than a model."""
    return (directory / _CONFIG).is_file()


def adapter_files(directory: Path) -> list[Path]:
    """The files that hold an adapter's weights."""
    return [directory / _WEIGHTS]


def read_adapter(directory: Path) -> SavedAdapter:
    """An adapter from its directory.

    Raises:
        CheckpointError: when a file is absent, cut short or altered.
        UnsupportedError: when it is of a kind that is not known, or asks for what is not done here.
    """
    file = directory / _CONFIG
    config = read_json(file)
    every: list[Any] = [entry.target for entry in exported("adapter")]
    kinds: dict[str | None, type[Adapter]] = {kind.peft_type: kind for kind in every}
    kind = kinds.get(str(config.get("peft_type")).rpartition(".")[2])
    if kind is None:
        known = ", ".join(sorted(filter(None, kinds)))
        raise UnsupportedError(f"no adapter is of type {config.get('peft_type')!r}", where=file, do=f"Known: {known}.")
    try:
        adapter = kind.from_hub(config)
    except UnsupportedError as fault:
        raise UnsupportedError(fault.what, where=file, do=fault.do) from None
    except (ValidationError, KeyError, TypeError, AttributeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else f"{error} is absent"
        raise CheckpointError(f"the config cannot be meant: {reason}", where=file) from error
    if not (directory / _WEIGHTS).exists() and any(directory.glob("*.bin")):
        raise CheckpointError(f"there is no {_WEIGHTS}", where=directory, do="Convert pickled weights to safetensors.")
    tensors, metadata = load_tensors(directory / _WEIGHTS)
    mark = metadata.get(_BASE, "")
    return SavedAdapter(
        directory,
        adapter,
        str(config.get("base_model_name_or_path") or ""),
        tensors,
        int(mark, 16) if mark and set(mark) <= set("0123456789abcdef") else None,
        config.get("task_type") == "SEQ_CLS",
    )


def recast(source: Path, directory: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Write an adapter's own files again, its numbers in another precision; these numbers.

    Args:
        source: where it is.
        directory: where to; it is there.
        dtype: of the numbers.

    Raises:
        CheckpointError: when a file is absent, cut short or altered.
    """
    tensors, metadata = load_tensors(source / _WEIGHTS)
    cast = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    save_tensors(cast, directory / _WEIGHTS, metadata)
    (directory / _CONFIG).write_bytes((source / _CONFIG).read_bytes())
    return cast


def save_adapter(
    attached: Attached,
    directory: Path,
    *,
    base: str,
    fingerprint: int | None = None,
    weights: Mapping[str, Tensor] | None = None,
    task: str = "CAUSAL_LM",
) -> None:
    """Write an adapter so that `peft` loads it.

    Args:
        attached: the adapter in its model.
        directory: where; made when absent.
        base: the checkpoint it belongs to, as `peft` is to look for it.
        fingerprint: of that checkpoint's weights.
        weights: the parameters by name, where the model itself does not hold all of them.
        task: what `peft` calls what the model does.
    """
    directory.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", **({} if fingerprint is None else {_BASE: f"{fingerprint:016x}"})}
    save_tensors(attached.tensors(weights), directory / _WEIGHTS, metadata)
    config: dict[str, Any] = {
        "peft_type": attached.adapter.peft_type,
        "task_type": task,
        "base_model_name_or_path": base,
        "inference_mode": True,
        **({"modules_to_save": attached.also_names} if attached.also else {}),
        **attached.to_hub(),
    }
    (directory / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
