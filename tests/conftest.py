from __future__ import annotations

import hypothesis
import pytest
import torch

import checking

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
