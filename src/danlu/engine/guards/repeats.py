"""Data that are read again, or end too soon, when no one asked for it."""

from __future__ import annotations


class Repeats:
    """Follows the passes over the data.

    Args:
        asked: passes the recipe asks for; None when it only names steps.
        steps: updates of the run, if they are known.
    """

    def __init__(self, asked: int | None, *, steps: int | None = None) -> None:
        self._steps = steps
        self._silent = asked is not None

    def note(self, step: int, epochs: float) -> str | None:
        """Once a sentence, when the data begin again unasked.

        Args:
            step: updates done.
            epochs: passes over the data by then, the unfinished one by its share.
        """
        if self._silent or epochs <= 1:
            return None
        self._silent = True
        passes = "" if self._steps is None else f", about {max(epochs, epochs * self._steps / step):.1f} times in all"
        return (
            f"the data are read a second time from step {step} on{passes}: "
            "give more data, or say run.epochs, if that is not meant"
        )

    def resumed(self, epochs: float) -> None:
        """The run goes on after so many passes: what was told of them before is not told again."""
        self._silent = self._silent or epochs > 1

    @staticmethod
    def ended(step: int, share: float) -> str | None:
        """A sentence, when the data ended before the run was to.

        Args:
            step: updates done.
            share: of the run that is done.
        """
        return f"the data ended after {step} updates, before the run was to" if share < 1 else None
