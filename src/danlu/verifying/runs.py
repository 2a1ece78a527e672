"""Checks of whole runs: a few updates, on another number of processes, and taken up again in the middle."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from danlu.adapter.hub import adapter_files, is_adapter
from danlu.adapter.quantizing import quantized_kind
from danlu.architecture.hub import weight_files
from danlu.batch import Batch
from danlu.contracts import SequenceModel
from danlu.engine.checkpoint import Checkpoints
from danlu.engine.context import Ringed
from danlu.engine.launch import require_backend
from danlu.engine.record import rows_of
from danlu.errors import RunError, UnsupportedError
from danlu.reading import dump_recipe, load_recipe
from danlu.recipe import Recipe
from danlu.training import Run, resume, train
from danlu.verifying import processes
from danlu.verifying.gradients import step_gradient
from danlu.verifying.subject import Subject
from danlu.verifying.tolerances import NEGLIGIBLE, SAME_BITS, SAME_RUNS
from danlu.verifying.verdict import Inapplicable, Measured, check, size

_STEPS, _MIDDLE = 4, 2
"""Updates of a run, and after how many it is interrupted."""
_RANKS = 2
_MODES = ("ddp", "zero3")
"""What is tried where a recipe leaves open how it lies over ranks: weights whole, and shared out."""
_SMOOTH = 1e-2
"""Of the largest entry of a gradient: added to what Adam divides by."""
_STRAIGHT = "straight"


@check("1 process equals 2")
def one_process_equals_two(subject: Subject) -> Measured:
    """The first updates end in the same weights in one process and in two."""
    _require_processes(subject)
    named = subject.experiment.recipe.run.parallel
    tried = _MODES[:1] if quantized_kind(subject.policy) else _MODES  # a quantised base is whole on every rank
    modes = tried if named in ("auto", "none") else (named,)
    measured = _beside_one(subject, {f"run.parallel={mode}": () for mode in modes})
    return replace(measured, what=f"{measured.what}, {', '.join(modes)}")


@check("a ring of 2 equals 1 process")
def ring_equals_one_process(subject: Subject) -> Measured:
    """The first updates end in the same weights where two processes share the rows of each pack."""
    _require_processes(subject)
    _require_shares(subject)
    named = subject.experiment.recipe.run.parallel
    mode = f"run.parallel={_MODES[0] if named in ('auto', 'none') else named}"
    measured = _beside_one(subject, {f"run.context_parallel={_RANKS}": (mode,)})
    return replace(measured, what=f"{measured.what}, each with some rows of every pack")


def _require_processes(subject: Subject) -> None:
    """See that several processes can run here.

    Raises:
        Inapplicable: when they cannot.
    """
    kind = subject.experiment.device.kind
    if kind != "cpu" and torch.get_device_module(kind).device_count() < _RANKS:
        raise Inapplicable(f"There is one {kind} device here.")
    try:
        require_backend(_RANKS, kind)
    except UnsupportedError as error:
        raise Inapplicable(f"{error.what[0].upper()}{error.what[1:]}.") from None


def _require_shares(subject: Subject) -> None:
    """See that what the method asks of its models has answers that add up over ranks with some rows each.

    Raises:
        Inapplicable: when it has not; by a ring of this process alone.
    """
    try:
        values = subject.method.by_sequence
        models = {role: Ringed(model, _Alone(), values=values) for role, model in subject.updater.models.items()}
        with torch.no_grad():
            subject.method.loss(models, subject.keyed(Batch.join(subject.groups)))
    except UnsupportedError as error:
        raise Inapplicable(f"{error.what[0].upper()}{error.what[1:]}.") from None


class _Alone:
    """A ring of one."""

    rank, size = 0, 1

    def hand_on(self, given: Tensor, taken: Tensor) -> Callable[[], None]:
        """See `danlu.parts.attention_ring.Ring`; a ring of one hands nothing on."""
        raise AssertionError


def _beside_one(subject: Subject, ways: Mapping[str, Sequence[str]]) -> Measured:
    """A few updates in two processes beside the same in one.

    Args:
        subject: whose updates.
        ways: by the override that is tried, what else is said with it.
    """
    alone, found = straight_run(subject), list[tuple[float, str]]()
    patience = processes.patience(float(_seconds(alone).read_text()))
    for way, others in ways.items():
        run = subject.folder / way
        arguments = ["train", str(alone / "recipe.yaml"), f"run.out={json.dumps(str(run))}", way, *others]
        processes.launch(arguments, _RANKS, patience, subject.folder / f"{way}.log")
        found += [(error, f"With {way} {what}.") for error, what in _compared(subject, run, alone)]
        shutil.rmtree(run)
    error, fault = max(found, key=lambda each: size(each[0]))
    what = f"weights, losses and gradient norms of {_STEPS} updates, {_RANKS} processes"
    return Measured(what, error, SAME_RUNS, fault)


@check("resuming equals going on")
def resuming(subject: Subject) -> Measured:
    """A run that is interrupted and resumed has the same weights, averages and state, to the bit."""
    straight, run = straight_run(subject), subject.folder / "resumed"
    left_out = shutil.ignore_patterns("final", f"step-{_STEPS:08d}")
    shutil.copytree(straight, run, symlinks=True, ignore=left_out)
    _finished(resume(run))
    found, expected = (_digests(Checkpoints(each / "checkpoints")) for each in (run, straight))
    shutil.rmtree(run)
    differing = [name for name in sorted({**expected, **found}) if found.get(name) != expected.get(name)]
    fault = f"{len(differing)} of {len(expected)} differ, '{differing[0]}' first." if differing else ""
    what = f"{len(expected)} tensors and counters after {_STEPS} updates, resumed after {_MIDDLE}"
    return Measured(what, float(len(differing)), SAME_BITS, fault)


def straight_run(subject: Subject) -> Path:
    """The directory of a run of a few updates of a few samples; there is one for all checks."""
    run = subject.folder / _STRAIGHT
    if not (run / "final").exists():
        shutil.rmtree(run, ignore_errors=True)
        begun = time.perf_counter()
        _finished(train(_short(subject, run)))
        _seconds(run).write_text(str(time.perf_counter() - begun))
    return run


def _seconds(run: Path) -> Path:
    """Where it is written down how long a run took."""
    return run.with_suffix(".seconds")


def trained_policy(subject: Subject) -> SequenceModel:
    """The subject's model with the weights that `straight_run` ends with."""
    policy, saved = copy.deepcopy(subject.policy), Checkpoints(straight_run(subject) / "checkpoints").load(_STEPS)
    held = dict(policy.named_parameters())
    for name, tensor in saved.tensors["model"].items():
        held[name].data.copy_(tensor)
    return policy


def _finished(run: Run) -> None:
    if run.reason.startswith("SIG"):  # the run took Ctrl-C for itself
        raise KeyboardInterrupt
    if run.reason != "done":
        raise RunError(f"the run of {_STEPS} updates ended early: {run.reason}")


def _short(subject: Subject, out: Path) -> Recipe:
    """The subject's recipe as a short run.

    Adam divides a gradient by its size. One that is 0 but for rounding would so move its weight as far as any other,
    and this way or that; what is added to the size is made large enough that it does not.
    """
    recipe = subject.experiment.recipe
    raw: dict[str, Any] = dump_recipe(recipe)
    raw["data"] |= {"step_samples": len(subject.groups), "step_tokens": None}
    raw["run"] |= {"steps": _STEPS, "eval_every": _STEPS, "checkpoint_every": _MIDDLE, "keep_checkpoints": 2}
    raw["run"]["out"] = str(out)
    if "eps" in raw["optimizer"]:
        gradient = step_gradient(subject, subject.groups, subject.tokens).values()
        norm = float(torch.stack([entries.norm() for entries in gradient]).norm())
        clipped = min(1.0, (recipe.optimizer.clip_norm or norm) / max(norm, 1e-30))
        largest = max(float(entries.abs().max()) for entries in gradient)
        raw["optimizer"]["eps"] = max(raw["optimizer"]["eps"], _SMOOTH * clipped * largest)
    return load_recipe(raw)


def _compared(subject: Subject, run: Path, alone: Path) -> list[tuple[float, str]]:
    """Errors of a run beside another one, each with what differs."""
    found = []
    for name in ("loss", "grad_norm"):
        pairs = zip(_metric(run, name), _metric(alone, name), strict=True)
        error = max(abs(ours - theirs) / max(abs(theirs), 1e-30) for ours, theirs in pairs)
        found.append((error, f"{'the loss' if name == 'loss' else 'the norm of the gradient'} is another"))
    start, ours, theirs = (_weights(folder) for folder in (subject.exported, run / "final", alone / "final"))
    if ours.keys() != theirs.keys():
        raise RunError("the models have other weights", where=run)
    ways = {name: float((theirs[name] - start[name]).abs().max()) for name in theirs}
    farthest = max(ways.values())
    for name, way in ways.items():
        error = float(_beyond_rounding(ours[name], theirs[name]).max()) / max(way, NEGLIGIBLE * farthest, 1e-30)
        found.append((error, f"'{name}' ends elsewhere"))
    return found


def _beyond_rounding(ours: Tensor, theirs: Tensor) -> Tensor:
    """How far weights are apart, less what adding small steps to them in float32 may make them differ by."""
    spacing = torch.finfo(theirs.dtype).eps * theirs.abs()
    return ((ours - theirs).abs() - _STEPS * spacing).clamp(min=0)


def _weights(folder: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for file in adapter_files(folder) if is_adapter(folder) else weight_files(folder):
        weights |= load_file(file)
    return weights


def _metric(run: Path, name: str) -> list[float]:
    return [float(row[name]) for row in rows_of(run / "metrics.jsonl") if name in row]


def _digests(checkpoints: Checkpoints) -> Mapping[str, str]:
    """A checksum of every tensor of the last checkpoint, and everything else in it."""
    snapshot = checkpoints.load(_STEPS)
    held = {f"{file}/{name}": tensor for file, named in snapshot.tensors.items() for name, tensor in named.items()}
    digests = {name: hashlib.sha256(_bytes(tensor)).hexdigest() for name, tensor in held.items()}
    state = {**snapshot.state, "progress": {**snapshot.state["progress"], "time": None}}  # the one thing that differs
    return {**digests, **{f"state/{name}": json.dumps(value) for name, value in state.items()}}


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
