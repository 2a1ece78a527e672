"""The device behind one interface: what it is called, how fast it is, how much memory it used.

Another accelerator is a row in a table here, not a fork elsewhere.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch

from danlu.engine.ranks import ALONE, Ranks
from danlu.errors import UnsupportedError

PEAK_FLOPS: dict[str, dict[torch.dtype, float]] = {
    "A100": {torch.float32: 156e12, torch.bfloat16: 312e12, torch.float16: 312e12},
    "A800": {torch.float32: 156e12, torch.bfloat16: 312e12, torch.float16: 312e12},
    "H100": {torch.float32: 494e12, torch.bfloat16: 989e12, torch.float16: 989e12},
    "H200": {torch.float32: 494e12, torch.bfloat16: 989e12, torch.float16: 989e12},
    "B200": {torch.float32: 1125e12, torch.bfloat16: 2250e12, torch.float16: 2250e12},
    "L40S": {torch.float32: 183e12, torch.bfloat16: 362e12, torch.float16: 362e12},
    "L4": {torch.float32: 60e12, torch.bfloat16: 121e12, torch.float16: 121e12},
    "RTX 4090": {torch.float32: 83e12, torch.bfloat16: 165e12, torch.float16: 165e12},
    "RTX 3090": {torch.float32: 36e12, torch.bfloat16: 71e12, torch.float16: 71e12},
    "Ascend910B": {torch.float32: 94e12, torch.bfloat16: 376e12, torch.float16: 376e12},
}
"""Dense matrix-product peaks by chip, from the makers' data sheets; float32 through TF32 where the chip has it."""

_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1


@dataclass(frozen=True)
class Device:
    """Where a run computes.

    Attributes:
        kind: torch's name of the device type.
        name: what its maker calls it.
        threads: processor threads used.
        memory_bytes: memory there is.
    """

    kind: str
    name: str
    threads: int
    memory_bytes: int

    @staticmethod
    def choose(wanted: str, threads: int | None, ranks: Ranks = ALONE) -> Device:
        """The device a recipe asks for; "auto" takes an accelerator when there is one. Ranks share what a machine has.

        Raises:
            UnsupportedError: when it is not there.
        """
        if ranks.size > 1:  # torchrun says one thread a process, whatever there is
            threads = threads or max(1, (psutil.cpu_count(logical=False) or 1) // ranks.local_size)
        if threads:
            torch.set_num_threads(threads)
        found, kind = _accelerator(), device_kind(wanted)
        if kind == "cpu":
            memory = psutil.virtual_memory().total // ranks.local_size
            return Device("cpu", _processor(), torch.get_num_threads(), memory)
        if found is None or found.type != kind:
            raise UnsupportedError(f"there is no device '{kind}' here", where="run.device", do="Use run.device=auto.")
        module = torch.get_device_module(kind)
        if ranks.local_size > module.device_count():
            there = module.device_count()
            what = f"{ranks.local_size} processes were started on this machine, which has {there} of {kind}"
            raise UnsupportedError(what, do="Start one for each.")
        if ranks.size > 1:
            torch.accelerator.set_device_index(ranks.local_rank)
        properties = module.get_device_properties(ranks.local_rank)
        return Device(kind, properties.name, torch.get_num_threads(), properties.total_memory)

    @property
    def torch(self) -> torch.device:
        """As torch names it."""
        return torch.device(self.kind)

    def peak_flops(self, dtype: torch.dtype) -> float:
        """Matrix-product operations a second: measured on a CPU, from the table elsewhere; nan for a chip not in it."""
        if self.kind == "cpu":
            return _measured_peak(dtype, self.threads)
        rows = [peaks for chip, peaks in PEAK_FLOPS.items() if chip in self.name]
        return rows[0].get(dtype, float("nan")) if rows else float("nan")

    def synchronize(self) -> None:
        """Wait until everything asked of the device is done."""
        if self.kind != "cpu":
            torch.accelerator.synchronize()

    def memory_used(self) -> int:
        """The most bytes in use at once so far: resident memory on a CPU, allocated memory elsewhere."""
        if self.kind != "cpu":
            return int(torch.get_device_module(self.kind).max_memory_allocated())
        return _peak_resident()

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def device_kind(wanted: str) -> str:
    """Torch's name of the device type that a recipe asks for, whether or not it is there."""
    found = _accelerator()
    return wanted if wanted != "auto" else (found.type if found else "cpu")


def _accelerator() -> torch.device | None:
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next allocation, where it is glibc.

    By default each large tensor is mapped anew and every page of it faults on first touch, which costs as much as the
    arithmetic on it; a training step asks for the same sizes again and again.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _peak_resident() -> int:
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@functools.cache
def _measured_peak(dtype: torch.dtype, threads: int, size: int = 2048, patience: int = 5) -> float:
    """The best of square products, until so many have brought no better; `threads` is part of the key."""
    a, b = (torch.ones(size, size, dtype=dtype) for _ in range(2))
    best, since = float("inf"), 0
    while since < patience:
        start = time.perf_counter()
        torch.mm(a, b)
        seconds = time.perf_counter() - start
        since = 0 if seconds < 0.99 * best else since + 1
        best = min(best, seconds)
    return 2 * size**3 / best
