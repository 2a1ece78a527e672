"""All guards of a run, as its loop asks them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from danlu.engine.guards.clock import Clock
from danlu.engine.guards.config import GuardConfig
from danlu.engine.guards.disk import crowded, room
from danlu.engine.guards.repeats import Repeats
from danlu.engine.guards.skips import Skips
from danlu.engine.guards.spike import Spike
from danlu.engine.guards.weights import Motion, same_weights
from danlu.engine.learner import Learner, Measured
from danlu.errors import RunError


class Verdict(NamedTuple):
    """What is to become of an update that was computed.

    Attributes:
        action: whether it is taken, skipped, or undone with those since the last checkpoint.
        sentence: why, where it is not taken.
    """

    action: Literal["take", "skip", "rollback"] = "take"
    sentence: str = ""


class Guards:
    """Watches a run, and says what it sees through one function.

    Args:
        config: what is watched.
        updater: what is watched at work.
        clock: how much time there is.
        repeats: whether data are to be read again.
        say: told a warning, and of which step it is.
    """

    def __init__(
        self, config: GuardConfig, updater: Learner, clock: Clock, repeats: Repeats, say: Callable[[str, int], None]
    ) -> None:
        self._config, self._updater, self._say = config, updater, say
        self.clock, self._repeats = clock, repeats
        self._spike = Spike(window=config.spike_window, threshold=config.spike_threshold)
        self._skips = Skips(config.most_skips)
        self._troubled = 0
        self._motion: Motion | None = None

    def begin(self) -> None:
        """Look at what will be compared, before the first update of a session."""
        if self._config.unmoved_after is not None:
            self._motion = Motion(
                self._updater.policy, after=self._config.unmoved_after, ranks=self._updater.parallel.ranks
            )

    def before_checkpoints(self, checkpoints: Path, num_bytes: int, keep: int, present: int) -> None:
        """Look whether all checkpoints that there will be at once have room; see `danlu.engine.guards.disk.crowded`."""
        if told := crowded(checkpoints, num_bytes, keep, present):
            self._say(told, 0)

    def judge(self, step: int, measured: Measured, norm: float, groups: Sequence[Any]) -> Verdict:
        """What is to become of an update, before it moves a weight.

        Raises:
            RunError: when the run is to stop, or has skipped too many.
        """
        loss = measured.metrics["loss"]
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return self._not_finite(step, groups)
        jump = None if self._config.spike == "ignore" else self._spike.note(loss)
        if jump is None:
            return Verdict()
        parallel = self._updater.parallel
        every = parallel.ranks.gather(self._updater.places(groups))[:: parallel.ring]
        sentence = jump.sentence(step, [place for each in every for place in each])
        if self._config.spike == "warn":
            self._say(sentence, step)
            return Verdict()
        return self._passed_over("rollback" if self._config.spike == "rollback" else "skip", step, sentence)

    def _not_finite(self, step: int, groups: Sequence[Any]) -> Verdict:
        sentence = self._updater.blame(groups, step - 1)
        if self._config.nonfinite == "stop":
            raise RunError(
                f"{sentence}; no weight was changed",
                do="Look at these samples or lower optimizer.lr, or leave such updates out: run.guards.nonfinite=skip.",
            )
        return self._passed_over(self._config.nonfinite, step, sentence)

    def _passed_over(self, action: Literal["skip", "rollback"], step: int, sentence: str) -> Verdict:
        self._skips.skipped(step, sentence)
        self._troubled = step
        return Verdict(action, sentence)

    def taken(self, step: int, epochs: float) -> None:
        """An update has moved the weights."""
        if step >= self._troubled:
            self._skips.taken()
        if self._motion is not None and (told := self._motion.note()):
            self._say(told, step)
        if told := self._repeats.note(step, epochs):
            self._say(told, step)

    def turned(self, step: int, saving: float) -> None:
        """An update and all that follows it is done."""
        if told := self.clock.turned(step, saving=saving):
            self._say(told, step)

    def before_checkpoint(self, folder: Path, num_bytes: int) -> None:
        """See that what is to be written has room, and is the same on all ranks that hold all of it.

        Raises:
            RunError: when it has not, or is not.
        """
        parallel = self._updater.parallel
        parallel.ranks.lead(lambda: room(folder, num_bytes))
        if self._config.same_weights and parallel.mode == "ddp":
            same_weights(self._updater.policy, parallel.ranks)

    def ended(self, step: int, share: float) -> None:
        """The run ended with so much of it done."""
        if told := self._repeats.ended(step, share):
            self._say(told, step)

    def state_dict(self) -> dict[str, Any]:
        """What of the run so far they go by, as JSON."""
        return {"spike": self._spike.state_dict(), "skips": self._skips.state_dict(), "troubled": self._troubled}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._spike.load_state_dict(state["spike"])
        self._skips.load_state_dict(state["skips"])
        self._troubled = int(state["troubled"])

    def resumed(self, epochs: float) -> None:
        """The run goes on after so many passes over the data."""
        self._repeats.resumed(epochs)
