"""Files of a real checkpoint damaged at random places, and disks that are really full."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import danlu
from danlu.errors import CheckpointError
from engine.runs import GPT2, QWEN3, assert_same_run, checkpoints, flip, recipe, step_folder

FLIPS = 3000
CUTS = 300


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return danlu.train(recipe(tmp_path_factory.mktemp("damage"), GPT2, eval_every=4)).path


def test_every_flipped_bit_is_found_and_named(run: Path) -> None:
    randomness, folder = random.Random(0), step_folder(run, 12)
    saved = danlu.engine.checkpoint.Checkpoints(run / "checkpoints")
    files = sorted(folder.iterdir())
    small = [(f, i, i % 8) for f in files if f.suffix == ".json" for i in range(f.stat().st_size)]
    some = [
        (f, randomness.randrange(f.stat().st_size), randomness.randrange(8)) for f in files for _ in range(FLIPS // 4)
    ]
    for file, offset, bit in [*small, *some]:
        flip(file, offset, bit)
        with pytest.raises(CheckpointError) as caught:
            saved.load()
        altered = r"the (manifest|file) is altered(: its checksum differs)?\."
        words = rf"{re.escape(str(file))}: {altered} Resume from the one before with --step 8\."
        assert re.fullmatch(words, str(caught.value))
        flip(file, offset, bit)
    assert saved.load().step == 12


def test_every_cut_is_found_and_named(run: Path) -> None:
    randomness, folder = random.Random(1), step_folder(run, 12)
    saved = danlu.engine.checkpoint.Checkpoints(run / "checkpoints")
    for _ in range(CUTS):
        file = randomness.choice(sorted(folder.iterdir()))
        whole = file.read_bytes()
        file.write_bytes(whole[: randomness.randrange(len(whole))])
        with pytest.raises(CheckpointError, match=rf"{file.name}: .* --step 8\."):
            saved.load()
        file.write_bytes(whole)
    assert saved.load().step == 12


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of sixteen MiB: two pages of charts, and room for a run."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk can be mounted by root only")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("room", [-4_000_000, *range(0, 1_000_000, 100_000), 2_000_000, 4_000_000])
def test_a_full_disk_ends_a_run_with_one_sentence_and_it_goes_on(
    tmp_path: Path, disk: Path, room: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Full at the start, at metrics, within a checkpoint, within the model that comes out, within the report.

    Room is counted beyond what the page about the data takes.
    """
    made = recipe(tmp_path, QWEN3, eval_every=2, checkpoint_every=2, keep_checkpoints=2, out="disk/run", steps=4)
    straight = danlu.train(made, f"run.out={tmp_path / 'straight'}").path
    ballast = disk / "ballast"
    page = (straight / "data.html").stat().st_size
    ballast.write_bytes(bytes((16 << 20) - (64 << 10) - page - room))
    run, file = disk / "run", tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(made))
    command = [sys.executable, "-m", "danlu", "train", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    with capsys.disabled():
        print(f"\n{room:>9,} bytes of room: {done.returncode} {done.stderr.strip() or 'done'}")
    assert done.returncode in (0, 1)
    ballast.unlink()
    if done.returncode:
        assert done.stderr.startswith("danlu: ")
        assert done.stderr.count("\n") == 1
        assert done.stderr.endswith(".\n")
    if run.exists() and checkpoints(run):
        assert danlu.resume(run).reason == "done"
    else:
        assert done.returncode
        subprocess.run(["rm", "-rf", str(run)], check=True)
        danlu.train(made)
    assert_same_run(run, straight)
