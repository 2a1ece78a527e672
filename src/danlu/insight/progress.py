"""Whether an agent has learned: what its returns, or its errors, say from beginning to end.

- Fell back: it was clearly better before.
- No better than at first: the last quarter is as the first measurement was, but for noise.
- Still improving: the last quarter is clearly better than the one before it.
- Levelled off: it got better, and stays so.

Noise is had from how far neighbouring measurements lie apart, so that no rule depends on the rewards' scale.

References:
    Henderson et al., 2018, "Deep reinforcement learning that matters", https://arxiv.org/abs/1709.06560
    von Neumann, 1941, "Distribution of the ratio of the mean square successive difference to the variance",
    https://doi.org/10.1214/aoms/1177731677
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from danlu.insight.curve import Curve
from danlu.insight.fit import NOISE, Fit

MIN_MEASURED = 4
"""A quarter of fewer is no measurement."""
LOST = 0.1
"""A tenth of all that was gained is more than returns sway by at the end of a run that went well."""
GAINED = 0.05
"""A twentieth of all that was gained, within a quarter of the run, is worth going on for."""
SHRUNK = 0.5
"""An error that is not halved over a run has not converged to anything."""

MIN_OCTAVES = 5
"""Doublings of the steps, of which a power law shows in fewer also where there is none."""
_ALIKE = 32
"""More errors of one octave say little more: neighbours of a run are alike."""
EXPLAINED = 0.8
"""Of an error's course, on logarithmic axes, by a straight line: one that explains less is not worth telling."""


def judge_returns(train: Curve, held_out: Curve) -> Fit:
    """Judges what was learned by held-out returns, or by those of training where none were measured.

    Example:
        >>> steps = list(range(40))
        >>> judge_returns(Curve.of([], []), Curve.of(steps, [min(step, 20) for step in steps])).verdict
        'levelled off'
    """
    curve, what = (held_out, "held-out return") if len(held_out) >= MIN_MEASURED else (train, "training return")
    if len(curve) < MIN_MEASURED:
        return Fit("too early to tell", f"Returns were measured {len(curve)} times so far; {MIN_MEASURED} are needed.")
    quarters = np.array_split(curve.values, 4)
    begun = curve.values[:1] if curve is held_out else quarters[0]
    first, last = float(begun.mean()), float(quarters[3].mean())
    window = max(1, len(curve) // 8)
    best, best_step = _best(curve, window)
    gain, sways = best - first, _Noise(curve.values)
    span = f"The {what} went from {first:.4g} to {last:.4g}"
    if best - first <= sways(window, len(begun)):
        return Fit("no better than at first", f"{span}: nothing was gained.")
    if best - last > max(LOST * gain, sways(window, len(quarters[3]))):
        return Fit("fell back", f"{span}, and was {best:.4g} around step {best_step:,}.")
    if last - first <= sways(len(begun), len(quarters[3])):
        return Fit("no better than at first", f"{span}, which is no more than it sways.")
    if last - float(quarters[2].mean()) > max(GAINED * gain, sways(len(quarters[2]), len(quarters[3]))):
        return Fit("still improving", f"{span}, and still rises: more steps would help.")
    return Fit("levelled off", f"{span}, where it stays.")


def judge_error(error: Curve, name: str) -> Fit:
    """Judges what converges by its error, and how fast that falls: e ~ step^rate, where it does so.

    Args:
        error: at least zero.
        name: what it is of.

    Example:
        >>> steps = list(range(1, 1024))
        >>> judge_error(Curve.of(steps, [step**-0.5 for step in steps]), "error").sentence
        'The error went from 1 to 0.033, about as step^-0.5.'
    """
    if len(error) < MIN_MEASURED:
        return Fit("too early to tell", f"The {name} was measured {len(error)} times so far.")
    quarters = np.array_split(error.values, 4)
    last = float(quarters[3].mean())
    rate = _rate(error)
    about = "" if rate is None else f", about as step^{rate:.1f}"
    sentence = f"The {name} went from {error.values[0]:.4g} to {last:.2g}{about}."
    return Fit("converging" if last <= SHRUNK * float(error.values[0]) else "not converging", sentence)


def _best(curve: Curve, window: int) -> tuple[float, int]:
    """The largest mean of so many neighbours, and where."""
    total = np.concatenate([[0.0], np.cumsum(curve.values)])
    means = (total[window:] - total[:-window]) / window
    at = int(means.argmax())
    return float(means[at]), int(curve.steps[at + window // 2])


class _Noise:
    """How far means lie apart by chance, from successive differences, whose median lone jumps do not move."""

    def __init__(self, values: Float[np.ndarray, " N"]) -> None:
        self._deviation = float(np.median(np.abs(np.diff(values)))) / 0.954  # of normal ones: sqrt(2) times 0.6745

    def __call__(self, num: int, other: int) -> float:
        """Of the means of so many values, and of so many others."""
        return NOISE * self._deviation * (1 / num + 1 / other) ** 0.5


def _rate(error: Curve) -> float | None:
    """The power of the steps by which it falls, by its root mean square in each octave; None where that is no line."""
    positive = error.where((error.values > 0) & (error.steps > 0))
    octaves = np.floor(np.log2(positive.steps)).astype(int)
    known, counts = np.unique(octaves, return_counts=True)
    known, counts = known[counts >= MIN_MEASURED], counts[counts >= MIN_MEASURED]
    if len(known) < MIN_OCTAVES:
        return None
    at = np.array([np.log2(positive.steps[octaves == octave]).mean() for octave in known])
    size = np.array([0.5 * np.log2(np.mean(positive.values[octaves == octave] ** 2)) for octave in known])
    weights = np.sqrt(np.minimum(counts, _ALIKE))
    slope, start = np.polyfit(at, size, 1, w=weights)
    left = np.average((size - start - slope * at) ** 2, weights=weights)
    spread = np.average((size - np.average(size, weights=weights)) ** 2, weights=weights)
    return float(slope) if left <= (1 - EXPLAINED) * spread else None
