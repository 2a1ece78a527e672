"""What ranks leave each other in the store of their launch, and what a launch is refused for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch.distributed as dist

from danlu.engine import launch, pulse
from danlu.engine.launch import joined, launched, say_once
from danlu.engine.pulse import Pulse
from danlu.engine.ranks import ALONE, PATIENCE
from danlu.errors import RecipeError, UnsupportedError


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")


def absent() -> bool:
    return False


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    ("device", "without", "lacks"),
    [
        ("cpu", "is_available", "torch.distributed"),
        ("cpu", "is_gloo_available", "gloo"),
        ("cuda", "is_nccl_available", "gloo or no nccl"),
    ],
)
def test_ranks_that_this_build_of_torch_cannot_have_are_refused(
    monkeypatch: pytest.MonkeyPatch, device: str, without: str, lacks: str
) -> None:
    monkeypatch.setattr(dist, without, absent)
    with pytest.raises(UnsupportedError) as caught, joined(device):
        pass
    assert str(caught.value) == (
        f"this build of torch has no {lacks}, by which 2 processes would talk. "
        "Start one process, without torchrun, or install a build that has it."
    )


def test_one_process_needs_nothing_to_talk_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_available", absent)
    with joined("cpu") as ranks:
        assert ranks == ALONE
        assert ranks.gather(5) == [5]


@pytest.mark.usefixtures("two")
def test_how_long_ranks_wait_is_said_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched().patience == PATIENCE
    monkeypatch.setenv("DANLU_PATIENCE", "10m")
    assert launched().patience == timedelta(minutes=10)
    for text in ("soon", "0", "-3s"):
        monkeypatch.setenv("DANLU_PATIENCE", text)
        with pytest.raises(RecipeError, match=rf"^DANLU_PATIENCE: '{text}' is no time to wait for\. Write it as 90s"):
            launched()


class Saying:
    """Ranks that are threads, and have something to say at once; and what is said in all."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def all(self, sentences: dict[int, str], *, told: bool = False) -> list[str]:
        """What is said where these ranks have these to say, the first of which leads."""

        def one(rank: int) -> None:
            say_once(sentences[rank], self.said.append, leads=rank == 0, told=told)

        threads = [threading.Thread(target=one, args=(rank,)) for rank in sentences]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sorted(self.said)


@pytest.fixture
def saying(monkeypatch: pytest.MonkeyPatch) -> Saying:
    store = dist.HashStore()
    monkeypatch.setattr(launch, "_attempt_store", lambda patience=None: store)
    monkeypatch.setattr(launch, "_TURN", timedelta(seconds=0.5))
    return Saying()


@pytest.mark.parametrize("ranks", [(0, 1, 2), (1, 2, 3), (0, 2), (2,)])
def test_what_several_ranks_have_to_say_is_said_once(saying: Saying, ranks: tuple[int, ...]) -> None:
    assert saying.all(dict.fromkeys(ranks, "it is full")) == ["it is full"]


def test_what_differs_is_all_said(saying: Saying) -> None:
    assert saying.all({0: "no file a", 1: "no file b", 2: "no file b"}) == ["no file a", "no file b"]


def test_the_leading_rank_goes_first(saying: Saying, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_TURN", timedelta(seconds=30))
    begun = time.monotonic()
    assert saying.all({0: "it is full", 1: "it is full"}) == ["it is full"]
    assert time.monotonic() - begun < 10


def test_without_a_store_what_the_leading_rank_knows_is_its_to_say(
    saying: Saying, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_attempt_store", lambda patience=None: None)
    assert saying.all({0: "it is full", 1: "it is full"}, told=True) == ["it is full"]
    assert saying.all({1: "only here"}) == ["it is full", "only here"]


def test_without_anybody_to_ask_it_is_said(saying: Saying, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(patience: object = None) -> None:
        raise dist.DistNetworkError("the launch is ending")

    monkeypatch.setattr(launch, "_attempt_store", gone)
    assert saying.all({1: "it is full"}, told=True) == ["it is full"]


@pytest.fixture
def pulses(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Pulse]]:
    monkeypatch.setattr(pulse, "_BEAT", 0.02)
    monkeypatch.setattr(pulse, "_WATCHED", 1.0)
    store = dist.HashStore()
    made = [Pulse(store, rank, 4) for rank in range(4)]
    yield made
    for each in made:
        each.close()


def test_who_gives_no_sign_of_life_is_named_by_all_alike(pulses: list[Pulse]) -> None:
    pulses[1].close()
    pulses[3].close()
    assert pulses[0].silent() == [1, 3]
    pulses[0].close()  # as one that has ended since, because of that
    assert pulses[2].silent() == [1, 3]


def test_where_all_live_nobody_is_named(pulses: list[Pulse]) -> None:
    assert pulses[2].silent() == []


STOPPED = 2
RANK = f"""
import os, signal, time
import torch.distributed as dist
from danlu.engine.launch import joined
from danlu.errors import DanluError

store = dist.TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), is_master=False)
store.add("here", 1)
while int(store.add("here", 0)) < 3:  # what each has to import takes longer than they are to wait
    time.sleep(0.05)
try:
    with joined("cpu") as ranks, ranks.together():
        ranks.wait()
        if ranks.rank == {STOPPED}:
            os.kill(os.getpid(), signal.SIGSTOP)
        ranks.wait()
except DanluError as error:
    print(error, flush=True)
    os._exit(1)
"""


def test_a_rank_that_is_stopped_is_named_by_those_that_waited_for_it() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    launched_so = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    common = {**os.environ, **launched_so, "WORLD_SIZE": "3", "DANLU_PATIENCE": "2s", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "3"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    try:
        for rank in range(STOPPED):
            out, err = processes[rank].communicate(timeout=60)
            assert out.startswith(f"rank {rank} lost rank {STOPPED}, which gives no sign of life: "), err
            assert out.endswith("See what became of it: it ended, or hangs; the last checkpoint is whole.\n")
            assert processes[rank].returncode == 1
        assert processes[STOPPED].poll() is None
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.communicate()
