"""How likely held-out rows are under every density, over seeds, with `zuko` beside ours; and what each can do."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import density_peers as peers
from benchmarks.common import Facts, MissingError, child, environment, say
from benchmarks.results import Table, installed
from benchmarks.settings import Options

SEEDS = 3
METHODS = ("nice", "realnvp", "maf", "spline_coupling", "cnf", "flow_matching", "diffusion")
DATA: dict[str, dict[str, Any]] = {
    "moons": {"data.train": "moons", "data.rows": 20_000, "data.held_out": 0.25},
    "checkerboard": {"data.train": "checkerboard", "data.rows": 20_000, "data.held_out": 0.25},
    "digits": {"data.train": "digits", "data.held_out": 0.2},
}
"""What each data set is, besides the recipe; their rows, and which are held out, are the same for all seeds."""
ZUKO = ("nice", "realnvp", "maf", "spline_coupling", "cnf")
"""Those that `zuko` has, too."""
_SHUFFLED = {"method.mixing": "shuffle", "optimizer.lr": 1e-3}
SOLVED = ("cnf", "flow_matching")
"""Those whose likelihood is had by solving an equation."""
LARGER: dict[tuple[str, str], dict[str, Any]] = {
    ("digits", "nice"): {**_SHUFFLED, "model.hidden": "[256,256]", "run.epochs": 200},
    ("digits", "realnvp"): {**_SHUFFLED, "model.hidden": "[128,128]", "run.epochs": 60},
    ("digits", "maf"): {**_SHUFFLED, "model.hidden": "[128,128]", "run.epochs": 100},
    ("digits", "spline_coupling"): {**_SHUFFLED, "model.hidden": "[128,128]", "run.epochs": 40},
    ("digits", "cnf"): {"model.hidden": "[256,256]", "run.epochs": 100},
    ("digits", "flow_matching"): {"model.hidden": "[512,512]", "run.epochs": 900},
    ("digits", "diffusion"): {"model.hidden": "[512,512]", "run.epochs": 900},
}
"""What recipes of the plane are told besides where rows are images: there are few of these, which are soon learned by
heart."""
EXACT = 8
"""Numbers of a row up to which zuko's continuous flow learns by the exact trace: it asks for one pass each."""
AT_ONCE = 512
PAGE = Path(__file__).parent.parent / "docs" / "likelihoods.md"


def run(options: Options, scratch: Path) -> list[Table]:
    """Every recipe on every data set with every seed, each in a process of its own on one core."""
    if not installed("zuko"):
        raise MissingError("zuko is not installed")
    env = environment(options, scratch) | {"OMP_NUM_THREADS": "1"}
    raw: dict[str, Any] = {}

    def one(side: str, method: str, data: str, seed: int) -> Facts:
        say(f" {data}, {method}, seed {seed}, {side}")
        given = {"method": method, "data": data, "seed": seed, "quick": options.quick}
        return child(ours if side == "danlu" else theirs, env=env, threads=1, **given)

    with ThreadPoolExecutor(options.threads) as pool:
        waited = {
            (data, method, side): [pool.submit(one, side, method, data, seed) for seed in range(options.rounds(SEEDS))]
            for data in DATA
            for method in METHODS
            for side in ("danlu", "zuko")
            if side == "danlu" or method in ZUKO
        }
        for data, method in product(DATA, METHODS):
            sides = {side: waited.get((data, method, side), []) for side in ("danlu", "zuko")}
            raw[f"{data}, {method}"] = {side: [run.result() for run in runs] for side, runs in sides.items()}
    tables = [_measured(raw, options), _able(raw)]
    if not options.quick:
        text = "\n".join(table.markdown() for table in tables)
        PAGE.write_text(f"# Likelihoods\nMade by `python -m benchmarks likelihoods`.\n\n{text}", encoding="utf-8")
    return tables


def _measured(raw: dict[str, Any], options: Options) -> Table:
    """Held-out likelihoods: a line a method, ours and zuko's of each data set."""
    rows = []
    for method in METHODS:
        cells = [method]
        for data in DATA:
            found = raw[f"{data}, {method}"]
            cells += [_spread(found["danlu"]), _spread(found["zuko"])]
            if data == "digits":
                cells.append(_bits(found["danlu"]))
        cells.append(f"{statistics.median(f['seconds'] for f in raw[f'moons, {method}']['danlu']):.0f}")
        rows.append(cells)
    columns = ["method"]
    for data in DATA:
        columns += [data, f"{data}, zuko", *(["bits/dim"] if data == "digits" else [])]
    notes = [
        "Mean log-likelihood of held-out rows in nats a row, in the data's own units, of images with uniform noise "
        f"that makes them continuous; mean and standard deviation over {options.rounds(SEEDS)} seeds of weights and "
        "order. Larger is better. Bits per dimension are made of it.",
        "zuko's have the same rows as our network sees them, networks of the same widths, as many layers, the same "
        "optimiser, schedule, updates and rows of an update; its flows are those named NICE (additive, and affine), "
        "MAF, NICE with splines, and CNF. On digits all mix the order of numbers at random between layers.",
        f"Equations are solved to a tolerance of {peers.TOLERANCE:g} where rows are scored, and as the recipe says "
        "while it learns. zuko's CNF learns images by Hutchinson's estimate of the trace (its exact one costs a pass a "
        "number) and is scored exactly. ≥: a lower bound, not the likelihood. Seconds are those of a run on moons, "
        "the median, each on one core.",
    ]
    return Table("Held-out log-likelihood", [*columns, "s"], rows, notes, raw)


def _able(raw: dict[str, Any]) -> Table:
    """What each can do: what its class says, and what that takes."""
    rows = []
    for method in METHODS:
        plane, images = (raw[f"{data}, {method}"]["danlu"][0] for data in ("moons", "digits"))
        rows.append(
            [
                *(method, _KINDS[plane["likelihood"]], "yes" if plane["one_step"] else "no"),
                f"{plane['decode']:,} / {images['decode']:,}",
                f"{plane['encode']:,} / {images['encode']:,}",
                f"{plane['error']:.0e} / {images['error']:.0e}",
                "yes" if plane["takes_images"] else "flat",
            ]
        )
    columns = ["method", "likelihood", "one step", "evaluations to sample", "to invert", "inversion error", "images"]
    notes = [
        "Evaluations: how often the network is asked, of moons and of digits, by the recipes as they are. 1 where rows "
        "go through once; an autoregressive flow is asked once a column to sample.",
        "Inversion error: the largest difference between held-out rows, as the network sees them, and what their codes "
        "decode to.",
    ]
    return Table("What each can do", columns, rows, notes)


_KINDS = {"exact": "exact", "bound": "a lower bound", "none": "none"}


def _spread(found: Sequence[Facts]) -> str:
    if not found or any(f["log_likelihood"] is None for f in found):
        return "–"
    values = [float(f["log_likelihood"]) for f in found]
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    bound = "≥ " if found[0].get("likelihood") == "bound" else ""
    return f"{bound}{statistics.mean(values):.3f} ± {deviation:.3f}"


def _bits(found: Sequence[Facts]) -> str:
    """Of images, from nats a row."""
    if any(f["log_likelihood"] is None for f in found):
        return "–"
    return f"{-statistics.mean(f['log_likelihood'] / f['size'] for f in found) / math.log(2):.3f}"


def _overrides(method: str, data: str, seed: int, threads: int, quick: bool) -> list[str]:
    given = {
        **DATA[data],
        **LARGER.get((data, method), {}),
        **({"data.rows": 1000} if quick and data != "digits" else {}),
        **({"run.epochs": "null", "run.steps": 5} if quick else {}),
        "data.seed": 0,
        "run.seed": seed,
        "run.threads": threads,
        "run.checkpoint_every": 1_000_000,
        "run.eval_every": 1_000_000,
    }
    return [f"{key}={value}" for key, value in given.items()]


def ours(method: str, data: str, seed: int, threads: int, quick: bool) -> Facts:
    """In a child: one run, and how likely held-out rows are then."""
    import torch

    from danlu import train
    from danlu.density import Rows
    from danlu.density_files import read_density
    from danlu.reading import read_recipe

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        done = train(method, *_overrides(method, data, seed, threads, quick), f"run.out={folder}/run")
        seconds = time.perf_counter() - began
        framed, _ = read_density(done.path)
        recipe = read_recipe(done.path / "recipe.yaml")
        finely = [f"method.tolerance={peers.TOLERANCE}"] if method in SOLVED else []
        scored, _ = read_density(done.path, finely)
    _, held_out = _arrays(recipe)
    density, some = framed.density, _some(min(AT_ONCE, len(held_out)))
    rows = Rows.of(torch.from_numpy(held_out.take(some)[0]), None, torch.from_numpy(some))
    with torch.no_grad():
        x = framed.frame(rows.x, rows.keys)[0].view(len(rows), *density.space.shape)
        code = density.encode(x)
        encoded = density.evaluations
        error = float((density.decode(code) - x).abs().max())
        decoded = density.evaluations
    return {
        "log_likelihood": None if density.likelihood == "none" else _scored(scored, held_out, quick),
        "size": density.space.size,
        "likelihood": density.likelihood,
        "one_step": recipe.method.one_step,
        "takes_images": recipe.method.takes_images,
        "encode": encoded,
        "decode": decoded,
        "error": error,
        "seconds": seconds,
    }


def theirs(method: str, data: str, seed: int, threads: int, quick: bool) -> Facts:
    """In a child: zuko's flow on the same rows as our network sees them, learned as ours is."""
    import torch

    from danlu.density import Rows
    from danlu.parts.frame import Frame
    from danlu.parts.framed import Framed
    from danlu.random import fold
    from danlu.reading import read_recipe

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    recipe = read_recipe(method, _overrides(method, data, seed, threads, quick))
    arrays, held_out = _arrays(recipe)
    frame = Frame.fitted(arrays, logit=recipe.data.logit, standardize=recipe.data.standardize, seed=seed)
    layers = getattr(recipe.method, "steps", 1)
    exact = arrays.size <= EXACT
    told = {"shuffled": getattr(recipe.method, "mixing", "") == "shuffle", "exact": exact}
    told["tolerance"] = getattr(recipe.method, "tolerance", peers.TOLERANCE)
    peer = peers.make("zuko", method, arrays.size, recipe.model.hidden, layers, **told)
    rule, size = recipe.optimizer, recipe.data.step_rows
    optimizer = torch.optim.Adam(peer.parameters, lr=rule.lr, betas=rule.betas, eps=rule.eps)
    steps = recipe.run.steps or -(-len(arrays) * recipe.run.epochs // size)
    began, order = time.perf_counter(), torch.randperm(len(arrays))
    for step in range(steps):
        if len(order) < size:
            order = torch.randperm(len(arrays))
        chosen, order = order[:size], order[size:]
        rows = Rows.of(torch.from_numpy(arrays.take(chosen.numpy())[0]), None, chosen).keyed(fold(seed, step))
        seen, log_det = frame(rows.x, rows.keys)
        for group in optimizer.param_groups:
            group["lr"] = rule.lr * rule.schedule.factor((step + 1) / steps)
        optimizer.zero_grad()
        (peer.loss(seen.flatten(1)) - log_det.mean()).backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters, rule.clip_norm)
        optimizer.step()
    seconds = time.perf_counter() - began
    peer.eval()
    return {"log_likelihood": _scored(Framed(_density(peer, arrays.size), frame), held_out, quick), "seconds": seconds}


def _density(peer: peers.Peer, size: int) -> Any:
    """Another library's flow as one of ours, as far as it is asked here."""
    from danlu.density import Density, Space

    class Theirs(Density):
        def log_prob(self, x: Any, context: Any = None) -> Any:
            assert peer.log_prob is not None
            return peer.log_prob(x)

        def encode(self, x: Any, context: Any = None) -> Any:
            raise NotImplementedError

        def decode(self, z: Any, context: Any = None) -> Any:
            raise NotImplementedError

        def path(self, z: Any, context: Any = None) -> Any:
            raise NotImplementedError

    return Theirs(Space((size,)))


def _arrays(recipe: Any) -> Any:
    from danlu.data.arrays import load_arrays

    return load_arrays(recipe.data, recipe.run.seed)


def _some(end: int, start: int = 0) -> Any:
    import numpy as np

    return np.arange(start, end)


def _scored(framed: Any, held_out: Any, quick: bool) -> float:
    """The mean log-likelihood of all rows that nothing was learned from, or of a few."""
    num = min(len(held_out), 64) if quick else len(held_out)
    pieces = [held_out.take(_some(min(start + AT_ONCE, num), start))[0] for start in range(0, num, AT_ONCE)]
    return sum(float(framed.log_prob(x, seed=number).double().sum()) for number, x in enumerate(pieces)) / num
