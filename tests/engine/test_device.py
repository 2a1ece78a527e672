from __future__ import annotations

import math
import platform
import subprocess
import sys

import pytest
import torch

from danlu.engine import device
from danlu.engine.device import PEAK_FLOPS, Device
from danlu.errors import UnsupportedError


def chip(name: str) -> Device:
    return Device("cuda", name, threads=1, memory_bytes=1)


def test_a_cpu_is_described() -> None:
    found = Device.choose("cpu", 1)
    assert (found.kind, found.threads, found.torch) == ("cpu", 1, torch.device("cpu"))
    assert found.memory_bytes > 1 << 28
    assert found.memory_used() > 1 << 20
    found.synchronize()
    assert found.describe() == {"kind": "cpu", "name": found.name, "threads": 1, "memory_bytes": found.memory_bytes}
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        model = [line for line in lines if line.startswith("model name")]
    if model:
        assert found.name in model[0]


def test_auto_takes_what_there_is() -> None:
    there = torch.accelerator.is_available()
    assert Device.choose("auto", None).kind == (torch.accelerator.current_accelerator().type if there else "cpu")


@pytest.mark.parametrize("wanted", ["furnace", "xpu", "cuda"])
def test_a_device_that_is_not_there_is_one_sentence(wanted: str) -> None:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found is not None and found.type == wanted:
        pytest.skip(f"this machine has {wanted}")
    with pytest.raises(
        UnsupportedError, match=rf"run\.device: there is no device '{wanted}' here\. Use run\.device=auto"
    ):
        Device.choose(wanted, None)


def test_the_peak_of_a_cpu_is_what_its_products_reach() -> None:
    peak = device._measured_peak(torch.float32, 1, size=256, patience=3)
    assert 1e8 < peak < 1e13
    assert device._measured_peak(torch.float32, 1, size=256, patience=3) == peak


def test_the_peak_of_a_chip_is_in_the_table() -> None:
    assert chip("NVIDIA H100 80GB HBM3").peak_flops(torch.bfloat16) == PEAK_FLOPS["H100"][torch.bfloat16]
    assert chip("NVIDIA L40S").peak_flops(torch.bfloat16) == PEAK_FLOPS["L40S"][torch.bfloat16]
    assert chip("NVIDIA L4").peak_flops(torch.bfloat16) == PEAK_FLOPS["L4"][torch.bfloat16]
    for unknown in (chip("Abacus").peak_flops(torch.bfloat16), chip("NVIDIA L4").peak_flops(torch.float64)):
        assert math.isnan(unknown)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept() -> None:
    """A large tensor is allocated again and again; once that has settled, without new faults on its 8192 pages."""
    script = """
import resource, sys, torch
from danlu.engine.device import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(8 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(sum([faults() for _ in range(30)][20:]))
"""
    kept, otherwise = (
        int(subprocess.run([sys.executable, "-c", script, how], capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "otherwise")
    )
    assert kept < 8192 < 10 * 8192 <= otherwise
