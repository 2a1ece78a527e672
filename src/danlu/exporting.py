"""What came of training, as files that others load: whole checkpoints, merged adapters, fine-tunes as adapters."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError

from danlu.adapter.adapted import Adapters
from danlu.adapter.difference import RankError, difference
from danlu.adapter.hub import is_adapter, read_adapter, recast, save_adapter
from danlu.architecture.checkpoint import load_model, save_model
from danlu.architecture.hub import respell, weight_names
from danlu.build import assemble
from danlu.contracts import SequenceModel
from danlu.data import Tokenizer
from danlu.engine.checkpoint import Checkpoints
from danlu.engine.history import require_base
from danlu.errors import CheckpointError, RecipeError, RunError, UnsupportedError
from danlu.fingerprint import model_fingerprint
from danlu.hub_files import ending_tokens, local_directory, read_json
from danlu.pretrained import base_directory, load_pretrained, named_base
from danlu.reading import load_recipe
from danlu.recipe import HubModel
from danlu.recipe_acting import ActingRecipe
from danlu.recipe_density import DensityRecipe
from danlu.run_folder import recipe_of, require_checkpoint

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Heard = Callable[[int, int], None]
"""Hears how many matrices are taken apart, and how many there are."""

_GENERATION = "generation_config.json"
_BESIDE = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model"),
    *("chat_template.*", "additional_chat_templates/*.jinja"),
)
"""What goes with weights, wherever they go."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: where.
        kind: whether it is a whole model or an adapter.
        numbers: how many numbers its weights are.
        bytes: what its weights take on disk.
        rank: of a difference that was taken apart.
        errors: how far it is off at the ranks 1, 2, 4, ... up to its own.
        full: at full rank.
        left_out: parameters that differ and are not in it, by name, each with how much as a share of its length.
    """

    path: Path
    kind: Literal["model", "adapter"]
    numbers: int
    bytes: int
    rank: int | None = None
    errors: tuple[RankError, ...] = ()
    full: RankError | None = None
    left_out: Mapping[str, float] = field(default_factory=dict)


def export(
    model: str | Path,
    out: str | Path,
    *,
    step: int | None = None,
    merge: bool = False,
    delta_from: str | Path | None = None,
    rank: int | None = None,
    also: Sequence[str] = (),
    dtype: str = "fp32",
    trust_remote_code: bool = False,
    heard: Heard = lambda *_: None,
) -> Exported:
    """Write a model, or what was learned of it, into a directory of its own; whole or not at all.

    Args:
        model: a run (what came of it, or its last checkpoint where it is not done), a checkpoint, or an adapter.
        out: where; it must not exist.
        step: the run's checkpoint of that step instead.
        merge: put an adapter into its base, as one checkpoint.
        delta_from: what a fine-tune was tuned from; the difference is written as a LoRA.
        rank: of that.
        also: modules that it carries whole, by pattern.
        dtype: of what is written: fp32, bf16 or fp16.
        trust_remote_code: whether code that comes with the checkpoint may run.
        heard: hears how many matrices are taken apart, and how many there are.

    Raises:
        RecipeError: for what cannot be meant.
        CheckpointError: when a file is absent or altered, or two models do not belong together.
        UnsupportedError: when no weights compute what an adapter does.
        RunError: when `out` exists or cannot be written.
    """
    _check(merge, delta_from, rank, also, dtype)
    with _whole(Path(out).expanduser()) as (folder, scratch):
        source = _directory(model, scratch / "model", step)
        trust = {"trust_remote_code": trust_remote_code}
        if delta_from is not None and rank is not None:
            base = _directory(delta_from, scratch / "base", None)
            found = _write_difference(source, base, folder, rank, also, DTYPES[dtype], heard, **trust)
        elif merge:
            found = _write_merged(source, folder, DTYPES[dtype], **trust)
        elif is_adapter(source):
            found = _write_adapter(source, folder, DTYPES[dtype])
        else:
            network = load_model(source, **trust)
            found = _write_model(network, folder, source, DTYPES[dtype])
    return replace(found, path=Path(out).expanduser())


def _check(merge: bool, delta_from: str | Path | None, rank: int | None, also: Sequence[str], dtype: str) -> None:
    if merge and delta_from is not None:
        raise RecipeError("an adapter is merged, a fine-tune taken apart: --merge and --delta-from are two wishes")
    if (delta_from is None) != (rank is None):
        raise RecipeError("--delta-from and --rank belong together", do="For example --delta-from BASE --rank 16.")
    if rank is not None and rank < 1:
        raise RecipeError(f"a rank of {rank} is no rank", where="--rank", do="Give 1 or more.")
    if also and delta_from is None:
        raise RecipeError("--also says what a difference carries whole", where="--also", do="Give --delta-from, too.")
    if dtype not in DTYPES:
        raise RecipeError(f"there is no dtype '{dtype}'", where="--dtype", do=f"Known: {', '.join(DTYPES)}.")


@contextmanager
def _whole(out: Path) -> Iterator[tuple[Path, Path]]:
    """A folder beside `out` that becomes it at the end, and one for what is needed meanwhile."""
    if out.exists() or out.is_symlink():
        raise RunError("there is something already", where=out, do="Choose another directory, or remove it.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as beside:
            folder = Path(beside, "out")
            folder.mkdir()
            yield folder, Path(beside)
            folder.rename(out)
    except (OSError, SafetensorError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) and fault.strerror else str(fault)
        raise RunError(f"it cannot be written: {reason}", where=out, do="Make room, or name another place.") from fault


def _directory(model: str | Path, scratch: Path, step: int | None) -> Path:
    """Where a model's files are; what a run has only in a checkpoint is written first."""
    path = local_directory(model)
    if (path / "recipe.yaml").is_file():
        final = path / "final"
        return final if step is None and final.is_dir() else _assembled(path, scratch, step)
    if step is not None:
        raise RecipeError("only a run has checkpoints to choose from, and this is none", where="--step", do="Leave it.")
    if not is_adapter(path) and not (path / "config.json").is_file():
        what = "this is neither a run nor a model: it has no recipe.yaml, config.json or adapter_config.json"
        raise CheckpointError(what, where=path, do="Give a run's directory, a checkpoint's or an adapter's.")
    return path


def _assembled(run: Path, scratch: Path, step: int | None) -> Path:
    """A run's checkpoint, as the run would write it at its end, on one process."""
    match recipe_of(run, ()):
        case ActingRecipe():
            what, do = "the run is of an agent", "Use its final/ by danlu play or danlu.load_agent."
        case DensityRecipe():
            what, do = "the run is of a density", "Use its final/ by danlu generate or danlu.load_density."
        case _:
            what = do = ""
    if what:
        raise UnsupportedError(f"{what}, which no other tool reads", where=run, do=do)
    overrides = ("run.device=cpu", "run.compile=false", "run.recompute=none", "run.parallel=auto")
    recipe = load_recipe(recipe_of(run, overrides)).alone
    require_checkpoint(run)
    if isinstance(recipe.policy, HubModel):  # what stays is not written
        recipe = recipe.with_model("policy", recipe.policy.model_copy(update={"quantize": None}))
    with closing(assemble(recipe)) as experiment:
        saved = Checkpoints(run / "checkpoints").open(step)
        require_base(saved, experiment.base)
        saved.read_into("model", experiment.updater().kept)
        experiment.export(scratch)
    return scratch


def _write_model(model: SequenceModel, folder: Path, like: Path, dtype: torch.dtype, *more: Path) -> Exported:
    """A whole checkpoint, its tensors named as in the one that it is like."""
    model.to(dtype)
    held = dict(model.named_parameters())
    own = {name: held[name].detach() for name in model.hub_names()}
    save_model(model, folder, weights=own, like=like, settings=_padding(model, (*more, like)))
    respell(folder, weight_names(like))
    _carry((like, *more), folder)
    return _measured(folder, "model", sum(tensor.numel() for tensor in own.values()))


def _write_merged(source: Path, folder: Path, dtype: torch.dtype, *, trust_remote_code: bool) -> Exported:
    if not is_adapter(source):
        what = "this is no adapter: its weights are whole, and there is nothing to merge"
        raise RecipeError(what, where=source, do="Give an adapter, or leave --merge out.")
    model = load_pretrained(source, trust_remote_code=trust_remote_code)
    _merged(model)
    return _write_model(model, folder, base_directory(read_adapter(source)), dtype, source)


def _merged(model: SequenceModel) -> None:
    if isinstance(model.adapted, Adapters):
        model.adapted.only.merge()


def _write_adapter(source: Path, folder: Path, dtype: torch.dtype) -> Exported:
    """An adapter as it is, its numbers in another precision."""
    tensors = recast(source, folder, dtype)
    _carry((source,), folder)
    return _measured(folder, "adapter", sum(tensor.numel() for tensor in tensors.values()))


def _write_difference(
    source: Path,
    base: Path,
    folder: Path,
    rank: int,
    also: Sequence[str],
    dtype: torch.dtype,
    heard: Heard,
    *,
    trust_remote_code: bool,
) -> Exported:
    if source.resolve() == base.resolve():
        raise RecipeError("the fine-tune and its base are the same directory", where=base, do="Give two.")
    if is_adapter(base):
        raise CheckpointError("a base is whole, and this is an adapter", where=base, do="Merge it first, by --merge.")
    tuned = load_pretrained(source, trust_remote_code=trust_remote_code)
    _merged(tuned)
    network = load_model(base, trust_remote_code=trust_remote_code)
    mark = model_fingerprint(network)
    found = difference(tuned, network, rank, also, heard=heard)
    named = {name: p.detach().to(dtype) for name, p in network.named_parameters()}
    save_adapter(found.attached, folder, base=named_base(str(base)), fingerprint=mark, weights=named)
    _carry((source,), folder)
    written = found.attached.tensors(named)
    told = _measured(folder, "adapter", sum(tensor.numel() for tensor in written.values()))
    return replace(told, rank=rank, errors=found.errors, full=found.full, left_out=found.left_out)


def _carry(sources: Sequence[Path], folder: Path) -> None:
    """Take over what goes with weights; of the same file the later source's."""
    settings: dict[str, object] = {}
    for source in sources:
        for pattern in _BESIDE:
            for file in source.glob(pattern):
                target = folder / file.relative_to(source)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, target)
        if (source / _GENERATION).is_file():
            settings |= read_json(source / _GENERATION)
    if settings:
        (folder / _GENERATION).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _padding(model: SequenceModel, sources: Sequence[Path]) -> dict[str, object]:
    """Of a model that scores sequences at their end: what is behind that, for those who pad."""
    holding = [source for source in sources if (source / "tokenizer.json").is_file()]
    if not model.config.scores or not holding:
        return {}
    tokenizer = Tokenizer.load(holding[0])
    ends = {tokenizer.eos_id, *ending_tokens(sources)}
    return {"pad_token_id": None if tokenizer.pad_id in ends else tokenizer.pad_id}


def _measured(folder: Path, kind: Literal["model", "adapter"], numbers: int) -> Exported:
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return Exported(folder, kind, numbers, size)
