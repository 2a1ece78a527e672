"""`danlu play`: how a trained agent acts, as words on a terminal and as JSON lines elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from rich.console import Console as Rich

from danlu.acting_files import load_agent
from danlu.engine.record import json_line
from danlu.errors import RecipeError
from danlu.gif import write_gif
from danlu.playing import play
from danlu.world.recording import Recording


def play_run(
    run: str | Path, *, episodes: int, seed: int, longest: int, out: Path | None = None, window: bool = False
) -> list[Recording]:
    """Have what a run trained act; tell of each episode what it returned and how long it was.

    Args:
        run: its directory, or what came of it.
        episodes: see `danlu.playing.play`.
        seed: see there.
        longest: see there.
        out: a GIF to be written of all of them.
        window: see there.

    Raises:
        RecipeError: when the GIF has no place, or is asked for beside a window.
        DanluError: what `load_agent` and `play` raise.
    """
    _require_place(out, window)
    done: list[Recording] = []
    acted = play(
        load_agent(run), episodes=episodes, seed=seed, longest=longest, pictures=out is not None, window=window
    )
    for episode in acted:
        _tell(len(done), episode)
        done.append(episode)
    if out is not None:
        write_gif(out, [frame for episode in done for frame in episode.frames], done[0].frames_per_second)
    _conclude(done, out)
    return done


def _require_place(out: Path | None, window: bool) -> None:
    if out is None:
        return
    if window:
        raise RecipeError("a window shows what a GIF would hold", where="--window", do="Give --out or --window.")
    if out.suffix.lower() != ".gif":
        raise RecipeError("what is written is a GIF", where=out, do=f"Name it {out.stem}.gif.")
    if not out.parent.is_dir():
        raise RecipeError("its folder does not exist", where=out, do="Make it, or name another.")


def _tell(number: int, episode: Recording) -> None:
    if not sys.stdout.isatty():
        row = {"episode": number, "seed": episode.seed, "return": episode.rewards, "length": episode.length}
        print(json_line({**row, "whole": episode.whole}), flush=True)
        return
    cut = "" if episode.whole else " (cut short)"
    came = f"return [bold]{episode.rewards:.6g}[/], {episode.length:,} steps{cut}"
    Rich().print(f"episode {number + 1}, seed {episode.seed}: {came}", highlight=False)


def _conclude(done: list[Recording], out: Path | None) -> None:
    returns = np.array([episode.rewards for episode in done])
    mean, deviation = float(returns.mean()), float(returns.std())
    if not sys.stdout.isatty():
        written = {} if out is None else {"gif": str(out)}
        print(json_line({"episodes": len(done), "return_mean": mean, "return_std": deviation, **written}), flush=True)
        return
    if len(done) > 1:
        Rich().print(f"mean return: [bold]{mean:.6g}[/] ± {deviation:.3g}", highlight=False)
    if out is not None:
        Rich().print(f"gif: {out}", soft_wrap=True, markup=False)
