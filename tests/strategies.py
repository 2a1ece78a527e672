"""Random forests, and what is asked of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from danlu.packed import ROOT, Packed, Targets
from danlu.random import fold, token_keys

VOCABULARY = 13
"""How many tokens the forests drawn here have."""


@st.composite
def forests(
    draw: st.DrawFn, *, min_segments: int = 0, max_segments: int = 6, max_length: int = 5, max_trees: int = 6
) -> Packed:
    """Any forest: chains, shared prompts, mixed sights, segments of one token; each tree a sample of its own."""
    parents: list[int] = []
    path: list[int] = []
    for n in range(draw(st.integers(min_segments, max_segments))):
        roots = parents.count(ROOT)
        parent = draw(st.sampled_from([*path, ROOT] if roots < max_trees or not path else path))
        path = [*path[: path.index(parent) + 1], n] if parent != ROOT else [n]
        parents.append(parent)
    num = len(parents)
    lengths = draw(st.lists(st.integers(1, max_length), min_size=num, max_size=num))
    causal = draw(st.lists(st.booleans(), min_size=num, max_size=num))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    tokens = [torch.randint(VOCABULARY, (length,), generator=generator) for length in lengths]
    samples = torch.tensor([parent == ROOT for parent in parents], dtype=torch.int64).cumsum(0).add(100).tolist()
    return Packed.tree(tokens, parents=parents, causal=causal, samples=samples)


@st.composite
def targets(draw: st.DrawFn, packed: Packed, *, max_targets: int = 8) -> Targets:
    """Any targets of a forest: some rows with several, others with none."""
    if not len(packed):
        return Targets.none()
    pairs = st.tuples(
        st.integers(0, len(packed) - 1), st.integers(0, VOCABULARY - 1), st.sampled_from([0.0, 0.5, 1.0, 3.0])
    )
    drawn = draw(st.lists(pairs, max_size=max_targets))
    rows, tokens, weights = zip(*drawn, strict=True) if drawn else ((), (), ())
    ids = (torch.tensor(x, dtype=torch.int64) for x in (rows, tokens))
    return Targets(*ids, torch.tensor(weights, dtype=torch.float32))


def windows() -> st.SearchStrategy[int | None]:
    """No window, or one that may be shorter than a path."""
    return st.one_of(st.none(), st.integers(1, 8))


def keyed(packed: Packed, seed: int = 0, step: int = 1) -> Packed:
    """The same pack, to be passed with randomness on."""
    sample = packed.sample[packed.segment_of_row]
    key = fold(seed, step)
    return replace(packed, keys=token_keys(key, sample, packed.offsets), key=key)


def same(a: Packed, b: Packed) -> bool:
    """Whether two packs are equal in every field."""

    def equal(x: Tensor | None, y: Tensor | None) -> bool:
        return x is y if x is None or y is None else x.dtype == y.dtype and torch.equal(x, y)

    fields = ("tokens", "positions", "cu_seqlens", "parent", "causal", "sample", "keys")
    return a.key == b.key and all(equal(getattr(a, field), getattr(b, field)) for field in fields)
