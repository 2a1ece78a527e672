"""The hub's checkpoint format: `config.json` and safetensors, read without letting a setting pass unnoticed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ValidationError
from safetensors import safe_open
from torch import Tensor

from danlu.contracts import ArchitectureConfig, SequenceModel
from danlu.errors import CheckpointError, RecipeError, UnsupportedError
from danlu.hub_files import read_json
from danlu.registry import exported
from danlu.tensor_file import explained, load_tensors, save_tensors

_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_CARRIED = ("generation_config.json",)


def known_fields(config_class: type[BaseModel], config: Mapping[str, Any]) -> dict[str, Any]:
    """Those entries of a hub config that are fields of ours."""
    return {name: config[name] for name in config_class.model_fields if name in config}


def refuse(config: Mapping[str, Any], name: str, *allowed: object) -> None:
    """Stop when a hub config asks for something we would compute differently.

    Raises:
        UnsupportedError: when the entry is there and is none of the allowed values.
    """
    if name in config and config[name] not in allowed:
        supported = ", ".join(map(repr, allowed))
        raise UnsupportedError(
            f"the checkpoint's {name} is {config[name]!r}", where=_CONFIG, do=f"Supported: {supported}."
        )


def num_labels_of(config: Mapping[str, Any]) -> Literal[1] | None:
    """1 where a hub config is of a model that scores sequences, None where it is of a language model.

    Raises:
        UnsupportedError: when it sorts sequences into classes.
    """
    if not is_classifier(config):
        return None
    named = config.get("id2label")
    labels = len(named) if isinstance(named, dict) else config.get("num_labels", 2)
    if labels != 1:
        what = f"the checkpoint sorts sequences into {labels} classes"
        raise UnsupportedError(what, where=_CONFIG, do="A reward model has one label.")
    return 1


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a hub config is of a model with a head over whole sequences."""
    return any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or ())


def written_class(family: str, causal: str, *, scores: bool) -> dict[str, Any]:
    """The entries of a hub config that say which class of `transformers` loads it."""
    if scores:
        labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        return {"architectures": [f"{family}ForSequenceClassification"], **labels}
    return {"architectures": [f"{family}{causal}"]}


def chosen_vocabulary(size: int | None) -> int:
    """A vocabulary's size, once it is known.

    Raises:
        RecipeError: when neither the recipe nor a tokenizer has said it.
    """
    if size is None:
        raise RecipeError("the size of the vocabulary is not known", where="model.vocab_size", do="Set it.")
    return size


def read_config(directory: Path) -> ArchitectureConfig:
    """The architecture and its fields that a hub directory names.

    Raises:
        CheckpointError: when there is no readable `config.json`.
        UnsupportedError: when no exported architecture computes what it asks for.
    """
    config, file = read_json(directory / _CONFIG), directory / _CONFIG
    kinds: dict[str, Any] = {getattr(e.target, "model_type", e.name): e.target for e in exported("architecture")}
    kind = kinds.get(str(config.get("model_type", "")))
    if kind is None:
        known = f"Known: {', '.join(sorted(kinds))}."
        raise UnsupportedError(f"no architecture is of model_type {config.get('model_type')!r}", where=file, do=known)
    if config.get("quantization_config"):
        do = "Use a checkpoint in floating point."
        raise UnsupportedError("the checkpoint's weights are quantised", where=file, do=do)
    try:
        read: ArchitectureConfig = kind.from_hub(config)
        with torch.device("meta"):
            read.build()
    except (ValidationError, KeyError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else f"{error} is absent"
        raise CheckpointError(f"the config cannot be meant: {reason}", where=file) from error
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise CheckpointError(f"the config cannot be meant ({error})", where=file) from error
    return read


def model_directory(path: str | Path) -> Path:
    """A directory that is there.

    Raises:
        CheckpointError: when it is not.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise CheckpointError(
            "there is no such model directory", where=directory, do="Give a directory with config.json."
        )
    return directory


def load_hub(directory: str | Path) -> SequenceModel:
    """A model from a directory in hub format, its weights in float32.

    Raises:
        CheckpointError: when a file is absent, cut short or altered, or weights are missing, superfluous or misshapen.
        UnsupportedError: when the architecture is not ours.
    """
    directory = model_directory(directory)
    config = read_config(directory)
    with torch.device("meta"):
        model = config.build()
    ours = {theirs: name for name, theirs in config.hub_names().items()}
    shapes = {name: p.shape for name, p in model.named_parameters()}
    transposed, weights = config.hub_transposed(), {}
    for name, tensor in _tensors(directory):
        own = ours.get(name) or ours.get(_other_spelling(name, ours))
        if own is None:
            if name.endswith(_BUFFERS) or name == "lm_head.weight":
                continue
            raise CheckpointError(f"weight '{name}' has no place in {config.model_type}", where=directory)
        weight = tensor.t() if own in transposed else tensor
        if weight.shape != shapes[own]:
            shape = f"{tuple(weight.shape)}, the config asks for {tuple(shapes[own])}"
            raise CheckpointError(f"weight '{name}' is of shape {shape}", where=directory)
        weights[own] = weight.to(torch.float32, copy=True).contiguous()
    if missing := sorted(set(shapes) - set(weights)):
        raise CheckpointError(f"{len(missing)} weights are missing, '{missing[0]}' first", where=directory)
    built = config.build()
    built.load_state_dict(weights, strict=True)
    return built


_BUFFERS = (".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")
"""What old files hold beside parameters; all of it follows from the config. A head beside a tied embedding likewise."""


def _other_spelling(name: str, known: Mapping[str, str]) -> str:
    """Base models are saved without the prefix of the part that they are."""
    prefixes = {key.split(".")[0] for key in known}
    return next((f"{prefix}.{name}" for prefix in prefixes if f"{prefix}.{name}" in known), name)


def save_hub(
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
    directory, config = Path(directory), model.config
    directory.mkdir(parents=True, exist_ok=True)
    transposed = config.hub_transposed()
    names = config.hub_names()
    held = {name: p.detach() for name, p in (weights or dict(model.named_parameters())).items()}
    written = {names[name]: (p.t() if name in transposed else p).to("cpu").contiguous() for name, p in held.items()}
    save_tensors(written, directory / _WEIGHTS, {"format": "pt"})
    settings = {**config.to_hub(), **(settings or {})}
    if like is not None:
        settings = {**read_json(Path(like) / _CONFIG), **settings}
        for name in _CARRIED:
            if (Path(like) / name).exists():
                shutil.copyfile(Path(like) / name, directory / name)
    settings["dtype"] = str(next(model.parameters()).dtype).removeprefix("torch.")
    (directory / _CONFIG).write_text(json.dumps(settings, indent=2) + "\n")


def respell(directory: Path, names: Iterable[str]) -> None:
    """Name tensors as another checkpoint does, where that leaves out the prefix of the part that its model is.

    Args:
        directory: a checkpoint of one file, which is written anew if need be; others stay as they are.
        names: those of the other.
    """
    known, own = set(names), [] if (directory / _INDEX).exists() else weight_names(directory)
    short = {name: name.partition(".")[2] for name in own if name not in known}
    if spelt := {name: other for name, other in short.items() if other in known}:
        tensors, metadata = load_tensors(directory / _WEIGHTS)
        named = {spelt.get(name, name): tensor for name, tensor in tensors.items()}
        save_tensors(named, directory / _WEIGHTS, metadata)


def weight_files(directory: Path) -> list[Path]:
    """The files that hold a directory's weights.

    Raises:
        CheckpointError: when there are none, or the index names one outside the directory.
    """
    if (directory / _INDEX).exists():
        listed = read_json(directory / _INDEX).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise CheckpointError("the index names no files", where=directory / _INDEX, do="Fetch it again.")
        names = sorted(set(listed.values()))
    elif (directory / _WEIGHTS).exists():
        names = [_WEIGHTS]
    else:
        old = (
            "Weights in pickle files are not loaded; convert them to safetensors."
            if any(directory.glob("*.bin"))
            else ""
        )
        raise CheckpointError(f"there is no {_WEIGHTS}", where=directory, do=old)
    files = [directory / name for name in names]
    for file in files:
        if file.parent.resolve() != directory.resolve():
            raise CheckpointError("the index names a file outside the directory", where=file)
    return files


def weight_names(directory: Path) -> list[str]:
    """The names of a directory's weights, read from the files' heads.

    Raises:
        CheckpointError: when a file is absent, cut short or altered.
    """
    names: list[str] = []
    for file in weight_files(directory):
        with explained(file), safe_open(file, framework="pt") as opened:
            names += opened.keys()
    return names


def _tensors(directory: Path) -> Iterator[tuple[str, Tensor]]:
    for file in weight_files(directory):
        with explained(file), safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - not a dictionary
                yield key, opened.get_tensor(key)
