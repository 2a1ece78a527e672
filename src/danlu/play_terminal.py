"""`danlu play`: how a trained agent acts, as words on a terminal and as JSON lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console as Rich

from danlu.engine.record import json_line
from danlu.errors import RecipeError
from danlu.gif import write_gif
from danlu.playing import Episode, Make, Policy, Record, play, recorded


def play_run(
    run: str | Path,
    *,
    episodes: int,
    seed: int,
    longest: int,
    out: Path | None = None,
    window: bool = False,
) -> list[Episode]:
    """Have what a run trained act; see `show_play`.

    Args:
        run: its directory, or what came of it.
        episodes: how many.
        seed: of the first; each of the others has the next one.
        longest: steps after which an episode is cut short.
        out: a GIF to be written of all of them.
        window: whether it is shown on the screen as it goes.
    """
    from danlu.acting_files import load_agent
    from danlu.world.making import make
    from danlu.world.recording import record

    require_place(out, window)
    return show_play(
        load_agent(run),
        episodes=episodes,
        seed=seed,
        longest=longest,
        make=make,
        record=record,
        out=out,
        window=window,
    )


def show_play(
    policy: Policy,
    *,
    episodes: int,
    seed: int,
    longest: int,
    make: Make,
    record: Record,
    out: Path | None = None,
    window: bool = False,
) -> list[Episode]:
    """Act some episodes, and tell of each what it returned and how long it was.

    Args:
        policy: what acts.
        episodes: how many.
        seed: of the first; each of the others has the next one.
        longest: steps after which an episode is cut short.
        make: makes the environment.
        record: acts an episode and keeps what was seen.
        out: a GIF to be written of all of them.
        window: whether it is shown on the screen as it goes.

    Raises:
        RecipeError: when the GIF has no place, or is asked for beside a window.
        UnsupportedError: where there is no screen, or what draws is not installed.
        RunError: where the environment cannot be acted in.
    """
    require_place(out, window)
    acted: Iterator[Episode]
    if out is None:
        acted = play(policy, episodes=episodes, seed=seed, longest=longest, make=make, window=window)
    else:
        acted = recorded(policy, episodes=episodes, seed=seed, longest=longest, record=record)
    done: list[Episode] = []
    for episode in acted:
        _tell(len(done), episode)
        done.append(episode)
    if out is not None:
        frames = [frame for episode in done for frame in episode.frames]
        write_gif(out, frames, done[0].frames_per_second)
    _conclude(done, out)
    return done


def require_place(out: Path | None, window: bool) -> None:
    """See that a GIF can be written where it is asked for, before anything is acted.

    Raises:
        RecipeError: where it cannot.
    """
    if out is None:
        return
    if window:
        raise RecipeError("a window shows what a GIF would hold", where="--window", do="Give --out or --window.")
    if out.suffix.lower() != ".gif":
        raise RecipeError("what is written is a GIF", where=out, do=f"Name it {out.stem}.gif.")
    if not out.parent.is_dir():
        raise RecipeError("its folder does not exist", where=out, do="Make it, or name another.")


def _tell(number: int, episode: Episode) -> None:
    if not sys.stdout.isatty():
        row = {"episode": number, "seed": episode.seed, "return": episode.returned, "length": episode.length}
        print(json_line({**row, "whole": episode.whole}), flush=True)
        return
    cut = "" if episode.whole else " (cut short)"
    came = f"return [bold]{episode.returned:.6g}[/], {episode.length:,} steps{cut}"
    Rich().print(f"episode {number + 1}, seed {episode.seed}: {came}", highlight=False)


def _conclude(done: list[Episode], out: Path | None) -> None:
    returns = np.array([episode.returned for episode in done])
    mean, deviation = float(returns.mean()), float(returns.std())
    if not sys.stdout.isatty():
        written = {} if out is None else {"gif": str(out)}
        print(json_line({"episodes": len(done), "return_mean": mean, "return_std": deviation, **written}), flush=True)
        return
    if len(done) > 1:
        Rich().print(f"mean return: [bold]{mean:.6g}[/] ± {deviation:.3g}", highlight=False)
    if out is not None:
        Rich().print(f"gif: {out}", soft_wrap=True, markup=False)
