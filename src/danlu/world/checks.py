"""What goes into environments and comes out of them, held against their spaces.

Shapes and types are looked at value by value as they are gathered; bounds and numbers once, on the stacked array.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from danlu.errors import RunError, UnsupportedError

_FEW = 32  # numbers that are compared faster one by one


class Stacked:
    """A space as the arrays of N values of it.

    Args:
        space: what one value lies in.
        what: "observation" or "action", for sentences.

    Attributes:
        dtype: of an array of values.
        shape: of one value.

    Raises:
        UnsupportedError: for a space that is not made of numbers.
    """

    def __init__(self, space: Space[Any], what: str) -> None:
        if not isinstance(space, Box | Discrete | MultiBinary | MultiDiscrete):
            wrapper = " (gymnasium.wrappers.FlattenObservation)" if what == "observation" else ""
            do = f"Register it wrapped so that it has one array{wrapper} in a module, and name it: data.env=module:Id."
            said = f"{what}s lie in {type(space).__name__}, which has no array of its own"
            raise UnsupportedError(said, where="data.env", do=do)
        self.space = space
        self.what = what
        self.dtype = np.dtype(np.int64) if isinstance(space, Discrete) else np.dtype(space.dtype)  # type: ignore[arg-type]
        self.shape: tuple[int, ...] = tuple(space.shape or ())
        self.low, self.high = _bounds(space)
        self._bounded = _says_more(self.low, self.high, self.dtype)

    def empty(self, num: int) -> np.ndarray:
        """Room for values, ``[num, ...]``."""
        return np.empty((num, *self.shape), self.dtype)

    def check(self, value: Any, where: str) -> np.ndarray | int:
        """One value, when its shape and type are right; its bounds are for `wrong` to see.

        Raises:
            RunError: when they are not.
        """
        array = np.asarray(value)
        if array.shape != self.shape:
            what = f"an {self.what} has shape {array.shape}, and its space says {self.shape}"
            raise RunError(what, where=where, do="Mend the environment, or its space.")
        if isinstance(self.space, Discrete):
            if array.dtype.kind not in "iu":
                raise RunError(f"an {self.what} is {value!r}, and its space says {self.space}", where=where)
            return int(array)
        if not np.can_cast(array.dtype, self.dtype):
            what = f"an {self.what} is {array.dtype}, and its space says {self.dtype}"
            raise RunError(
                what, where=where, do=f"Let the environment give {self.dtype}, or its space say {array.dtype}."
            )
        return array

    def wrong(self, values: np.ndarray) -> int | None:
        """The first of N values that is outside the space or not a number, ``[N, ...]``; None where all are well."""
        if not self._bounded:
            return None
        if not self.shape and len(values) <= _FEW:
            few = values.tolist()
            if min(few) >= self.low and max(few) <= self.high:
                return None
        fine = (values >= self.low) & (values <= self.high)
        if np.count_nonzero(fine) == fine.size:  # several times faster than all()
            return None
        return int(np.flatnonzero(~fine.reshape(len(fine), -1).all(1))[0])

    def describe(self, value: np.ndarray) -> str:
        """What is wrong with a value, for a sentence."""
        if self.dtype.kind == "f" and not np.isfinite(value).all():
            return f"an {self.what} is not a number: {brief(value)}"
        return f"an {self.what} is outside its space {self.space}: {brief(value)}"


class Actions(Stacked):
    """The actions that N environments take.

    Args:
        space: of one of them.
        num_envs: N.
    """

    def __init__(self, space: Space[Any], num_envs: int) -> None:
        super().__init__(space, "action")
        self.num_envs = num_envs

    def array(self, actions: Any, where: str) -> np.ndarray:
        """Actions as a new array of the space's type, ``[N, ...]``.

        Args:
            actions: one for each environment.
            where: for a sentence.

        Raises:
            RunError: for a wrong shape or type, or an action outside its space.
        """
        given = np.asarray(actions)
        if given.shape != (self.num_envs, *self.shape):
            takes = (self.num_envs, *self.shape)
            what = f"actions have shape {given.shape}, and {self.num_envs} environments take {takes}"
            raise RunError(what, where=where)
        if self.dtype.kind in "iub" and given.dtype.kind not in "iub":
            raise RunError(f"actions are {given.dtype}, and these environments choose among {self.space}", where=where)
        bad = self.wrong(given)
        if bad is not None:
            do = "Clip what the agent does to the bounds." if self.dtype.kind == "f" else ""
            raise RunError(self.describe(given[bad]), where=f"{where}, environment {bad}", do=do)
        return np.array(given, self.dtype)


def reward_of(reward: Any, where: str) -> float:
    """A reward as a number, an array of one number being one, too.

    Raises:
        RunError: for anything else.
    """
    try:
        return float(np.asarray(reward).item())
    except (TypeError, ValueError):
        what = f"the reward is {brief(reward)}, which is not one number"
        raise RunError(what, where=where, do="Mend the environment's reward.") from None


def answer_of(answer: Any, where: str) -> tuple[Any, ...]:
    """What `step` gave, when that is five values.

    Raises:
        RunError: when it is not.
    """
    if not isinstance(answer, tuple) or len(answer) != 5:
        given = f"{len(answer)} values" if isinstance(answer, tuple) else f"a {type(answer).__name__}"
        do = "Let it give observation, reward, terminated, truncated and info, as Gymnasium has it."
        raise RunError(f"its step gives {given} where five are asked for", where=where, do=do)
    return answer


def raised(error: BaseException, done: str) -> str:
    """That something was raised while something was done, in one line."""
    said = " ".join(str(error).split())
    return f"it raised {type(error).__name__} when it was {done}" + (f": {said}" if said else "")


def brief(value: Any, longest: int = 160) -> str:
    """A value as short text."""
    value = value.item() if isinstance(value, np.generic) else value
    text = np.array2string(value, threshold=16, precision=6) if isinstance(value, np.ndarray) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= longest else text[:longest] + " ..."


def _bounds(space: Space[Any]) -> tuple[Any, Any]:
    if isinstance(space, Discrete):
        return int(space.start), int(space.start) + int(space.n) - 1
    if isinstance(space, MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    if isinstance(space, MultiBinary):
        return 0, 1
    assert isinstance(space, Box)
    if np.dtype(space.dtype).kind != "f":
        return space.low, space.high
    most = np.finfo(space.dtype).max  # so that what is infinite is outside, as what is no number is
    return np.maximum(space.low, -most), np.minimum(space.high, most)


def _says_more(low: Any, high: Any, dtype: np.dtype[Any]) -> bool:
    """Whether bounds say more than the type does, as those of a picture (uint8, 0 to 255) do not."""
    if dtype.kind in "iu":
        return bool((np.asarray(low) > np.iinfo(dtype).min).any() or (np.asarray(high) < np.iinfo(dtype).max).any())
    return dtype.kind == "f"
