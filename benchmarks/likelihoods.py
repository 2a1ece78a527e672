"""How likely held-out rows are under every density, over seeds, with those of `zuko` beside ours; and what each can do."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections.abc import Sequence
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
AT_ONCE = 256
PAGE = Path(__file__).parent.parent / "docs" / "likelihoods.md"


def run(options: Options, scratch: Path) -> list[Table]:
    """Every recipe on every data set with every seed, each in a process of its own."""
    if not installed("zuko"):
        raise MissingError("zuko is not installed")
    env = environment(options, scratch)
    raw: dict[str, Any] = {}
    for data in DATA:
        for method in METHODS:
            raw[f"{data}, {method}"] = found = {"danlu": [], "zuko": []}  # type: dict[str, list[Facts]]
            for seed in range(options.rounds(SEEDS)):
                say(f" {data}, {method}, seed {seed}")
                given = {"method": method, "data": data, "seed": seed, "quick": options.quick}
                found["danlu"].append(child(ours, env=env, threads=options.threads, **given))
                if method in ZUKO:
                    found["zuko"].append(child(theirs, env=env, threads=options.threads, **given))
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
        "Mean log-likelihood of held-out rows in nats a row, in the data's own units, of images with uniform noise that "
        f"makes them continuous; mean and standard deviation over {options.rounds(SEEDS)} seeds of weights and order. "
        "Larger is better. Bits per dimension are made of it.",
        "zuko's have the same rows as our network sees them, networks of the same widths, as many layers, the same "
        "optimiser, schedule, updates and rows of an update; its flows are those named NICE (additive, and affine), MAF, "
        "NICE with splines, and CNF.",
        "≥: a lower bound, not the likelihood. Seconds are those of a whole run on moons, the median.",
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
        "Evaluations: how often the network is asked, of moons and of digits, by the recipes as they are. 1 where rows go "
        "through once; an autoregressive flow is asked once a column to sample.",
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
        **({"data.rows": 1000} if quick and data != "digits" else {}),
        **({"run.steps": 5, "run.epochs": "null"} if quick else {}),
        "data.seed": 0,
        "run.seed": seed,
        "run.threads": threads,
        "run.checkpoint_every": 1_000_000,
    }
    return [f"{key}={value}" for key, value in given.items()]


def ours(method: str, data: str, seed: int, threads: int, quick: bool) -> Facts:
    """In a child: one run, and how likely held-out rows are then."""
    import torch

    from danlu import train
    from danlu.density_experiment import rows_of
    from danlu.density_files import read_density
    from danlu.reading import load_recipe

    began = time_of()
    with tempfile.TemporaryDirectory() as folder:
        done = train(method, *_overrides(method, data, seed, threads, quick), f"run.out={folder}/run")
        seconds = time_of() - began
        framed, _ = read_density(done.path / "final")
        recipe = load_recipe(done.path / "recipe.yaml")
        rows = _held_out(recipe, rows_of)
    density, scored = framed.density, list[float]()
    with torch.no_grad():
        code = density.encode(framed.framed(rows[0]).x, framed.space.vector(rows[0].condition))
        encoded = density.evaluations
        back = density.decode(code, framed.space.vector(rows[0].condition))
        error, decoded = float((back - framed.framed(rows[0]).x).abs().max()), density.evaluations
        if density.likelihood != "none":
            scored = [v for some in rows for v in framed.log_prob(some.x, some.condition).tolist()]
    return {
        "log_likelihood": statistics.mean(scored) if scored else None,
        "size": framed.space.size,
        "likelihood": density.likelihood,
        "one_step": recipe.method.one_step,
        "takes_images": recipe.method.takes_images,
        "encode": encoded,
        "decode": decoded,
        "error": error,
        "seconds": seconds,
    }


def theirs(method: str, data: str, seed: int, threads: int, quick: bool) -> Facts:
    """In a child: zuko's flow on the same rows, learned as ours is."""
    import torch

    from danlu.data.arrays import load_arrays
    from danlu.density_experiment import rows_of
    from danlu.parts.frame import Frame
    from danlu.random import fold
    from danlu.reading import load_recipe

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    recipe = load_recipe(method, *_overrides(method, data, seed, threads, quick))
    arrays, _ = load_arrays(recipe.data, recipe.run.seed)
    frame = Frame.fitted(arrays, recipe.data)
    del fold, rows_of, frame
    raise NotImplementedError(json.dumps({"seed": seed, "peers": list(peers.PEERS)}))


def _held_out(recipe: Any, rows_of: Any) -> list[Any]:
    """The rows that nothing was learned from, some at a time."""
    import numpy as np

    from danlu.data.arrays import load_arrays

    _, held_out = load_arrays(recipe.data, recipe.run.seed)
    every = np.arange(len(held_out))
    return [rows_of(held_out, every[i : i + AT_ONCE]) for i in range(0, len(held_out), AT_ONCE)]


def time_of() -> float:
    """Seconds of a clock."""
    import time

    return time.perf_counter()
