"""Updates that are not finite, or whose loss jumps: a run without their samples is what remains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import danlu
from danlu.errors import RunError

from .faults import loud, masked
from .runs import (
    QWEN3,
    assert_same_run,
    assert_same_tensors,
    checkpoints,
    documents,
    lines,
    recipe,
    state,
    steps,
)
from .test_resume import Ended, Listener, end

SAMPLES, STEPS, EVERY = 5, 24, 4
BAD = 15
"""The update that one of the samples of is bad; the last checkpoint before it is of the twelfth."""
LEFT_OUT = {"skip": BAD - 1, "rollback": BAD - 1 - (BAD - 1) % EVERY}
"""The first update whose samples are left out, by what is done about it; the bad one's are the last."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("updates")


@pytest.fixture(scope="module")
def bad(folder: Path) -> str:
    """Where the bad sample comes from."""
    return f"{documents(folder, 200)}:{(BAD - 1) * SAMPLES + 3}"


def made(folder: Path, out: str, **guards: Any) -> dict[str, Any]:
    """A run over documents in their order, five an update."""
    usual = {"eval_every": 8, "checkpoint_every": EVERY, "keep_checkpoints": 9, "pack_tokens": 200}
    one = recipe(folder, QWEN3, out=out, steps=STEPS, **usual, guards={"spike_window": 16, **guards})
    texts = documents(folder, 200)
    one["data"] |= {"train": str(texts), "context": 200, "shuffle": False, "held_out": None, "vocab_size": 290}
    return one


@pytest.fixture(scope="module")
def oracles(folder: Path, bad: str) -> dict[str, Path]:
    """Runs over data that never had the samples that are left out, with the same tokenizer."""
    whole = danlu.train(made(folder, "whole")).path
    found = {}
    for policy, first in LEFT_OUT.items():
        rows = documents(folder, 200).read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / f"{policy}.jsonl").write_text(
            "".join(rows[: first * SAMPLES] + rows[BAD * SAMPLES :]), encoding="utf-8"
        )
        data = (f"data.train={folder / f'{policy}.jsonl'}", f"data.tokenizer={whole / 'final'}")
        found[policy] = danlu.train(made(folder, f"{policy} oracle", spike="ignore"), *data).path
    return found


def same(run: Path, expected: Path) -> None:
    assert_same_run(run, expected)
    assert steps(run) == list(range(1, STEPS + 1))
    assert_same_tensors(state(run, STEPS), state(expected, STEPS))


def told(run: Path, kind: str) -> list[str]:
    return [event["message"] for event in lines(run / "events.jsonl") if event["kind"] == kind]


CASES = {
    "not finite": (
        lambda bad: masked([bad], torch.nan),
        "nonfinite",
        f"the loss or gradient of step {BAD} is not finite because of ",
    ),
    "a spike": (lambda bad: loud([bad], 100.0), "spike", f"step {BAD} has loss "),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("policy", LEFT_OUT)
def test_what_is_left_out_might_never_have_been_there(
    folder: Path, bad: str, oracles: dict[str, Path], case: str, policy: str
) -> None:
    """Left alone; and ended just after it, and taken up again."""
    fault, guard, words = CASES[case]
    name = f"{case} {policy}"
    with fault(bad):
        run = danlu.train(made(folder, name, **{guard: policy})).path
        same(run, oracles[policy])
        (sentence,) = told(run, policy)
        assert sentence.startswith(words)
        assert bad in sentence
        with pytest.raises(Ended):
            danlu.train(made(folder, f"{name} cut", **{guard: policy}), listeners=[After(policy)])
        cut = folder / f"{name} cut"
        assert told(cut, policy) == [sentence]
        assert danlu.resume(cut).reason == "done"
        same(cut, oracles[policy])
        assert checkpoints(cut) == checkpoints(run)


class After(Listener):
    """Ends the process two updates after what is left out, before there is another checkpoint."""

    def __init__(self, policy: str) -> None:
        super().__init__(-1, end)
        self._policy = policy

    def metrics(self, row: Any) -> None:
        super().metrics(row)

    def event(self, event: Any) -> None:
        if event["kind"] == self._policy:
            self.step = LEFT_OUT[self._policy] + 2


def test_stopped_it_has_the_last_good_checkpoint_and_can_leave_them_out_then(
    folder: Path, bad: str, oracles: dict[str, Path]
) -> None:
    run = folder / "stop"
    with masked([bad], torch.nan):
        with pytest.raises(RunError) as caught:
            danlu.train(made(folder, "stop"))
        assert str(caught.value) == (
            f"the loss or gradient of step {BAD} is not finite because of {bad}; the weights of the targets are not "
            "finite; no weight was changed. Look at these samples or lower optimizer.lr, or leave such updates out: "
            "run.guards.nonfinite=skip."
        )
        assert checkpoints(run)[-1] == steps(run)[-1] == BAD - 1
        with pytest.raises(RunError, match=f"step {BAD} is not finite"):
            danlu.resume(run)
        assert checkpoints(run)[-1] == BAD - 1
        danlu.resume(run, "run.guards.nonfinite=skip")
    same(run, oracles["skip"])


@pytest.mark.parametrize("policy", LEFT_OUT)
def test_a_run_that_goes_nowhere_stops(folder: Path, bad: str, policy: str) -> None:
    """All that comes is bad."""
    file, first = bad.rsplit(":", 1)[0], (BAD - 1) * SAMPLES
    run = folder / f"nowhere {policy}"
    with masked([f"{file}:{line}" for line in range(first + 1, 201)], torch.nan):
        with pytest.raises(RunError, match="4 updates would be skipped one after another, the last at step") as caught:
            danlu.train(made(folder, run.name, nonfinite=policy, most_skips=3))
        assert "\n" not in str(caught.value)
    assert len(told(run, policy)) == 3
    assert steps(run) == list(range(1, LEFT_OUT[policy] + 1))
    assert checkpoints(run)[-1] == steps(run)[-1]
    assert danlu.resume(run).reason == "done"
    assert steps(run) == list(range(1, STEPS + 1))
