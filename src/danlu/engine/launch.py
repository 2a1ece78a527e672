"""A launch by `torchrun`: which of its ranks this process is, how they come together, and what they leave each other.

Its store outlives the attempts that it makes when a process was lost. Ranks leave there what others should know: those
of a later attempt, or those that have the same to say.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import timedelta

import psutil
import torch.distributed as dist
import xxhash

from danlu.durations import seconds
from danlu.engine.pulse import Pulse
from danlu.engine.ranks import ALONE, PATIENCE, Ranks
from danlu.errors import RecipeError, RunError, UnsupportedError

_PATIENCE = "DANLU_PATIENCE"
"""What in the environment sets how long a rank waits for the others."""
_WORD = "danlu-word"
_TURN = timedelta(seconds=5)
"""How long a rank leaves it to another to say what both have to say."""
_LOOK = 0.05
"""Seconds between two looks at what was said."""
_groups_left: list[Ranks] = []
"""Groups that this process has belonged to, and left."""


def launched() -> Ranks:
    """What `torchrun` says of this process.

    Raises:
        RecipeError: when what the environment says cannot be.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return ALONE
    rank, size, local_rank, local_size = (os.environ.get(name, "") for name in names)
    try:
        ranks = Ranks(int(rank), int(size), int(local_rank or 0), int(local_size or 1), _patience())
    except ValueError:
        told = ", ".join(f"{name}={os.environ.get(name)}" for name in names)
        raise RecipeError(f"the environment names no ranks: {told}", do="Start with torchrun.") from None
    if not 0 <= ranks.rank < ranks.size:
        raise RecipeError(f"rank {ranks.rank} is none of {ranks.size}", do="Start with torchrun.")
    return ranks


def _patience() -> timedelta:
    text = os.environ.get(_PATIENCE)
    if text is None:
        return PATIENCE
    try:
        if (found := seconds(text)) > 0:
            return timedelta(seconds=found)
    except ValueError:
        pass
    raise RecipeError(f"'{text}' is no time to wait for", where=_PATIENCE, do="Write it as 90s, 30m or 2h.")


def require_backend(size: int, device: str) -> str:
    """What several processes talk through: gloo on a CPU, and the accelerator's own besides.

    Args:
        size: how many processes.
        device: torch's name of the device type.

    Raises:
        UnsupportedError: when this build of torch has it not.
    """
    wanted = ["torch.distributed"]
    if dist.is_available():
        wanted = ["gloo", *([] if device == "cpu" else [dist.get_default_backend_for_device(device)])]
        if all(dist.is_backend_available(name) for name in wanted):
            return "gloo" if device == "cpu" else f"cpu:gloo,{device}:{wanted[1]}"
    what = f"this build of torch has no {' or no '.join(wanted)}, by which {size} processes would talk"
    raise UnsupportedError(what, do="Start one process, without torchrun, or install a build that has it.")


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Within, this process belongs to its group.

    Args:
        device: torch's name of the device type.

    Raises:
        RecipeError: when the environment names no sound group.
        UnsupportedError: when this build of torch cannot make one.
        RunError: when the others do not come, or are lost.
    """
    ranks = launched()
    if ranks.size == 1 or (dist.is_available() and dist.is_initialized()):  # a script of one's own may have begun it
        yield ranks
        return
    backend = require_backend(ranks.size, device)
    with ExitStack() as stack:
        try:
            if (store := _attempt_store()) is not None:
                pulse = Pulse(store, ranks.rank, ranks.size)
                stack.callback(pulse.close)
                ranks = replace(ranks, pulse=pulse)
            dist.init_process_group(
                backend, store=_attempt_store(), rank=ranks.rank, world_size=ranks.size, timeout=ranks.patience
            )
        except (RuntimeError, ValueError, KeyError, dist.DistError) as error:
            reason = str(error).splitlines()[0][:200]
            what = f"rank {ranks.rank} could not join the others: {reason}"
            raise RunError(what, do="Start with torchrun.") from error
        with ranks.lost():
            yield ranks
        dist.destroy_process_group()  # after a fault it would wait for what others never answer
        _groups_left.append(ranks)


def _attempt_store(patience: timedelta = PATIENCE) -> dist.Store | None:
    """Where the ranks of this attempt find each other; None where `torchrun` gives no store.

    What a lost rank left there in one attempt must not be taken for the next one's.
    """
    attempt = f"danlu-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}-{len(_groups_left)}"
    store = _store(patience)
    return None if store is None else dist.PrefixStore(attempt, store)  # type: ignore[attr-defined]


def _store(patience: timedelta = PATIENCE) -> dist.Store | None:
    """A client of the store of `torchrun`, for whoever asks."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or not dist.is_available():
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(host, port, is_master=False, timeout=patience)  # type: ignore[attr-defined]


def launch_began() -> float:
    """When the run was begun, as `time.time` tells it: under `torchrun` when that was, however often it begins anew."""
    launched_by_torchrun = "TORCHELASTIC_RESTART_COUNT" in os.environ and not _groups_left
    return psutil.Process(os.getppid()).create_time() if launched_by_torchrun else time.time()


def leave_word(word: str) -> None:
    """Tell later attempts of this launch, which `torchrun` makes when a process was lost."""
    if (store := _store()) is not None:
        store.set(_WORD, word)


def word_left() -> str | None:
    """What an earlier attempt of this launch has told."""
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" and not _groups_left
    store = _store() if again else None
    return None if store is None or not store.check([_WORD]) else store.get(_WORD).decode()


def say_once(sentence: str, say: Callable[[str], None], *, leads: bool, told: bool) -> None:
    """Say what other ranks may have to say in the same words, once: by the leading rank, if it is one of them.

    Args:
        sentence: what is to be said.
        say: says it.
        leads: whether this is the leading rank.
        told: whether the leading rank is known to have the same to say.
    """
    key = f"said-{xxhash.xxh3_64_hexdigest(sentence.encode())}"
    store = None
    try:
        store = _attempt_store(_TURN)
        mine = (leads or not told) if store is None else _falls_to(store, key, leads=leads)
    except RuntimeError:  # of the store: the launch is ending
        mine = True
    if mine:
        say(sentence)
        with suppress(RuntimeError):
            if store is not None:
                store.set(key, "")


def _falls_to(store: dist.Store, key: str, *, leads: bool) -> bool:
    """Whether it falls to this rank to say it; of those that do not lead one does, where the leading rank does not."""
    if leads:
        return not store.check([key])
    return not _said(store, key) and (store.add(f"{key}-by", 1) == 1 or not _said(store, key))


def _said(store: dist.Store, key: str) -> bool:
    """Whether it was said within one turn."""
    until = time.monotonic() + _TURN.total_seconds()
    while not (said := store.check([key])) and time.monotonic() < until:
        time.sleep(_LOOK)  # the store's own way to wait complains where it waits in vain
    return said
