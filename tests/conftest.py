from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

import checking
from commands import Answer, Say
from danlu import cli

checking.install()
torch.set_num_threads(1)
hypothesis.settings.register_profile(
    "danlu", max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
)
hypothesis.settings.load_profile("danlu")

_OTHERS = (
    "ignore:.torch.jit:DeprecationWarning",  # torch's compiler, of itself, when it is first imported
    "ignore:The .grad attribute of a Tensor:UserWarning",  # torch's compiler, of its own look at it
    "ignore:Do not use the `random` module:hypothesis.errors.HypothesisDeprecationWarning",  # of beartype's spot checks
)
"""Warnings that are not about our code."""


def pytest_configure(config: pytest.Config) -> None:
    for line in _OTHERS:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Say:
    """Runs a command in this process, by the entry that the script has."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> Answer:
        monkeypatch.setattr(sys, "argv", ["danlu", *map(str, arguments)])
        capsys.readouterr()
        status: Any = 0
        try:
            cli.main()
        except SystemExit as ended:
            status = ended.code or 0
        said = capsys.readouterr()
        return Answer(status, said.out, said.err)

    return run
