"""A trained agent acts, by what it thinks best, where it was trained."""

from __future__ import annotations

from collections.abc import Iterator

from danlu.acting_files import Policy
from danlu.errors import UnsupportedError
from danlu.world.making import make
from danlu.world.recording import Recording, episode, has_screen, make_seen


def play(
    policy: Policy, *, episodes: int, seed: int, longest: int, pictures: bool = False, window: bool = False
) -> Iterator[Recording]:
    """Episodes one after another, each acted when it is asked for.

    Args:
        policy: what acts.
        episodes: how many.
        seed: of the first; each of the others has the next one.
        longest: steps after which an episode is cut short.
        pictures: whether what is seen is kept.
        window: whether it is shown on the screen instead.

    Raises:
        UnsupportedError: where it acts nowhere, there is no screen, or what draws is not there.
        RunError: where the environment fails.
    """
    if window:
        require_screen()
    env_id, options, limit = policy.env_id, policy.env_options, policy.time_limit
    if env_id is None:
        do = "Its report shows what it found: danlu report RUN."
        raise UnsupportedError("what finds a number acts nowhere", do=do)
    if window or pictures:
        made = make_seen(env_id, options, "human" if window else "rgb_array", time_limit=limit)
    else:
        made = make(env_id, options, time_limit=limit)
    try:
        for number in range(episodes):
            yield episode(made, policy.act, seed=seed + number, longest=longest, pictures=pictures and not window)
    finally:
        made.env.close()


def require_screen() -> None:
    """See that there is a screen to open a window on.

    Raises:
        UnsupportedError: where there is none.
    """
    if not has_screen():
        raise UnsupportedError("there is no screen here to open a window on", do="Write a GIF instead: --out FILE.gif.")
