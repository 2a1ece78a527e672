"""What may go wrong with samples and with the processes that encode them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import torch

from danlu.batch import Batch
from danlu.contracts import Outcome
from danlu.data import cache
from danlu.data.collection import Collection
from danlu.method.next_token import NextToken

from .runs import document


def masked(origins: Sequence[str], weight: float) -> Any:
    """Every target of some samples has another weight."""
    group = NextToken.group

    def weighed(self: NextToken, sample: Any) -> Batch:
        batch = group(self, sample)
        if sample.origin not in origins:
            return batch
        others = torch.full_like(batch.targets.weights, weight)
        return replace(batch, targets=replace(batch.targets, weights=others))

    return patch.object(NextToken, "group", weighed)


def loud(origins: Sequence[str], factor: float) -> Any:
    """The loss of every pack that has one of some samples is so many times as large."""
    loss = NextToken.loss

    def raised(self: NextToken, models: Any, batch: Batch) -> Outcome:
        outcome = loss(self, models, batch)
        if not {*origins} & {*batch.origin}:
            return outcome
        return replace(outcome, losses={name: factor * value for name, value in outcome.losses.items()})

    return patch.object(NextToken, "loss", raised)


@contextmanager
def processes_for_little() -> Iterator[None]:
    """Each chunk is encoded by itself, and there are processes for it, for however few."""
    with (
        patch.dict(Collection.open.__func__.__kwdefaults__, worth_processes=1),  # type: ignore[attr-defined]
        patch.dict(Collection.stream.__kwdefaults__, pool_bytes=1),
        patch.object(cache, "PATIENCE", 100.0),
    ):
        yield


def encoders() -> list[int]:
    """The processes that encode for this one; what has just ended is none."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # which a zombie is, too
            found += [child.pid] if "spawn_main" in " ".join(child.cmdline()) else []
    return found


def stop_encoders() -> None:
    """For good; and wait for them only as long as a test may take."""
    cache.PATIENCE = 1.0
    found = encoders()
    assert found
    for pid in found:
        os.kill(pid, signal.SIGSTOP)


def part(folder: Path, number: int) -> Path:
    """A file of some texts."""
    file = folder / f"part{number}.jsonl"
    file.write_text("".join(json.dumps({"text": document(i)}) + "\n" for i in range(10 * number, 10 * number + 10)))
    return file
