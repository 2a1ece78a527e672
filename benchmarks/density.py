"""Densities: rows a second, learned from and made, against `zuko`, `nflows` and the loops that people write."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import density_peers as peers
from benchmarks.common import Facts, MissingError, Spread, child, environment, interleave, mebibytes, say, yes
from benchmarks.results import Table, installed
from benchmarks.settings import DENSITY_MEMORY, DENSITY_SPEED_UP, SEED, Options
from benchmarks.throughput import Clock

REPEATS = 5
WARM_UP, UPDATES = 20, 200
DRAWS = 4
"""How often rows are made, of which the first time is not timed."""
LR = 1e-3
OURS = "danlu"


@dataclass(frozen=True)
class Problem:
    """Rows, and the networks that learn them.

    Attributes:
        columns: numbers of a row.
        rows: of an update.
        hidden: widths of every network's layers.
        made: rows that are made at once.
        bound: by what its time is, which says what is asked of it.
        slow: whether equations are not solved here: of so wide networks that takes minutes.
    """

    columns: int
    rows: int
    hidden: Sequence[int]
    made: int
    bound: str
    slow: bool = False


PROBLEMS = {
    "plane": Problem(2, 256, (64, 64), 10_000, "overhead"),
    "table": Problem(16, 256, (64, 64), 10_000, "overhead"),
    "wide": Problem(64, 1024, (512, 512), 1024, "products", slow=True),
}
_QUICK = Problem(3, 64, (16, 16), 64, "overhead")
"""In place of each, where it is only to be seen that it runs."""
LAYERS = 6
"""Couplings, or autoregressive layers, on all sides."""
FIELDS: dict[str, dict[str, Any]] = {
    "nice": {"steps": LAYERS, "prior": "normal"},
    "realnvp": {"steps": LAYERS},
    "maf": {"steps": LAYERS},
    "spline_coupling": {"steps": LAYERS, "bins": peers.BINS, "bound": peers.BOUND},
    "cnf": {"tolerance": peers.TOLERANCE},
    "flow_matching": {"solver": "euler", "steps": peers.STEPS, "frequencies": 1},
    "diffusion": {"sampling_steps": peers.STEPS, "num_steps": peers.TIMES, "frequencies": 1},
}
"""What our recipes are told so that both sides compute the same."""
ACTIVATIONS = {"cnf": "silu", "flow_matching": "silu", "diffusion": "silu"}
"""Of those whose networks are not of ReLUs."""
SOLVED = ("cnf",)
"""Whose training solves equations: fewer updates are enough."""


def run(options: Options, scratch: Path) -> list[Table]:
    """Every method on every problem it is for, both sides."""
    for package in ("zuko", "nflows"):
        if not installed(package):
            raise MissingError(f"{package} is not installed")
    env = environment(options, scratch)
    rows, raw, alike = [], dict[str, Any](), True
    for problem, size in ({"plane": _QUICK} if options.quick else PROBLEMS).items():
        file = scratch / f"{problem}.npy"
        _write(file, size)
        for method, library in peers.PEERS.items():
            if size.slow and method in SOLVED:
                continue
            say(f" {problem}, {method}")
            steps = (WARM_UP if not options.quick else 2) + options.updates(UPDATES // (8 if method in SOLVED else 1))
            given = {
                "method": method,
                "problem": problem,
                "file": str(file),
                "steps": steps + 1,
                "quick": options.quick,
            }
            given["threads"] = options.threads
            sides = {side: partial(child, function, env=env, **given) for side, function in _SIDES.items()}
            found = interleave(sides, options.rounds(REPEATS))
            raw[f"{problem}, {method}"] = found
            rows.append(_row(problem, method, library, found))
            alike &= _alike(found)
    notes = [
        "The same networks, layers, rows of an update, optimiser (Adam without decay) and threads on both sides; "
        f"{LAYERS} couplings or autoregressive layers. " + "; ".join(_words(*it) for it in PROBLEMS.items()) + ".",
        "Learning: rows a second from the end of the warm-up to the end of the last update but one; ours by "
        "`danlu.train`, with its guards, clipping and metrics, theirs by the loop of their documentation with rows "
        "taken by a permutation (quicker than a DataLoader). Making: rows a second of one call, the median of "
        f"{DRAWS - 1}, of what was just learned.",
        f"Equations are solved to a tolerance of {peers.TOLERANCE:g}, relative and absolute, by Dormand and Prince's "
        f"pair, with the exact trace; fixed samplers take {peers.STEPS} steps.",
        "Memory is what the process grew by, at its largest, from when all is imported and made to the end of "
        "learning; of small problems that is a few MiB of libraries' own, so it is judged where it is the rows' and "
        "the networks'.",
        f"Medians of {options.rounds(REPEATS)} repeats (least–most), ratios of each repeat.",
    ]
    columns = [
        *("rows", "method", "peer", "learned/s", "× peer", "target", "met"),
        *("made/s", "× peer", "target", "met", "MiB", "of peer's", "target", "met"),
    ]
    return [Table("Densities against zuko and nflows", columns, rows, notes, raw, sound=alike)]


def _words(name: str, size: Problem) -> str:
    hidden = "×".join(map(str, size.hidden))
    return f"'{name}' has {size.columns} columns, {size.rows} rows an update and networks of {hidden}"


def _row(problem: str, method: str, library: str, found: dict[str, list[Facts]]) -> list[str]:
    target, judged = DENSITY_SPEED_UP[PROBLEMS[problem].bound], library != peers.LOOP
    cells = [problem, method, library]
    for speed in (_learned, _made):
        ours, theirs = ([speed(f) for f in found[side]] for side in (OURS, _THEIRS))
        faster = Spread.ratio(ours, theirs)
        cells += [Spread.of(ours).show(0), faster.show()]
        cells += [str(target), yes(target.met(faster.median))] if judged else ["–", "–"]
    grown = [[float(f["grown"]) for f in found[side]] for side in (OURS, _THEIRS)]
    share, judged = Spread.ratio(*grown), judged and PROBLEMS[problem].bound == "products"
    cells += [mebibytes(Spread.of(grown[0]).median), f"{share.median:.2f}"]
    return [*cells, *([str(DENSITY_MEMORY), yes(DENSITY_MEMORY.met(share.median))] if judged else ["–", "–"])]


def _learned(facts: Facts) -> float:
    ends, warm = facts["ends"], facts["warm"]
    return float(facts["rows"] * (len(ends) - warm) / (ends[-1] - ends[warm - 1]))


def _made(facts: Facts) -> float:
    return float(facts["made"])


def _alike(found: dict[str, list[Facts]]) -> bool:
    """Whether both sides have about as many parameters; ours may have a scaling besides."""
    ours, theirs = (found[side][0]["parameters"] for side in (OURS, _THEIRS))
    return bool(abs(ours - theirs) <= 0.02 * theirs)


def _write(to: Path, size: Problem) -> None:
    """Rows whose columns depend on each other, none of them Gaussian."""
    import numpy as np

    chance = np.random.default_rng(SEED)
    hidden = chance.standard_normal((20_000, size.columns))
    mixed = hidden @ chance.standard_normal((size.columns, size.columns)) / size.columns**0.5
    np.save(to, (mixed + np.sin(2 * hidden[:, ::-1])).astype(np.float32))


def danlu_side(method: str, problem: str, file: str, steps: int, threads: int, quick: bool) -> Facts:
    """In a child: `danlu.train` of the method's recipe, then `sample` of what came of it."""
    import torch

    from danlu import load_density, train

    size = _QUICK if quick else PROBLEMS[problem]

    class Listener(Clock):
        def metrics(self, row: dict[str, Any]) -> None:
            if "loss" in row:
                self.grown = self.memory - self.before  # the last row comes when all was measured and drawn again
                self.tick()

        before = grown = 0

        def event(self, event: dict[str, Any]) -> None:
            if event["kind"] == "start":  # all is imported and made by then
                self.before = _resident()

        def close(self) -> None:
            pass

    clock = Listener("cpu")
    with tempfile.TemporaryDirectory() as folder:
        model = {"name": "mlp", "hidden": list(size.hidden), "activation": ACTIVATIONS.get(method, "relu")}
        overrides = {
            "model": json.dumps(model),
            **{f"method.{name}": value for name, value in FIELDS[method].items()},
            "data.train": file,
            "data.step_rows": size.rows,
            "optimizer.lr": LR,
            "optimizer.weight_decay": 0,
            "run.steps": steps,
            "run.epochs": "null",
            "run.threads": threads,
            "run.eval_every": 1_000_000,
            "run.checkpoint_every": 1_000_000,
            "run.out": f"{folder}/run",
        }
        done = train(method, *(f"{key}={value}" for key, value in overrides.items()), listeners=[clock])
        density = load_density(done.path / "final")
    parameters = sum(p.numel() for p in density.parameters())
    made = _timed(lambda turn: torch.as_tensor(density.sample(size.made, seed=turn)), size.made)
    ends = clock.ends[:-1]  # the last one ends when all was measured again
    return _facts(ends, clock.grown, parameters, size, made, quick)


def peer_side(method: str, problem: str, file: str, steps: int, threads: int, quick: bool) -> Facts:
    """In a child: the loop of the library's documentation, then its `sample`."""
    import numpy as np
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    size, library = _QUICK if quick else PROBLEMS[problem], peers.PEERS[method]
    x = torch.from_numpy(np.load(file))
    x = (x - x.mean(0)) / x.std(0)
    peer = peers.make(library, method, size.columns, size.hidden, LAYERS)
    clock, optimizer = Clock("cpu"), torch.optim.Adam(peer.parameters, lr=LR)
    before = _resident()
    while len(clock.ends) < steps:
        order = torch.randperm(len(x))
        for start in range(0, len(x) - size.rows + 1, size.rows):
            loss = peer.loss(x[order[start : start + size.rows]])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            clock.tick()
            if len(clock.ends) == steps:
                break
    peer.eval()
    parameters = sum(p.numel() for p in peer.parameters)
    with torch.no_grad():
        made = _timed(lambda _: peer.sample(size.made), size.made)
    return _facts(clock.ends[:-1], clock.memory - before, parameters, size, made, quick)


_THEIRS = "peer"
_SIDES = {OURS: danlu_side, _THEIRS: peer_side}


def _facts(ends: list[float], grown: float, parameters: int, size: Problem, made: float, quick: bool) -> Facts:
    return {
        "ends": ends,
        "warm": 2 if quick else WARM_UP,
        "rows": size.rows,
        "grown": grown,
        "parameters": parameters,
        "made": made,
    }


def _timed(make: Callable[[int], Any], num: int) -> float:
    """Rows a second; the first call is not timed."""
    import statistics

    seconds = []
    for turn in range(DRAWS):
        began = time.perf_counter()
        make(turn)
        seconds.append(time.perf_counter() - began)
    return num / statistics.median(seconds[1:])


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)
