"""Rows and events of runs that learned a distribution, as training writes them, made without training."""

from __future__ import annotations

import base64
import math

import numpy as np

from danlu.png import grid, png_bytes

Rows = list[dict[str, object]]

RECIPE = """\
method:
  name: realnvp
data:
  train: moons
run:
  name: moons
  seed: 0
"""


def density_rows(steps: int, *, likelihood: bool = True) -> Rows:
    """A loss that falls from 3 to 0.5, below zero where it is allowed to, measured ten times."""
    rng = np.random.default_rng(0)
    rows: Rows = []
    for step in range(steps + 1):
        true = -0.5 + 3.5 / (1 + 30 * step / steps)
        row: dict[str, object] = {"step": step}
        if step:
            row |= {
                "loss": true + 0.02 * float(rng.normal()),
                "samples": 256,
                "packs": 1,
                "seconds": 0.004,
                "samples_per_second": 64_000.0,
                "grad_norm": 0.5,
                "lr": 1e-3,
                "memory_bytes": 3 * 2**28,
            }
        if step % (steps // 10) == 0:
            row |= {"held_out_loss": true + 0.01} | ({"held_out_nll": true + 0.01} if likelihood else {})
        rows.append(row)
    return rows


def plane_event(step: int, side: int = 24, **changed: object) -> dict[str, object]:
    """A standard normal distribution of the plane, as it is shown."""
    rng = np.random.default_rng(step)
    points = [np.round(rng.normal(size=(2, 200)), 3).tolist() for _ in range(2)]
    at = np.linspace(-4, 4, side)
    squares = at[None] ** 2 + at[:, None] ** 2
    return {
        "time": 5.0 + step,
        "kind": "density",
        "step": step,
        "shape": [2],
        "classes": 0,
        "features": 0,
        "likelihood": "exact",
        "columns": ["x", "y"],
        "inversion_error": 2.4e-6,
        "evaluations": {"encode": 1, "decode": 1},
        "log_likelihood": -2.84,
        "log_likelihood_rows": 1000,
        "cloud": {"data": points[0], "samples": points[1]},
        "map": {
            "x": [-4, 4],
            "y": [-4, 4],
            "side": side,
            "values": [round(float(v), 2) for v in (-squares / 2 - math.log(2 * math.pi)).ravel()],
        },
        **changed,
    }


def path(stages: int) -> dict[str, object]:
    """Points that go apart."""
    rng = np.random.default_rng(1)
    points = rng.normal(size=(2, 50))
    clouds = [np.round(points * (1 + i), 3).tolist() for i in range(stages)]
    return {"clouds": clouds, "stages": list(range(stages))}


def picture(seed: int, num: int = 8) -> str:
    """Images of noise, as text."""
    images = np.random.default_rng(seed).random((num, 1, 8, 8))
    return base64.b64encode(png_bytes(grid(images, 4))).decode()


def image_event(step: int, **changed: object) -> dict[str, object]:
    """Images of eight by eight, as they are shown."""
    return {
        "time": 5.0 + step,
        "kind": "density",
        "step": step,
        "shape": [1, 8, 8],
        "classes": 10,
        "features": 0,
        "likelihood": "exact",
        "columns": [],
        "inversion_error": 1e-4,
        "evaluations": {"encode": 14, "decode": 20},
        "log_likelihood": -130.0,
        "log_likelihood_rows": 128,
        "bits_per_dim": 2.93,
        "pictures": {"samples": picture(step), "data": picture(100), "between": picture(101)},
        **changed,
    }


def told(*events: dict[str, object]) -> Rows:
    """Beside what every run writes: what it learns from, the density, the end."""
    rows = {"time": 0.5, "kind": "rows", "shape": [2], "classes": 0, "features": 0, "rows": 9000}
    model = {"time": 1.0, "kind": "model", "density": "realnvp", "parameters": 9155, "trainable": 9155}
    return [
        {"time": 0.0, "kind": "start", "steps": 100},
        {**rows, "held_out_rows": 1000, "method": "realnvp"},
        model,
        *events,
        {"time": 900.0, "kind": "end", "step": 100, "reason": "done", "seconds": 8.0},
    ]
