"""What a person may look at of a density while it learns: samples, a map, codes between two rows, the way from noise.

All of it is plain numbers and small pictures, which a line of `events.jsonl` can hold and a report can draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from danlu.data.arrays import Facts
from danlu.density import Rows
from danlu.density_pixels import brightness, clouds_drawn, text, write_way
from danlu.errors import DanluError
from danlu.parts.framed import Framed
from danlu.png import grid
from danlu.random import fold

SAMPLES, WAYFARERS = 1000, 300
"""Points of a cloud, and of one that moves."""
FRAMES = 30
"""Of the way from noise to rows: two seconds of motion."""
_INVERTED, _LIKELY, _LIKELY_SOLVED = 256, 1000, 128
"""Rows that are held against their codes, and that are scored: where that is one pass, and where it is a solving."""
_SIDE, _FINE_SIDE = 48, 96
_FLOOR = 30.0
"""Nats below its peak at which a map ends: nothing of that is to be seen."""
_MARGIN = 0.15
_COLUMNS, _BINS = 6, 40
_PICTURES, _ACROSS = 40, 8
_STRIPS, _BETWEEN = 4, 9
_CONDITIONS = 10
"""So many conditions, at most, are what a map adds up over."""
_AT_ONCE = 4096


@torch.no_grad()
def shown(
    framed: Framed,
    held_out: Rows,
    facts: Facts,
    *,
    seed: int,
    final: bool = False,
    folder: Path | None = None,
) -> dict[str, Any]:
    """What there is to see of a density, as the fields of an event.

    Args:
        framed: the density.
        held_out: rows of the data, in its own units, at least two.
        facts: what they are.
        seed: samples follow from it.
        final: whether it is at its end: then a map is finer, and the way from noise to rows is there.
        folder: of the run, where that way is written as a GIF.

    Returns:
        Lists, texts and finite numbers; a part that could not be made is absent, and `faults` has why.
    """
    density = framed.density
    training, faults = density.training, list[str]()
    density.eval()
    fields: dict[str, Any] = {
        "shape": list(facts.shape),
        "classes": len(facts.classes),
        "features": len(facts.features),
        "likelihood": density.likelihood,
        "columns": list(facts.columns),
    }
    parts: list[Callable[[], Mapping[str, Any]]] = [
        lambda: _codes(framed, _head(held_out, _INVERTED)),
        lambda: _likelihood(framed, held_out),
    ]
    if len(facts.shape) == 3:
        parts.append(lambda: _images(framed, held_out, seed))
    else:
        parts.append(lambda: _numbers(framed, held_out, seed, facts.columns))
        if facts.size == 2 and density.likelihood == "exact":
            parts.append(lambda: {"map": _map(framed, held_out, _FINE_SIDE if final else _SIDE)})
    if final:
        parts.append(lambda: _path(framed, held_out, seed, folder))
    for part in parts:
        try:
            fields |= part()
        except DanluError as error:  # a run is not to end for a picture
            faults.append(str(error))
    density.train(training)
    return {name: value for name, value in fields.items() if value is not None} | ({"faults": faults} if faults else {})


class _Seen(NamedTuple):
    """Rows as the network sees them."""

    x: Tensor
    context: Tensor | None
    log_det: Tensor


def _seen(framed: Framed, rows: Rows) -> _Seen:
    x, log_det = framed.frame(rows.x, rows.keys)
    return _Seen(x.view(len(x), *framed.density.space.shape), _context(framed, rows.condition), log_det)


def _context(framed: Framed, condition: Tensor | None) -> Tensor | None:
    return framed.density.space.vector(framed.frame.condition(condition))


def _unseen(framed: Framed, x: Tensor) -> Tensor:
    """The same in the data's units."""
    return framed.frame.inverse(x.view(len(x), *framed.frame.shape))


def _codes(framed: Framed, rows: Rows) -> dict[str, Any]:
    """How far rows are from what their codes decode to, and how often the network is asked for that."""
    density, seen = framed.density, _seen(framed, rows)
    code = density.encode(seen.x, seen.context)
    asked = density.evaluations
    back = density.decode(code, seen.context)
    return {
        "inversion_error": _finite((back - seen.x).abs().max()),
        "evaluations": {"encode": asked, "decode": density.evaluations},
    }


def _likelihood(framed: Framed, held_out: Rows) -> dict[str, Any]:
    """The mean over held-out rows, of as many as there is time for."""
    density = framed.density
    if density.likelihood == "none":
        return {}
    each = _log_prob(framed, _head(held_out, _LIKELY_SOLVED))
    if density.evaluations == 1:
        each = _log_prob(framed, _head(held_out, _LIKELY))
    mean = each.double().mean()
    fields = {"log_likelihood": _finite(mean), "log_likelihood_rows": len(each)}
    if len(framed.frame.shape) == 3:
        fields["bits_per_dim"] = _finite(-mean / (density.space.size * math.log(2)))
    return fields


def _log_prob(framed: Framed, rows: Rows) -> Tensor:
    """How likely rows of the data are, in nats, in the data's units."""
    seen = _seen(framed, rows)
    return framed.density.log_prob(seen.x, seen.context) + seen.log_det


def _sampled(framed: Framed, held_out: Rows, num: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """Noise, and conditions as often as the data have them."""
    place = torch.arange(num)
    condition = None if held_out.condition is None else held_out.condition[place % len(held_out)]
    keys = Rows.of(held_out.x.new_zeros(num), None, place).keyed(fold(seed, "shown")).keys
    return framed.density.noise(keys), _context(framed, condition)


def _samples(framed: Framed, held_out: Rows, num: int, seed: int) -> Tensor:
    noise, context = _sampled(framed, held_out, num, seed)
    return _unseen(framed, framed.density.decode(noise, context))


def _numbers(framed: Framed, held_out: Rows, seed: int, columns: Sequence[str]) -> dict[str, Any]:
    """Points of two numbers as they are; more of them from where they are widest, and each column's histogram."""
    data = _array(_head(held_out, SAMPLES).x).reshape(-1, framed.density.space.size)
    samples = _array(_samples(framed, held_out, SAMPLES, seed)).reshape(-1, framed.density.space.size)
    if framed.density.space.size == 2:
        return {"cloud": {"data": _points(data), "samples": _points(samples)}}
    fields: dict[str, Any] = {"histograms": _histograms(data, samples, columns)}
    if framed.density.space.size > 2 and len(data) > 2:
        mean, deviation = data.mean(0), data.std(0) + 1e-12
        _, widths, directions = np.linalg.svd((data - mean) / deviation, full_matrices=False)
        across = directions[:2].T / deviation[:, None]
        cloud = {"data": _points((data - mean) @ across), "samples": _points((samples - mean) @ across)}
        fields["cloud"] = cloud | {"shares": [round(float(w), 4) for w in (widths**2 / (widths**2).sum())[:2]]}
    return fields


def _histograms(data: np.ndarray, samples: np.ndarray, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Of the first columns, as shares of the rows, between the data's own ends."""
    found = []
    for place in range(min(data.shape[1], _COLUMNS)):
        edges = np.histogram_bin_edges(data[:, place], _BINS)
        shares = {
            of: [round(float(n) / len(x), 5) for n in np.histogram(x[:, place], edges)[0]]
            for of, x in (("data", data), ("samples", samples))
        }
        name = columns[place] if place < len(columns) else f"x{place}"
        found.append({"name": name, "edges": [_short(edge) for edge in edges], **shares})
    return found


def _map(framed: Framed, held_out: Rows, side: int) -> dict[str, Any] | None:
    """The log-density over the plane, in nats, from the lowest row upwards; conditions are added up over.

    None where each of many vectors would have equations to be solved all over the plane.
    """
    if held_out.condition is not None and held_out.condition.ndim > 1:
        _log_prob(framed, _head(held_out, 1))
        if framed.density.evaluations > 1:
            return None
    x = _array(held_out.x).reshape(-1, 2)
    low, high = x.min(0), x.max(0)
    reach = _MARGIN * np.where(high > low, high - low, 1.0)  # of one row, or of several that are alike, too
    low, high = low - reach, high + reach
    across, up = (np.linspace(low[i], high[i], side) for i in range(2))
    points = np.stack(np.meshgrid(across, up), -1).reshape(-1, 2)
    at = torch.from_numpy(points).to(held_out.x)
    each = []
    for condition, share in _conditions(held_out):
        told = None if condition is None else condition.expand(len(at), *condition.shape[1:])
        rows = Rows.of(at, told, torch.arange(len(at)))
        pieces = [_log_prob(framed, _piece(rows, start)) for start in range(0, len(at), _AT_ONCE)]
        each.append(torch.cat(pieces).double() + math.log(share))
    values = _array(torch.logsumexp(torch.stack(each), 0))
    peak = values[np.isfinite(values)].max(initial=-_FLOOR)
    values = np.nan_to_num(values, nan=peak - _FLOOR, neginf=peak - _FLOOR).clip(peak - _FLOOR, None)
    ends = {name: [float(f"{end[i]:.8g}") for end in (low, high)] for i, name in enumerate("xy")}
    return {**ends, "side": side, "values": [round(float(value), 2) for value in values]}


def _conditions(held_out: Rows) -> list[tuple[Tensor | None, float]]:
    """What the data are conditioned on, ``[1, ...]`` each, and how often: the commonest classes, or some vectors."""
    condition = held_out.condition
    if condition is None:
        return [(None, 1.0)]
    if condition.ndim == 1:
        classes, counts = condition.unique(return_counts=True)
        commonest = counts.argsort(descending=True)[:_CONDITIONS]
        whole = float(counts[commonest].sum())
        return [(classes[i : i + 1], float(counts[i]) / whole) for i in commonest.tolist()]
    some = np.unique(np.linspace(0, len(condition) - 1, _CONDITIONS).astype(int)).tolist()
    return [(condition[i : i + 1], 1 / len(some)) for i in some]


def _images(framed: Framed, held_out: Rows, seed: int) -> dict[str, Any]:
    """Samples, rows of the data, and what lies between the codes of two of these, as pictures."""
    data = _head(held_out, _PICTURES)
    return {
        "pictures": {
            "samples": _picture(framed, _samples(framed, held_out, _PICTURES, seed), _ACROSS),
            "data": _picture(framed, data.x, _ACROSS),
            "between": _picture(framed, _between(framed, held_out), _BETWEEN),
        }
    }


def _between(framed: Framed, held_out: Rows) -> Tensor:
    """Rows decoded from codes on the way from a row's to another's, both of the first one's condition.

    Codes are turned into each other (White, 2016, https://arxiv.org/abs/1609.04468): on the straight way they would be
    shorter than noise ever is.
    """
    rows = _head(held_out, _INVERTED)
    first = list(range(min(_STRIPS, len(rows))))
    last = [_partner(rows, row) for row in first]
    seen = _seen(framed, rows)
    context = None if seen.context is None else seen.context[first]
    a, b = (framed.density.encode(seen.x[ends], context) for ends in (first, last))
    parts = torch.linspace(0, 1, _BETWEEN, device=a.device)
    codes = torch.stack([_turned(a, b, part) for part in parts], 1).flatten(0, 1)
    told = None if context is None else context.repeat_interleave(_BETWEEN, 0)
    return _unseen(framed, framed.density.decode(codes, told))


def _partner(rows: Rows, row: int) -> int:
    """Another row, of the same class where there are classes."""
    others = [(row + _STRIPS + i) % len(rows) for i in range(len(rows))]
    if rows.condition is None or rows.condition.ndim > 1:
        return others[0]
    return next((o for o in others if o != row and rows.condition[o] == rows.condition[row]), others[0])


def _turned(a: Tensor, b: Tensor, part: Tensor) -> Tensor:
    """A part of the way from codes to others, on the great circle between their directions."""
    u, v = a.flatten(1), b.flatten(1)
    cosine = (u * v).sum(1) / (u.norm(dim=1) * v.norm(dim=1)).clamp_min(1e-12)
    angle = cosine.clamp(-1 + 1e-6, 1 - 1e-6).acos()[:, None]
    return ((torch.sin((1 - part) * angle) * u + torch.sin(part * angle) * v) / torch.sin(angle)).view_as(a)


def _path(framed: Framed, held_out: Rows, seed: int, folder: Path | None) -> dict[str, Any]:
    """The way from noise to rows, in the data's units; for more numbers than two nothing of it can be seen."""
    images = len(framed.frame.shape) == 3
    if not images and framed.density.space.size != 2:
        return {}
    noise, context = _sampled(framed, held_out, _PICTURES if images else WAYFARERS, seed)
    stages = framed.density.path(noise, context)
    kept = sorted({round(i * (len(stages) - 1) / (FRAMES - 1)) for i in range(FRAMES)})
    seen = [_unseen(framed, stages[i]) for i in kept]
    if images:
        pictures = [grid(_array(brightness(framed.frame, x)), _ACROSS) for x in seen]
        way: dict[str, Any] = {"pictures": [text(picture) for picture in pictures]}
        frames = [np.stack([p] * 3, -1) if p.ndim == 2 else p for p in pictures]
    else:
        clouds = [_array(x) for x in seen]
        way = {"clouds": [_points(cloud) for cloud in clouds]}
        frames = clouds_drawn(clouds)
    fields: dict[str, Any] = {"path": way | {"stages": kept}}
    if folder is not None:
        write_way(folder / "path.gif", frames)
        fields["gif"] = "path.gif"
    return fields


def _head(rows: Rows, num: int) -> Rows:
    return _piece(rows, 0, num)


def _piece(rows: Rows, start: int, num: int = _AT_ONCE) -> Rows:
    """Some of the rows, with the key of no update: what is shown is the same whenever it is asked for."""
    some = slice(start, start + num)
    condition = None if rows.condition is None else rows.condition[some]
    return Rows.of(rows.x[some], condition, rows.sample[some])


def _picture(framed: Framed, images: Tensor, columns: int) -> str:
    return text(grid(_array(brightness(framed.frame, images)), columns))


def _points(points: np.ndarray) -> list[list[float]]:
    """``[N, 2]`` as two lists, without what is not finite."""
    points = points[np.isfinite(points).all(1)]
    return [[_short(value) for value in points[:, i]] for i in range(2)]


def _short(value: float) -> float:
    """As many digits as a pixel needs."""
    return float(f"{float(value):.4g}")


def _finite(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _array(x: Tensor) -> np.ndarray:
    return x.detach().double().cpu().numpy()
