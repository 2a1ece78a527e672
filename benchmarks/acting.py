"""Learning from acting: environment steps a second against stable-baselines3, and the time to a return."""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import Facts, MissingError, Spread, child, environment, interleave, say, yes
from benchmarks.results import Table, installed
from benchmarks.settings import ACTING_SPEED_UP, Options

REPEATS = 3
OURS = "danlu"
AVERAGED = 20
"""Episodes whose mean return must reach what is asked."""


@dataclass(frozen=True)
class Trial:
    """One method in one environment, as both sides run it.

    Attributes:
        env: Gymnasium's name.
        num_envs: environments side by side.
        steps: of all environments.
        reached: the return whose first time is told.
        peer: package and class of the other side.
        settings: what the other side is told so that it does what our recipe of the method's name says.
        linear: which of its settings fall to 0 over the run.
        policy: the same of its networks.
    """

    env: str
    num_envs: int
    steps: int
    reached: float
    peer: tuple[str, str]
    settings: dict[str, Any]
    linear: Sequence[str] = ()
    policy: dict[str, Any] | None = None


_SB3, _ADAM = "stable_baselines3", {"optimizer_kwargs": {"eps": 1e-5}}
TRIALS = {
    "ppo": Trial(
        *("CartPole-v1", 8, 100_000, 475.0, (_SB3, "PPO")),
        {"n_steps": 32, "batch_size": 256, "n_epochs": 20, "gamma": 0.98, "gae_lambda": 0.8, "learning_rate": 1e-3}
        | {"clip_range": 0.2},
        linear=("learning_rate", "clip_range"),
        policy=_ADAM,
    ),
    "a2c": Trial(
        *("CartPole-v1", 8, 100_000, 475.0, (_SB3, "A2C")),
        {"n_steps": 5, "gamma": 0.99, "gae_lambda": 1.0, "learning_rate": 7e-4, "use_rms_prop": False},
        policy=_ADAM,
    ),
    "trpo": Trial(
        *("CartPole-v1", 2, 100_000, 475.0, ("sb3_contrib", "TRPO")),
        {"n_steps": 512, "batch_size": 512, "gamma": 0.99, "gae_lambda": 0.95, "learning_rate": 1e-3}
        | {"n_critic_updates": 20, "cg_damping": 1e-3},
        policy=_ADAM,
    ),
    "ddpg": Trial(
        *("Pendulum-v1", 1, 20_000, -200.0, (_SB3, "DDPG")),
        {"gamma": 0.98, "buffer_size": 200_000, "learning_starts": 10_000, "batch_size": 256, "learning_rate": 1e-3}
        | {"tau": 0.005, "train_freq": 1, "gradient_steps": 1},
        policy={"net_arch": [400, 300]},
    ),
}


def run(options: Options, scratch: Path) -> list[Table]:
    """Every method on both sides."""
    if not (installed("stable_baselines3") and installed("sb3_contrib")):
        raise MissingError("stable-baselines3 or sb3-contrib is not installed")
    env = environment(options, scratch, DANLU_CACHE=str(scratch / "tokens"))
    rows, raw = [], {}
    for name, trial in TRIALS.items():
        say(f" {name}")
        steps = options.steps or (4_000 if options.quick else trial.steps)
        given = {"name": name, "steps": steps, "threads": options.threads}
        peer = ".".join(trial.peer)
        repeats = options.rounds(REPEATS)
        sides = {OURS: (danlu_side, iter(range(repeats))), peer: (sb3_side, iter(range(repeats)))}
        found = interleave(
            {side: partial(_next, function, seeds, env, given) for side, (function, seeds) in sides.items()}, repeats
        )
        raw[name] = found
        rows += [_row(name, trial, side, found, peer) for side in sides]
    notes = [
        "The same networks, initial weights' distribution, hyperparameters (the RL zoo's), optimiser (Adam) and "
        "threads on both sides; on both, A2C has Adam in place of RMSprop, and TRPO lambda 0.95 in place of 0.98.",
        "Steps a second between the first turn and the last; for DDPG after the steps before its first update. "
        "'All' is the whole call: building, learning, and saving what came of it.",
        f"The return is reached when the last {AVERAGED} episodes have it on average, and its time is that from the "
        "first turn's end, so without imports; a dash where some repeat did not, and '>' where it was the peer's: then "
        "its whole run counts.",
        f"Medians of {options.rounds(REPEATS)} seeds (least–most), ratios seed by seed.",
    ]
    columns = [
        "method",
        "environment",
        "side",
        "steps/s",
        "× peer",
        "target",
        "met",
        "all, s",
        "return",
        "reached in, s",
        "× sooner",
    ]
    return [Table("Acting against stable-baselines3", columns, rows, notes, raw)]


def _next(function: Any, seeds: Any, env: dict[str, str], given: dict[str, Any]) -> Facts:
    """One measurement, of the side's next seed."""
    return child(function, env=env, seed=next(seeds), **given)


def _row(name: str, trial: Trial, side: str, found: dict[str, list[Facts]], peer: str) -> list[str]:
    def speeds(of: str) -> list[float]:
        return [float(f["speed"]) for f in found[of]]

    faster, target = Spread.ratio(speeds(side), speeds(peer)), ACTING_SPEED_UP[name]
    reached, theirs = ([f["reached"] for f in found[of]] for of in (side, peer))
    times = [r for r in reached if r is not None]
    whole = [them["all"] if them["reached"] is None else them["reached"] for them in found[peer]]
    sooner = [them / us for us, them in zip(reached, whole, strict=True) if us is not None]
    return [
        *(name, trial.env, side, Spread.of(speeds(side)).show(0), faster.show()),
        *((str(target), yes(target.met(faster.median))) if side == OURS else ("–", "–")),
        Spread.of([float(f["all"]) for f in found[side]]).show(1),
        f"{trial.reached:g}",
        Spread.of(times).show(1) if len(times) == len(reached) else "–",
        ("> " if None in theirs else "") + Spread.of(sooner).show() if side == OURS and sooner else "–",
    ]


@dataclass
class Turns:
    """When how many steps were done; how many episodes had ended since the last time, and their mean return."""

    seconds: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    ended: list[tuple[int, float]] = field(default_factory=list)

    def add(self, began: float, steps: int, episodes: int, returned: float) -> None:
        self.seconds.append(time.perf_counter() - began)
        self.steps.append(steps)
        self.ended.append((episodes, episodes * returned))

    def facts(self, wanted: float, began: float) -> Facts:
        """Steps a second from the first turn's end to the last's, the time to a return, and that of the whole call."""
        speed = (self.steps[-1] - self.steps[0]) / (self.seconds[-1] - self.seconds[0])
        return {"speed": speed, "reached": self._reached(wanted), "all": time.perf_counter() - began}

    def _reached(self, wanted: float) -> float | None:
        """Seconds from the first turn's end until the last episodes had a return."""
        last = deque[tuple[int, float]]()
        for seconds, ended in zip(self.seconds, self.ended, strict=True):
            last.append(ended)
            while sum(n for n, _ in last) - last[0][0] >= AVERAGED:
                last.popleft()
            num = sum(n for n, _ in last)
            if num >= AVERAGED and sum(total for _, total in last) / num >= wanted:
                return seconds - self.seconds[0]
        return None


def danlu_side(name: str, steps: int, threads: int, seed: int) -> Facts:
    """In a child: `danlu.train` of the built-in recipe of the method's name."""
    from danlu import train

    trial, turns = TRIALS[name], Turns()
    overrides = {
        "data.env": trial.env,
        "data.num_envs": trial.num_envs,
        "data.env_steps": steps,
        "run.seed": seed,
        "run.threads": threads,
    }
    if name == "ddpg":
        overrides["method.start"] = min(trial.settings["learning_starts"], steps // 2)
    began = time.perf_counter()

    class Listener:
        def metrics(self, row: dict[str, Any]) -> None:
            if "total_env_steps" in row:
                turns.add(began, int(row["total_env_steps"]), int(row["episodes"]), row.get("return", 0.0))

        def event(self, event: dict[str, Any]) -> None:
            pass

        def close(self) -> None:
            pass

    with tempfile.TemporaryDirectory() as folder:
        overrides["run.out"] = f"{folder}/run"
        train(name, *(f"{key}={value}" for key, value in overrides.items()), listeners=[Listener()])
    return turns.facts(trial.reached, began)


def sb3_side(name: str, steps: int, threads: int, seed: int) -> Facts:
    """In a child: the peer's `learn`, as its users call it."""
    import importlib

    import numpy as np
    import torch
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.noise import NormalActionNoise

    torch.set_num_threads(threads)
    trial, turns = TRIALS[name], Turns()
    package, kind = trial.peer
    settings = dict(trial.settings)
    for key in trial.linear:
        settings[key] = partial(lambda start, left: left * start, settings[key])
    every = 500 if name == "ddpg" else 1
    if name == "ddpg":
        settings["action_noise"] = NormalActionNoise(np.zeros(1), 0.1 * np.ones(1))
        settings["learning_starts"] = min(settings["learning_starts"], steps // 2)
    began = time.perf_counter()

    class Watch(BaseCallback):
        """Tells of each rollout; of the off-policy ones, each of which is a step, at intervals."""

        def _on_training_start(self) -> None:
            self.ended: list[float] = []

        def _on_step(self) -> bool:
            self.ended += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
            return True

        def _on_rollout_end(self) -> None:
            if self.num_timesteps % every == 0 and self.num_timesteps > settings.get("learning_starts", 0):
                turns.add(began, self.num_timesteps, len(self.ended), float(np.mean(self.ended or [0.0])))
                self.ended = []

    envs = make_vec_env(trial.env, trial.num_envs, seed=seed)
    peer = getattr(importlib.import_module(package), kind)
    model = peer("MlpPolicy", envs, seed=seed, device="cpu", policy_kwargs=trial.policy, **settings)
    model.learn(steps, callback=Watch())
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model")
    return turns.facts(trial.reached, began)
