"""Checkpoints in hub format, whatever the architecture: our own family where there is one, the bridge otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from danlu.architecture.bridge import Bridged, load_bridged, save_bridged
from danlu.architecture.hub import load_hub, save_hub
from danlu.contracts import SequenceModel
from danlu.errors import UnsupportedError


def load_model(directory: str | Path, *, trust_remote_code: bool = False, bridge: bool = False) -> SequenceModel:
    """A model from a directory in hub format, its weights in float32.

    Args:
        directory: where.
        trust_remote_code: whether code that comes with the checkpoint may run, where `transformers` needs it.
        bridge: run the code of `transformers` even where the architecture is one of ours.

    Raises:
        CheckpointError: when a file is absent, cut short or altered, or weights are missing or misshapen.
        UnsupportedError: when neither our own families nor `transformers` can run it packed.
    """
    if bridge:
        return load_bridged(directory, trust_remote_code=trust_remote_code)
    try:
        return load_hub(directory)
    except UnsupportedError as ours:
        try:
            return load_bridged(directory, trust_remote_code=trust_remote_code)
        except UnsupportedError as theirs:
            raise theirs from ours


def save_model(
    model: SequenceModel,
    directory: str | Path,
    *,
    weights: Mapping[str, Tensor] | None = None,
    like: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write a model in hub format, so that `transformers` loads it.

    Args:
        model: what to write.
        directory: where; made when absent.
        weights: its parameters by name, where the model itself does not hold all of them.
        like: the checkpoint it was started from, whose further settings are kept.
        settings: more entries of `config.json`, as the ids of the first and last token.
    """
    if isinstance(model, Bridged):
        save_bridged(model, directory, weights=weights, like=like, settings=settings)
    else:
        save_hub(model, directory, weights=weights, like=like, settings=settings)
