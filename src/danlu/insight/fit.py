"""Whether a model fits: what the training and the held-out loss say together.

- Over-fitting: the held-out loss rises while the training loss falls, or stands still far above it.
- Under-fitting: both losses still fall fast at the end, or the model hardly beats guessing.
- Fitting well: both have levelled off together.
- Not known: nothing held out, too short a run, or a run that diverged.

References:
    Prechelt, 1998, "Early stopping, but when?", https://doi.org/10.1007/3-540-49430-8_3
    Goodfellow, Bengio and Courville, 2016, "Deep Learning", chapter 5.2, https://www.deeplearningbook.org
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from danlu.insight.curve import Curve

Fitting: TypeAlias = Literal["under-fitting", "fitting well", "over-fitting", "not known"]
Improving: TypeAlias = Literal["levelled off", "still improving", "fell back", "no better than at first"]
Converging: TypeAlias = Literal["converging", "not converging"]
Open: TypeAlias = Literal["too early to tell", "not measured"]
Verdict: TypeAlias = Fitting | Improving | Converging | Open
"""Of what is fitted, of what acts, of what converges."""

MIN_STEPS = 40
"""Fewer leave too few points in the last quarter to tell a slope from noise."""
MIN_EVALUATIONS = 3
"""A low point and two evaluations after it: with fewer, one unlucky value would decide."""
TAIL = 0.25
"""The last quarter is "the end": long enough to average noise out, short enough to leave the steep start behind."""
RISE = 0.01
"""A rise of one percent above the lowest held-out loss is more than a fixed held-out set moves by itself."""
NOISE = 3.0
"""Three standard errors: one run in several hundred is misjudged by chance alone."""
WIDE_GAP = 0.15
"""Samples seen once leave the two losses within a few percent; repeated ones pull them apart well beyond this."""
STILL_FALLING = 0.03
"""A power law as steep as language models' takes two to three percent off in its last quarter; more is unfinished."""
FLAT = 0.005
"""Half a percent in the last quarter is no longer progress that anyone would wait for."""
GUESSING = 0.9
"""Above this share of log(vocabulary) the model knows little more than that there is a vocabulary."""


@dataclass(frozen=True)
class Fit:
    """How well the model fits, and the numbers behind it.

    `train_loss` is the mean over the last steps and `held_out_loss` the last evaluation, in nats a token.
    """

    verdict: Verdict
    sentence: str
    train_loss: float | None = None
    held_out_loss: float | None = None
    best_step: int | None = None


@dataclass(frozen=True)
class _Evidence:
    """What the rules look at; falls are over the last quarter of the run, all in nats a token."""

    train: float
    held_out: float
    best: float
    best_step: int
    train_at_best: float
    rise: float
    margin: float
    train_fall: float
    train_fall_error: float
    held_out_fall: float
    uniform: float | None
    gained: float | None

    @property
    def gap(self) -> float:
        """How far the held-out loss lies above the training loss, as a share of the latter."""
        return (self.held_out - self.train) / max(self.scale(self.train), 1e-12)

    @property
    def held_out_is_flat(self) -> bool:
        return self.held_out_fall <= FLAT * self.scale(self.held_out)

    def scale(self, level: float) -> float:
        """What a difference from this level is held against."""
        return abs(level) if self.gained is None else self.gained

    def share(self, difference: float, level: float) -> str:
        """The difference, in percent of that."""
        percent = 100 * difference / max(self.scale(level), 1e-12)
        return f"{percent:.1f} %{'' if self.gained is None else ' of all that was gained'}"

    def says(self, verdict: Verdict, sentence: str) -> Fit:
        return Fit(verdict, sentence, self.train, self.held_out, self.best_step)


def judge_fit(train: Curve, held_out: Curve, *, vocab_size: int | None = None, from_first: bool = False) -> Fit:
    """Judges the fit from the two loss curves.

    Args:
        train: the training loss of each step, nats a token.
        held_out: the held-out loss at some of the steps, nats a token.
        vocab_size: where known, so that a model that only guesses is recognised.
        from_first: whether differences are held against how far the held-out loss fell from its first value, rather
            than against the loss itself: for losses that may be anywhere, such as those of densities.

    Example:
        >>> steps = list(range(100))
        >>> falling = Curve.of(steps, [3.0 - 0.02 * step for step in steps])
        >>> judge_fit(falling, Curve.of([0, 20, 60, 99], [3.0, 2.6, 2.9, 3.3])).verdict
        'over-fitting'
    """
    if len(train) == 0:
        return Fit("not known", "No training step has been recorded yet.")
    if len(held_out) == 0:
        change = f"The training loss went from {train.values[0]:.3f} to {_level(train):.3f}"
        sentence = f"{change}, but nothing was held out, so learning cannot be told from learning by heart."
        return Fit("not known", sentence, train_loss=_level(train))
    if len(train) < MIN_STEPS or len(held_out) < MIN_EVALUATIONS:
        seen = f"{_plural(len(train), 'training step')} and {_plural(len(held_out), 'held-out evaluation')}"
        needed = f"at least {MIN_STEPS} and {MIN_EVALUATIONS} are needed"
        sentence = f"The run is too short to judge: {seen} so far, {needed}."
        return Fit("not known", sentence, _level(train), float(held_out.values[-1]))
    evidence = _measure(train, held_out, vocab_size, from_first)
    for rule in (_diverged, _risen, _guessing, _apart, _unfinished):
        fit = rule(evidence)
        if fit is not None:
            return fit
    return _well(evidence)


def _measure(train: Curve, held_out: Curve, vocab_size: int | None, from_first: bool) -> _Evidence:
    best = int(held_out.values.argmin())
    best_step, lowest = int(held_out.steps[best]), float(held_out.values[best])
    gained = float(held_out.values[0]) - lowest if from_first else None
    after = held_out.values[best + 1 :]
    before_best = train.where(train.steps <= max(best_step, train.steps[0]))
    tail_start = float(train.steps[-1] - TAIL * (train.steps[-1] - train.steps[0]))
    fall, error = _fall(train.where(train.steps >= tail_start))
    return _Evidence(
        train=_level(train),
        held_out=float(held_out.values[-1]),
        best=lowest,
        best_step=best_step,
        train_at_best=_level(before_best),
        # Both of the last two must be above, so that one bad evaluation at the end is no verdict.
        rise=float(after[-2:].min()) - lowest if len(after) > 1 else 0.0,
        margin=max(RISE * (abs(lowest) if gained is None else gained), NOISE * _jitter(held_out)),
        train_fall=fall,
        train_fall_error=error,
        held_out_fall=float(np.interp(tail_start, held_out.steps, held_out.values)) - float(held_out.values[-1]),
        uniform=math.log(vocab_size) if vocab_size and vocab_size > 1 else None,
        gained=gained,
    )


def _level(curve: Curve) -> float:
    """The mean over the last twentieth: the value now, without the noise of one step."""
    return float(curve.values[-max(len(curve) // 20, min(10, len(curve))) :].mean())


def _fall(curve: Curve) -> tuple[float, float]:
    """How far the least-squares line through the curve falls from end to end, and the standard error of that."""
    x, y = curve.steps - curve.steps.mean(), curve.values - curve.values.mean()
    spread = float(x @ x)
    if len(curve) < 3 or spread == 0.0:
        return 0.0, 0.0
    slope = float(x @ y) / spread
    residual = y - slope * x
    error = math.sqrt(float(residual @ residual) / (len(curve) - 2) / spread)
    length = float(x[-1] - x[0])
    return -slope * length, error * length


def _jitter(curve: Curve) -> float:
    """The standard deviation of independent noise on a smooth curve, from the median of its second differences.

    For independent noise the second difference has six times its variance; the median ignores the steep start.
    """
    second = np.abs(np.diff(curve.values, 2))
    return 1.4826 * float(np.median(second)) / math.sqrt(6.0) if len(second) >= 3 else 0.0


def _diverged(e: _Evidence) -> Fit | None:
    if e.rise <= e.margin or e.train <= e.train_at_best + e.margin:
        return None
    return e.says(
        "not known",
        f"Both losses have risen since step {e.best_step:,}: held-out from {e.best:.3f} to {e.held_out:.3f}, training "
        f"from {e.train_at_best:.3f} to {e.train:.3f}. The run diverged; a lower learning rate or a longer warm-up may "
        "help.",
    )


def _risen(e: _Evidence) -> Fit | None:
    if e.rise <= e.margin:
        return None
    return e.says(
        "over-fitting",
        f"The held-out loss was lowest at step {e.best_step:,} ({e.best:.3f}) and has since risen by "
        f"{e.share(e.held_out - e.best, e.best)} to {e.held_out:.3f}, while the training loss went from "
        f"{e.train_at_best:.3f} to {e.train:.3f}. Stop there, or use more data or stronger regularisation.",
    )


def _guessing(e: _Evidence) -> Fit | None:
    if e.uniform is None or e.train < GUESSING * e.uniform:
        return None
    return e.says(
        "under-fitting",
        f"The training loss ended at {e.train:.3f}, hardly below the {e.uniform:.3f} of guessing every token alike: "
        "train longer, or look at the learning rate and at what is trainable.",
    )


def _apart(e: _Evidence) -> Fit | None:
    if e.gap <= WIDE_GAP or not e.held_out_is_flat:
        return None
    return e.says(
        "over-fitting",
        f"The held-out loss ({e.held_out:.3f}) no longer falls and lies {e.share(e.held_out - e.train, e.train)} above "
        f"the training loss ({e.train:.3f}). If both come from the same source, more data or stronger regularisation "
        "would help.",
    )


def _unfinished(e: _Evidence) -> Fit | None:
    certain = e.train_fall > NOISE * e.train_fall_error
    steep = e.train_fall > STILL_FALLING * e.scale(e.train)
    if e.held_out_is_flat or not (certain and steep):
        return None
    return e.says(
        "under-fitting",
        f"In the last quarter of the run the training loss still fell by {e.train_fall:.3f} to {e.train:.3f} and the "
        f"held-out loss by {e.held_out_fall:.3f} to {e.held_out:.3f}: training longer would lower both.",
    )


def _well(e: _Evidence) -> Fit:
    side = "above" if e.gap >= 0 else "below"
    falls = f"{max(e.held_out_fall, 0.0):.3f} and {max(e.train_fall, 0.0):.3f}"
    return e.says(
        "fitting well",
        f"The held-out loss ended at {e.held_out:.3f}, {e.share(abs(e.held_out - e.train), e.train)} {side} the "
        f"training loss ({e.train:.3f}), and does not rise. In the last quarter of the run the two fell by just "
        f"{falls}.",
    )


def _plural(num: int, noun: str) -> str:
    return f"{num} {noun}{'' if num == 1 else 's'}"
