"""Models as they lie on disk: a checkpoint, or an adapter together with the checkpoint it belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from danlu.adapter.hub import SavedAdapter, is_adapter, read_adapter
from danlu.adapter.quantizing import quantize as quantize_blocks
from danlu.architecture.checkpoint import load_model
from danlu.architecture.hub import model_directory
from danlu.architecture.scorer import as_scorer
from danlu.contracts import SequenceModel
from danlu.errors import CheckpointError, RecipeError, UnsupportedError
from danlu.fingerprint import model_fingerprint
from danlu.hub_files import local_directory
from danlu.parts.quantized import Quantization

_FINAL = "final"
"""What a run calls the directory of what came of it."""


@dataclass(frozen=True)
class Pretrained:
    """A model as it was read.

    Attributes:
        model: it, in float32 but for what is quantised.
        base: the fingerprint of its own weights as files have them; None where nobody asked.
    """

    model: SequenceModel
    base: int | None


def load_pretrained(
    directory: str | Path,
    *,
    trust_remote_code: bool = False,
    bridge: bool = False,
    adapters: Mapping[str, Path] | None = None,
) -> SequenceModel:
    """A model from a directory in hub format, or an adapter's with its base, its weights in float32.

    Args:
        directory: where.
        trust_remote_code: whether code that comes with the checkpoint may run, where `transformers` needs it.
        bridge: run the code of `transformers` even where the architecture is one of ours.
        adapters: further adapters' directories by the names that the model is to know them by.

    Raises:
        CheckpointError: when a file is absent, cut short or altered, or an adapter belongs to another base.
        RecipeError: when the directory is an adapter itself, and others are to be put beside it.
        UnsupportedError: when the model cannot run packed, or adapters cannot go together.
    """
    read = read_pretrained(directory, trust_remote_code=trust_remote_code, bridge=bridge, fingerprinted=bool(adapters))
    if adapters:
        if is_adapter(Path(directory)):
            do = f"Give its base, and itself among the adapters: --adapter {directory}."
            raise RecipeError("several adapters go on a base, and this is an adapter itself", where=directory, do=do)
        _put_on(read, adapters)
    return read.model


def read_pretrained(
    directory: str | Path,
    *,
    trust_remote_code: bool = False,
    bridge: bool = False,
    quantize: Quantization | None = None,
    fingerprinted: bool = False,
) -> Pretrained:
    """The same with its base's fingerprint, and the base in fewer bits if that is wanted.

    Args:
        directory: where.
        trust_remote_code: whether code that comes with the checkpoint may run, where `transformers` needs it.
        bridge: run the code of `transformers` even where the architecture is one of ours.
        quantize: how the matrices of its blocks are kept; as they are by default.
        fingerprinted: whether the fingerprint is wanted; of an adapter's base it is taken anyway.

    Raises:
        CheckpointError, UnsupportedError: as `load_pretrained` does.
    """
    directory = Path(directory)
    saved = read_adapter(directory) if is_adapter(directory) else None
    where = directory if saved is None else base_directory(saved)
    model = load_model(where, trust_remote_code=trust_remote_code, bridge=bridge)
    base = model_fingerprint(model) if fingerprinted or saved is not None else None
    if saved is not None and saved.scores:
        model = as_scorer(model, seed=0)
    if quantize is not None:
        quantize_blocks(model, quantize)
    if saved is not None:
        saved.attach(model, fingerprint=base)
    return Pretrained(model, base)


def _put_on(read: Pretrained, adapters: Mapping[str, Path]) -> None:
    for name, directory in adapters.items():
        if not is_adapter(directory):
            raise CheckpointError("this is no adapter: it has no adapter_config.json", where=directory)
        if read_adapter(directory).attach(read.model, name=name, fingerprint=read.base).also:
            what = "the adapter trains weights of the model itself, which other adapters would be given, too"
            raise UnsupportedError(what, where=directory, do="Load it by itself.")


def named_adapters(given: Mapping[str, str | Path] | Sequence[str | Path]) -> dict[str, Path]:
    """Adapters' directories by name: as they are named, or by their folders, what a run came to by the run's.

    Raises:
        RecipeError: when one is given twice.

    Example:
        >>> list(named_adapters(["runs/poems/final", "adapters/code", "old/code"]))
        ['poems', 'adapters/code', 'old/code']
    """
    if isinstance(given, Mapping):
        return {name: local_directory(where) for name, where in given.items()}
    paths = [local_directory(where) for where in given]
    short = [path.parent.name if path.name == _FINAL and path.parent.name else path.name for path in paths]
    names = [name if short.count(name) == 1 else str(where) for name, where in zip(short, given, strict=True)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RecipeError(f"the adapter '{twice}' is given twice", do="Leave one out.")
    return dict(zip(names, paths, strict=True))


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


def with_base(directory: Path) -> tuple[Path, ...]:
    """A model's directory and, behind an adapter's, that of its base.

    Raises:
        CheckpointError: when that is nowhere.
    """
    return (directory, base_directory(read_adapter(directory))) if is_adapter(directory) else (directory,)


def named_base(model: str) -> str:
    """How an adapter's files name the checkpoint it belongs to: as `peft` is to look for it.

    Args:
        model: a path, also of an adapter that was trained on, or `hub:org/name`.
    """
    if model.startswith("hub:"):
        return model.removeprefix("hub:").partition("@")[0]
    directory = Path(model).expanduser()
    return read_adapter(directory).base if is_adapter(directory) else str(directory.resolve())
