"""How much of the machine's matrix-product peak a training step reaches."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks import inputs as both
from benchmarks.common import Facts, child, environment, interleave, say, yes
from benchmarks.results import Table
from benchmarks.settings import MFU, PACK_TOKENS, Options
from benchmarks.updates import compiled, update

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from danlu.batch import Batch
    from danlu.data import Corpus
    from danlu.engine.device import Device
    from danlu.engine.update import Measured
    from danlu.experiment import Experiment

UPDATES = 10
WARM_UP = 3
PROFILED = 3
LISTED = 18
PEAK_SIZE = 2048
PEAK_TRIES = 4
"""Square products timed at each turn."""
LAUNCHED_TOGETHER = 50
"""Products an accelerator is given at once, so that starting one is not what is timed."""
DOCUMENTS, DOCUMENT, PRODUCTS = "GSM8K documents", "one document", "the products alone"


def run(options: Options, scratch: Path) -> list[Table]:
    """Each precision in a process of its own."""
    data = both.make("gsm8k", options, scratch, 1)
    rows, raw, tables = [], {}, []
    for precision in options.precisions:
        say(f" {precision}")
        found = child(measure, env=environment(options, scratch), **_given(data, precision, options))
        raw[precision] = found
        rows += [_row(precision, what, found) for what in (DOCUMENTS, DOCUMENT, PRODUCTS)]
        if options.profile:
            say(f" {precision}, profile")
            env = environment(options, scratch, TORCHINDUCTOR_CPP_ENABLE_KERNEL_PROFILE="1")
            tables.append(_profile_table(precision, child(profile, env=env, **_given(data, precision, options))))
    on_cpu = options.device == "cpu"
    source = (
        f"the best of all {PEAK_SIZE} x {PEAK_SIZE} products timed between the updates" if on_cpu else "the maker's"
    )
    notes = [
        f"{data['parameters'] / 1e6:.1f} M parameters, compiled, {PACK_TOKENS} tokens an update in one pack; "
        f"medians of {options.updates(UPDATES)} updates.",
        "FLOPs are those of the matrix products, as the engine counts them: weights, and the part of attention that is "
        f"seen; forward once, backward twice. The peak is {source}.",
        f"'{DOCUMENTS}' fill the pack to the last token, and count; '{DOCUMENT}' is as long as the pack.",
        f"'{PRODUCTS}' are the weights' own, forward and backward, in their shapes and nothing between them: "
        "what no program made of these products can pass by much.",
    ]
    columns = ["precision", "pack", "s", "tokens/s", "TFLOP", "TFLOP/s", "peak TFLOP/s", "MFU", "target", "met"]
    return [Table("Model FLOPs utilisation", columns, rows, notes, raw), *tables]


def _given(data: Facts, precision: str, options: Options) -> dict[str, Any]:
    updates = options.updates(UPDATES)
    recipe = both.recipe(
        data,
        precision=precision,
        compiled=True,
        steps=1,
        device=options.device,
        threads=options.threads,
    )
    return {"recipe": recipe, "updates": updates}


def _row(precision: str, what: str, found: Facts) -> list[str]:
    seconds, peak = statistics.median(found["seconds"][what]), max(found["peaks"])
    rate = statistics.median(found["flops"][what]) / seconds
    target, mfu = MFU[precision], rate / peak
    return [
        *(precision, what, f"{seconds:.3f}", f"{PACK_TOKENS / seconds:,.0f}"),
        *(f"{rate * seconds / 1e12:.3f}", f"{rate / 1e12:.3f}", f"{peak / 1e12:.3f}", f"{mfu:.3f}"),
        *((str(target), yes(target.met(mfu))) if what == DOCUMENTS else ("–", "–")),
    ]


def measure(recipe: dict[str, Any], updates: int) -> Facts:
    """In a child: updates on either kind of pack, the products alone, and the peak, in turn."""
    with compiled(recipe) as experiment:
        updater, packs = experiment.updater(), _packs(experiment, WARM_UP + updates)
        dtype, device = experiment.policy.compute_dtype, experiment.device
        flops: dict[str, list[int]] = {name: [] for name in packs}

        def timed(name: str) -> float:
            start = time.perf_counter()
            flops[name].append(_flops(update(updater, next(packs[name]))))
            device.synchronize()
            return time.perf_counter() - start

        products = _products(experiment)
        sides: dict[str, Callable[[], Any]] = {
            DOCUMENTS: lambda: timed(DOCUMENTS),
            "peak": lambda: _square_products(dtype, device),
            DOCUMENT: lambda: timed(DOCUMENT),
            PRODUCTS: lambda: _time_products(products, dtype, device),
        }
        interleave(sides, WARM_UP, quiet=True)
        found = interleave(sides, updates, quiet=True)
    on_cpu = device.kind == "cpu"
    peaks = [peak for turn in found.pop("peak") for peak in turn] if on_cpu else [device.peak_flops(dtype)]
    counted = {name: each[WARM_UP:] for name, each in flops.items()}
    own = sum(product.flops * times for product, times in products.items())
    return {"seconds": found, "flops": counted | {PRODUCTS: [own]}, "peaks": peaks}


def profile(recipe: dict[str, Any], updates: int) -> Facts:
    """In a child: which operators the time of an update goes to."""
    import torch
    from torch._inductor import config
    from torch.profiler import ProfilerActivity

    config.cpp.enable_kernel_profile = True  # name the compiled kernels, too
    with compiled(recipe) as experiment:
        updater, packs = experiment.updater(), _packs(experiment, WARM_UP + PROFILED)
        for _ in range(WARM_UP):
            update(updater, next(packs[DOCUMENTS]))
        on_cpu = experiment.device.kind == "cpu"
        activities = [ProfilerActivity.CPU, *([] if on_cpu else [ProfilerActivity.CUDA])]
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(PROFILED):
                update(updater, next(packs[DOCUMENTS]))
            experiment.device.synchronize()
    events = profiler.key_averages()
    spent = [(e.key, e.self_cpu_time_total if on_cpu else e.self_device_time_total, e.count) for e in events]
    return {"operators": [(key, microseconds / 1e3 / PROFILED, n / PROFILED) for key, microseconds, n in spent]}


def _profile_table(precision: str, found: Facts) -> Table:
    operators = sorted(found["operators"], key=lambda row: -row[1])
    total = sum(milliseconds for _, milliseconds, _ in operators)
    rows = [[f"`{key[:70]}`", f"{ms:.1f}", f"{ms / total:.1%}", f"{n:.0f}"] for key, ms, n in operators[:LISTED]]
    rest = sum(ms for _, ms, _ in operators[LISTED:])
    rows.append([f"{len(operators[LISTED:])} others", f"{rest:.1f}", f"{rest / total:.1%}", ""])
    columns = ["operator", "ms an update", "share", "calls an update"]
    return Table(f"Profile, {precision}", columns, rows, ["Own time, without that of operators inside."], operators)


def _packs(experiment: Experiment, updates: int) -> dict[str, Iterator[list[Batch]]]:
    """The groups of so many updates, of either kind."""
    from danlu.data import Collection

    group = experiment.recipe.method.group
    collection = experiment.data.train
    assert isinstance(collection, Collection)
    corpus = collection.whole()
    filled = [[group(s) for s in pack] for pack in _full_packs(corpus, updates)]
    whole = [[group(_joined(pack))] for pack in _full_packs(corpus, updates)]
    return {DOCUMENTS: iter(filled), DOCUMENT: iter(whole)}


def _flops(measured: Measured) -> int:
    """The matrix-product operations of an update of one pack."""
    assert measured.packs == 1
    return int(measured.flops)


def _full_packs(corpus: Corpus, count: int) -> Iterable[list[Any]]:
    """Documents in order, the last of each pack cut so that it is full to the token."""
    samples = (corpus[i % len(corpus)] for i in range(10**9))
    for _ in range(count):
        held: list[Any] = []
        room = PACK_TOKENS
        while room:
            sample = next(samples)
            held.append(replace(sample, tokens=sample.tokens[: room + 1]))
            room -= held[-1].num_targets
        yield held


def _joined(samples: Sequence[Any]) -> Any:
    """The same tokens as one document."""
    import numpy as np

    inputs = np.concatenate([sample.tokens[:-1] for sample in samples])
    return replace(samples[0], tokens=np.append(inputs, samples[-1].tokens[-1]))


class Product(NamedTuple):
    """A matrix product (m, k) (k, n), and which of its factors are read transposed."""

    m: int
    k: int
    n: int
    transposed: tuple[bool, bool] = (False, False)

    @property
    def flops(self) -> int:
        """A multiply-add counts two."""
        return 2 * self.m * self.k * self.n


def _products(experiment: Experiment) -> Counter[Product]:
    """Every weight's three products in an update over a full pack, and how often each is made."""
    from danlu.parts.cross_entropy import chunk_rows

    policy = experiment.policy
    head, vocabulary = policy.get_parameter("embed_tokens.weight"), policy.config.vocabulary
    rows = min(chunk_rows(vocabulary, policy.compute_dtype), PACK_TOKENS)
    weights = [(p, PACK_TOKENS, 1) for block in policy.blocks for p in block.parameters() if p.dim() == 2]
    found: Counter[Product] = Counter()
    for weight, tokens, times in (*weights, (head, rows, PACK_TOKENS // rows)):
        outputs, inputs = weight.shape
        found[Product(tokens, inputs, outputs, (False, True))] += times  # x W^T
        found[Product(tokens, outputs, inputs)] += times  # the gradient of x
        found[Product(outputs, tokens, inputs, (True, False))] += times  # the gradient of W
    return found


def _time_products(products: Mapping[Product, int], dtype: torch.dtype, device: Device) -> float:
    """Seconds of all of them: each is made twice, the second is timed and taken as often as it occurs."""
    return sum(times * _time(product, dtype, device, tries=2)[-1] for product, times in products.items())


def _square_products(dtype: torch.dtype, device: Device) -> list[float]:
    """The rates of a few square products."""
    square = Product(PEAK_SIZE, PEAK_SIZE, PEAK_SIZE)
    return [square.flops / seconds for seconds in _time(square, dtype, device, PEAK_TRIES)]


def _time(product: Product, dtype: torch.dtype, device: Device, tries: int) -> list[float]:
    import torch

    def factor(rows: int, columns: int, transposed: bool) -> Tensor:
        made = torch.ones((columns, rows) if transposed else (rows, columns), dtype=dtype, device=device.torch)
        return made.t() if transposed else made

    m, k, n, (first, second) = product
    a, b, out = factor(m, k, first), factor(k, n, second), factor(m, n, False)
    together = 1 if device.kind == "cpu" else LAUNCHED_TOGETHER
    seconds = []
    for _ in range(tries):
        start = time.perf_counter()
        for _ in range(together):
            torch.mm(a, b, out=out)
        device.synchronize()
        seconds.append((time.perf_counter() - start) / together)
    return seconds
