"""Models as they lie on disk: a checkpoint, or an adapter together with the checkpoint it belongs to."""

from __future__ import annotations

from pathlib import Path

from danlu.adapter.hub import SavedAdapter, is_adapter, read_adapter
from danlu.architecture.checkpoint import load_model
from danlu.architecture.hub import model_directory
from danlu.architecture.scorer import as_scorer
from danlu.contracts import SequenceModel
from danlu.errors import CheckpointError
from danlu.hub_files import local_directory


def load_pretrained(directory: str | Path, *, trust_remote_code: bool = False, bridge: bool = False) -> SequenceModel:
    """A model from a directory in hub format, or an adapter's with its base, its weights in float32.

    Args:
        directory: where.
        trust_remote_code: whether code that comes with the checkpoint may run, where `transformers` needs it.
        bridge: run the code of `transformers` even where the architecture is one of ours.

    Raises:
        CheckpointError: when a file is absent, cut short or altered, or the adapter belongs to another base.
        UnsupportedError: when the model cannot run packed.
    """
    directory = Path(directory)
    if not is_adapter(directory):
        return load_model(directory, trust_remote_code=trust_remote_code, bridge=bridge)
    saved = read_adapter(directory)
    model = load_model(base_directory(saved), trust_remote_code=trust_remote_code, bridge=bridge)
    if saved.scores:
        model = as_scorer(model, seed=0)
    saved.attach(model)
    return model


def base_directory(saved: SavedAdapter) -> Path:
    """Where the checkpoint is that an adapter belongs to: a path, one relative to the adapter, or the hub's.

    Raises:
        CheckpointError: when it is nowhere.
    """
    if not saved.base:
        raise CheckpointError("the adapter does not name its base", where=saved.directory / "adapter_config.json")
    for place in (Path(saved.base).expanduser(), saved.directory / saved.base):
        if place.is_dir():
            return model_directory(place)
    if Path(saved.base).is_absolute() or saved.base.count("/") != 1:
        what = f"the adapter's base is not at {saved.base}"
        do = "Put it there, or name where it is in base_model_name_or_path."
        raise CheckpointError(what, where=saved.directory / "adapter_config.json", do=do)
    return local_directory(f"hub:{saved.base}")


def named_base(model: str) -> str:
    """How an adapter's files name the checkpoint it belongs to: as `peft` is to look for it.

    Args:
        model: a path, also of an adapter that was trained on, or `hub:org/name`.
    """
    if model.startswith("hub:"):
        return model.removeprefix("hub:").partition("@")[0]
    directory = Path(model).expanduser()
    return read_adapter(directory).base if is_adapter(directory) else str(directory.resolve())
