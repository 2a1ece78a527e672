"""What agents come to: the built-in recipes over several seeds, each then acting by what it thinks best."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import Facts, child, environment, say
from benchmarks.results import Table
from benchmarks.settings import Options

SEEDS = 5
EPISODES = 50
RECIPES = {
    "ppo": ("CartPole-v1", 100_000, 500.0),
    "a2c": ("CartPole-v1", 500_000, 500.0),
    "trpo": ("CartPole-v1", 100_000, 500.0),
    "ddpg": ("Pendulum-v1", 20_000, -152.0),
}
"""Where each acts, for how many steps, and the mean return that the RL zoo of stable-baselines3 gives for it."""
PAGE = Path(__file__).parent.parent / "docs" / "returns.md"


def run(options: Options, scratch: Path) -> list[Table]:
    """Every recipe with every seed, in a process of its own."""
    env = environment(options, scratch)
    rows, raw = [], {}
    for name, (world, steps, reference) in RECIPES.items():
        taken = 2_000 if options.quick else steps
        found: list[Facts] = []
        for seed in range(options.rounds(SEEDS)):
            say(f" {name}, seed {seed}")
            given: dict[str, Any] = {"name": name, "world": world, "steps": taken, "seed": seed}
            found.append(child(train, env=env, threads=options.threads, **given))
        raw[name] = found
        returns = [float(facts["return"]) for facts in found]
        spread = statistics.stdev(returns) if len(returns) > 1 else 0.0
        rows.append(
            [
                *(name, world, f"{taken:,}", f"{statistics.mean(returns):.1f} ± {spread:.1f}"),
                ", ".join(f"{value:.0f}" for value in returns),
                *(f"{reference:.0f}", f"{statistics.median(facts['seconds'] for facts in found):.0f}"),
            ]
        )
    notes = [
        f"Mean return of {EPISODES} episodes of the agent as it is at the end, acting without chance; mean and "
        f"standard deviation over {options.rounds(SEEDS)} seeds, and each seed's.",
        "Seconds are those of the whole run, the median. 'The zoo's' is the mean return of the agents of the RL zoo.",
    ]
    columns = ["method", "environment", "steps", "return", "each seed", "the zoo's", "s"]
    table = Table("Returns over seeds", columns, rows, notes, raw)
    if not options.quick:
        PAGE.write_text(f"# Returns\nMade by `python -m benchmarks returns`.\n\n{table.markdown()}\n", encoding="utf-8")
    return [table]


def train(name: str, world: str, steps: int, seed: int, threads: int) -> Facts:
    """In a child: one run, and what its agent came to."""
    import time

    from danlu import train
    from danlu.engine.record import rows_of

    with tempfile.TemporaryDirectory() as folder:
        overrides = {
            "data.env": world,
            "data.env_steps": steps,
            "data.eval_episodes": EPISODES,
            "run.seed": seed,
            "run.eval_every": 1_000_000,
            "run.checkpoint_every": 1_000_000,
            "run.out": f"{folder}/run",
        }
        start = time.perf_counter()
        done = train(name, *(f"{key}={value}" for key, value in overrides.items()))
        seconds = time.perf_counter() - start
        measured = [row for row in rows_of(done.path / "metrics.jsonl") if "held_out_return" in row]
    return {"return": measured[-1]["held_out_return"], "seconds": seconds}
