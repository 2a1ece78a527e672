"""Checkpoints that several ranks write and others read."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from danlu.batch import Batch
from danlu.build import assemble
from danlu.engine.checkpoint import Checkpoints
from danlu.engine.launch import launched
from danlu.engine.staging import Snapshot
from danlu.engine.state import optimizer_slots, optimizer_tensors
from danlu.engine.update import Updater
from danlu.errors import DanluError
from danlu.experiment import Experiment
from danlu.reading import load_recipe
from ranks import run_ranks

from .runs import QWEN3, flip, groups, recipe
from .test_checkpoint import no_file_larger_than

MODEL = {**QWEN3, "hidden_size": 10, "intermediate_size": 15, "head_dim": 2, "num_attention_heads": 5}
"""Norms of two elements, fewer than three ranks; 10 and 15 rows, which neither two nor three divide alike."""
MODES = ("ddp", "zero3")
"""Whole on every rank, and in parts; the other stages lie like the last between updates."""
Whole = dict[str, dict[str, Tensor]]


def parts_of(made: dict[str, Any], *overrides: str) -> tuple[Experiment, Updater]:
    parts = assemble(load_recipe(made, overrides), launched())
    return parts, parts.updater()


def tensors_of(parts: Experiment, one: Updater) -> Whole:
    return {"model": dict(parts.policy.named_parameters()), "optimizer": optimizer_tensors(one.optimizer, parts.policy)}


def whole(tensors: Whole) -> Whole:
    """Put together by a collective of DTensors, which has nothing to do with checkpoints."""
    return {
        file: {n: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone() for n, t in named.items()}
        for file, named in tensors.items()
    }


def restore(checkpoints: Checkpoints, parts: Experiment, one: Updater) -> None:
    saved = checkpoints.open()
    saved.read_into("model", dict(parts.policy.named_parameters()))
    saved.read_into("optimizer", optimizer_slots(one.optimizer, parts.policy, saved.specs("optimizer")))


def update(one: Updater, drawn: list[list[Batch]], steps: range) -> None:
    for step in steps:
        one.gradient(drawn[step], step)
        one.clip()
        one.move(1e-2)


def assert_same(found: Whole, expected: Whole) -> None:
    assert found.keys() == expected.keys()
    for file, named in expected.items():
        assert named
        assert found[file].keys() == named.keys()
        for name, tensor in named.items():
            assert found[file][name].dtype == tensor.dtype
            assert torch.equal(found[file][name], tensor), f"{file}: {name}"


def store(folder: Path, tensors: Whole) -> None:
    for file, named in tensors.items():
        save_file(named, folder / f"{file}.whole")


def oracle(folder: Path) -> Whole:
    return {file: load_file(folder / f"{file}.whole") for file in ("model", "optimizer")}


def write(made: dict[str, Any], folder: Path) -> None:
    """On each rank: two updates, a checkpoint, two more; and the two more again from the checkpoint."""
    ranks = launched()
    for mode in MODES:
        parts, one = parts_of(made, f"run.parallel={mode}")
        drawn = groups(parts, 4)
        update(one, drawn, range(2))
        checkpoints = Checkpoints(folder / mode, ranks)
        expected = whole(tensors_of(parts, one))
        checkpoints.save(Snapshot(2, tensors_of(parts, one), {"mode": mode}), best=False, keep=3)
        update(one, drawn, range(2, 4))  # in place, while it is being written
        checkpoints.wait()
        assert [written.step for written in checkpoints.finished()] == [2]
        straight = whole(tensors_of(parts, one))

        again, other = parts_of(made, f"run.parallel={mode}", "run.seed=1")
        restore(checkpoints, again, other)
        assert_same(whole(tensors_of(again, other)), expected)
        update(other, drawn, range(2, 4))
        assert_same(whole(tensors_of(again, other)), straight)
        if ranks.leads:
            store(folder / mode, expected)


def read(made: dict[str, Any], folder: Path) -> None:
    """On each rank: what others wrote, in other modes; and an update from there."""
    for wrote in MODES:
        for mode in MODES:
            parts, one = parts_of(made, f"run.parallel={mode}", "run.seed=1")
            restore(Checkpoints(folder / wrote, launched()), parts, one)
            assert_same(whole(tensors_of(parts, one)), oracle(folder / wrote))
            update(one, groups(parts), range(1))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return recipe(tmp_path_factory.mktemp("recipe"), MODEL)


def shapes_of(made: dict[str, Any]) -> None:
    """That the model is what these trials need: parts that are unequal, and ranks that have none."""
    parts, _ = parts_of(made, "run.parallel=zero3")
    held = launched().gather([parameter.to_local().shape[0] for parameter in parts.policy.parameters()])
    shares = list(zip(*held, strict=True))
    assert any(0 in share and any(share) for share in shares)
    assert any(len({*share}) > 1 and 0 not in share for share in shares)


def on_two(made: dict[str, Any], folder: Path) -> list[Any]:
    write(made, folder)
    as_torch_writes(made, folder)
    return faults(folder)


@pytest.fixture(scope="module")
def wrote(tmp_path_factory: pytest.TempPathFactory, made: dict[str, Any]) -> tuple[Path, list[Any]]:
    """What two ranks wrote, and what each of them was told; processes are slow to begin, so one pair does it all."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "file").write_text("")
    return folder, run_ranks(on_two, 2, made, folder)


@pytest.fixture
def two(wrote: tuple[Path, list[Any]]) -> Path:
    return wrote[0]


def on_three(made: dict[str, Any], two: Path, three: Path) -> None:
    shapes_of(made)
    read(made, two)
    write(made, three)


def test_any_number_of_ranks_reads_what_any_other_wrote(tmp_path: Path, made: dict[str, Any], two: Path) -> None:
    """Two write; three read it and write; one reads both, in every mode."""
    run_ranks(on_three, 3, made, two, tmp_path)
    for folder, size in ((two, 2), (tmp_path, 3)):
        for mode in MODES:
            checkpoints = Checkpoints(folder / mode)
            assert_same(checkpoints.load().tensors, oracle(folder / mode))  # type: ignore[arg-type]
            parts, one = parts_of(made, "run.seed=1")
            restore(checkpoints, parts, one)
            assert_same(whole(tensors_of(parts, one)), oracle(folder / mode))
            assert type(parts.policy.get_parameter("norm.weight")) is nn.Parameter
            files = sorted(file.name for file in (folder / mode / "last").iterdir())
            several = [
                f"{file}-{rank:05d}-of-{size:05d}.safetensors"
                for file in ("model", "optimizer")
                for rank in range(1, size + 1)
            ]
            assert files == ["manifest.json", *several, "state.json"]


def test_no_pickle_is_read_or_written(two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("a pickle")

    for name in ("load", "loads", "Unpickler", "dump", "dumps", "Pickler"):
        monkeypatch.setattr(pickle, name, refused)
    for name in ("load", "save"):
        monkeypatch.setattr(torch, name, refused)
    found = Checkpoints(two / "zero3").load()
    own = Checkpoints(tmp_path)
    own.save(found, best=True, keep=1)
    own.wait()
    assert_same(own.load().tensors, oracle(two / "zero3"))  # type: ignore[arg-type]
    for file in [*(two / "zero3" / "last").iterdir(), *(tmp_path / "last").iterdir()]:
        start = file.read_bytes()[:9]
        assert file.suffix in {".safetensors", ".json"}
        assert start[8:9] == b"{" if file.suffix == ".safetensors" else start[:1] == b"{"


PLAIN = {"model": {"w": 100_000, "v": 90_000, "u": 80_000, "t": 70_000, "b": 1}, "optimizer": {"b/step": 1}}


def plain(step: int) -> Snapshot:
    """Whole on every rank."""
    tensors = {
        file: {name: torch.full((n,), float(step)) for name, n in named.items()} for file, named in PLAIN.items()
    }
    return Snapshot(step, tensors, {"step": step})


def faults(folder: Path) -> list[Any]:
    """On each rank: a write that fails on the second only, a folder that cannot be made, a file that is damaged."""
    ranks = launched()
    checkpoints, told = Checkpoints(folder / "a", ranks), []

    def save(to: Checkpoints, step: int) -> None:
        to.save(plain(step), best=False, keep=3)
        to.wait()

    def told_by(act: Any, *arguments: Any) -> None:
        try:
            act(*arguments)
        except DanluError as error:
            told.append([type(error).__name__, str(error)])
        else:
            told.append(None)

    save(checkpoints, 1)
    with no_file_larger_than(10**9 if ranks.leads else 1000):
        told_by(save, checkpoints, 2)
    ranks.wait()
    told.append(sorted(entry.name for entry in (folder / "a").iterdir()))
    ranks.wait()
    save(checkpoints, 3)
    told.append([file.stat().st_size for file in sorted((folder / "a" / "last").glob("model*"))])
    told_by(save, Checkpoints(folder / "file", ranks), 1)
    damaged = folder / "a" / "step-00000003" / "model-00002-of-00002.safetensors"
    ranks.wait()
    if ranks.leads:
        flip(damaged, 5000)
    ranks.wait()
    told_by(checkpoints.open)
    assert checkpoints.open(1).state == {"step": 1}
    own = {name: torch.zeros(n) for name, n in PLAIN["model"].items()}
    wrong = {**own, "w": torch.zeros(7)} if ranks.leads else own
    told_by(checkpoints.open(1).read_into, "model", wrong)
    return told


def test_a_fault_on_one_rank_is_told_by_all_in_the_same_words(wrote: tuple[Path, list[Any]]) -> None:
    two, (first, second) = wrote
    assert first == second
    full, names, sizes, unmade, damaged, other = first
    folder = two / "a"
    assert full == [
        "RunError",
        f"{folder / 'step-00000002'}: the checkpoint of step 2 could not be written: File too large (rank 1). "
        "The checkpoint of step 1 is whole.",
    ]
    assert names == ["last", "step-00000001"]
    assert len(sizes) == 2
    assert max(sizes) < 0.6 * sum(sizes)  # what all hold alike is shared out
    assert unmade[0] == "RunError"
    assert "could not be written: Not a directory (rank 0). There is none before it." in unmade[1] or (
        "could not be written: File exists (rank 0). There is none before it." in unmade[1]
    )
    file = folder / "step-00000003" / "model-00002-of-00002.safetensors"
    assert damaged == [
        "CheckpointError",
        f"{file}: the file is altered: its checksum differs. Resume from the one before with --step 1.",
    ]
    assert other[0] == "CheckpointError"
    assert "'w' is float32 [100000] there and float32 [7] here" in other[1]
    found = Checkpoints(folder).load(1)
    assert {n: t.tolist() for n, t in found.tensors["optimizer"].items()} == {"b/step": [1.0]}


def as_torch_writes(made: dict[str, Any], folder: Path) -> None:
    parts, one = parts_of(made, "run.parallel=zero3")
    update(one, groups(parts), range(1))
    tensors = tensors_of(parts, one)
    checkpoints = Checkpoints(folder / "own", launched())
    checkpoints.save(Snapshot(1, tensors, {}), best=False, keep=1)
    checkpoints.wait()
    for file, named in tensors.items():
        dcp.save(named, storage_writer=dcp.HuggingFaceStorageWriter(str(folder / file), save_distributed=True))
    dist.barrier()


def opened(file: Path) -> tuple[Any, dict[str, bytes]]:
    with safe_open(file, "pt") as content:
        told = content.metadata()
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    bounds = json.loads(told.pop("DCP_SHARDING_INFO"))
    there = {name for name, tensor in tensors.items() if tensor.numel()}
    return (
        (told, {name: bounds[name] for name in there}),
        {name: tensors[name].numpy().tobytes() for name in there},
    )


def test_the_files_of_several_ranks_are_what_torch_writes(two: Path) -> None:
    """But for parts that hold nothing."""
    for file in ("model", "optimizer"):
        theirs = sorted((two / file).iterdir())
        ours = sorted((two / "own" / "last").glob(f"{file}-*"))
        assert len(ours) == len(theirs) == 2
        for own, their in zip(ours, theirs, strict=True):
            assert opened(own) == opened(their)
