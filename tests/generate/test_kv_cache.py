from __future__ import annotations

import pytest
import torch
from torch import Tensor

from danlu.contracts import SequenceModel
from danlu.generate.cache import Cache
from danlu.packed import ROOT, Packed
from danlu.parts import attention as attention_module
from danlu.parts.attention import Backend, attend_reference
from danlu.parts.attention_cpu import attend_on_cpu
from danlu.parts.attention_fused import attend_fused
from danlu.parts.attention_tiled import attend_tiled
from danlu.parts.readout import Logits
from danlu.sight import ANYWHERE, Extra

from .models import FAMILIES, VOCABULARY, tiny

BACKENDS = {"chosen": attend_on_cpu, "fused": attend_fused, "tiled": attend_tiled, "reference": attend_reference}


def text(length: int, seed: int) -> list[int]:
    return torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def logits_of(model: SequenceModel, packed: Packed, cache: Cache | None = None) -> Tensor:
    with torch.no_grad():
        return model(packed, [Logits(torch.arange(len(packed)))], cache)[0]


def feed(model: SequenceModel, cache: Cache, chunks: dict[int, list[int]]) -> dict[int, Tensor]:
    """One pass over some sequences' next tokens; each one's logits."""
    past = [cache.length(sample) for sample in chunks]
    positions = torch.cat([torch.arange(p, p + len(c)) for p, c in zip(past, chunks.values(), strict=True)])
    packed = Packed.tree(list(chunks.values()), parents=[ROOT] * len(chunks), samples=list(chunks), positions=positions)
    logits = logits_of(model, packed, cache)
    return dict(zip(chunks, logits.split([len(chunk) for chunk in chunks.values()]), strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_chunk_by_chunk_is_all_at_once(family: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several sequences, of unequal lengths, in chunks of unequal lengths, some of which sit a pass out."""
    chosen: Backend = BACKENDS[backend]
    monkeypatch.setattr(attention_module, "backend_for", lambda device: chosen)
    model, texts = tiny(family), {7: text(31, 0), 3: text(12, 1), 5: text(22, 2)}
    schedule = [{7: 9, 3: 1}, {3: 4, 5: 20}, {7: 1, 3: 1, 5: 1}, {5: 1, 7: 20}, {7: 1, 3: 6}]
    cache, given = Cache(num_rows=4), {sample: [] for sample in texts}
    for passes in schedule:
        starts = {sample: cache.length(sample) for sample in passes}
        chunks = {sample: texts[sample][start : start + passes[sample]] for sample, start in starts.items()}
        for sample, logits in feed(model, cache, chunks).items():
            given[sample].append(logits)
    for sample, tokens in texts.items():
        expected = logits_of(model, Packed.tree([tokens]))
        torch.testing.assert_close(torch.cat(given[sample]), expected, rtol=1e-9, atol=1e-9)


def test_the_calls_and_the_intervals_say_the_same() -> None:
    cache = Cache(num_rows=2)
    for lengths in ({0: 3, 1: 1}, {1: 2, 2: 5}, {2: 1, 0: 4, 1: 1}):
        packed = Packed.tree(
            [[1] * n for n in lengths.values()],
            parents=[ROOT] * len(lengths),
            samples=list(lengths),
            causal=[sample != 2 for sample in lengths],
        )
        sight = cache.sight(packed)
        written = torch.zeros_like(sight.mask())
        for q0, q1, k0, k1, causal in sight.calls.tolist():
            seen = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool)
            assert not written[q0:q1, k0:k1].any()
            written[q0:q1, k0:k1] = seen.tril() if causal else seen
        assert torch.equal(written, sight.mask())


def test_keys_of_no_token_are_seen_by_the_runs_that_are_to() -> None:
    """Each run has keys of its own; to a window they are exempt, or lie before the first token."""
    cache = Cache(num_rows=2)
    for lengths, runs in (({0: 3, 1: 1}, [(0, 2), (3, 4)]), ({1: 2, 2: 5}, [(0, 7)]), ({0: 1}, [(0, 1)])):
        extra = [
            Extra(name, offsets, runs, torch.zeros(len(offsets), dtype=torch.int32), lambda: torch.zeros(1, 2, 3, 1, 1))
            for name, offsets in (("free", torch.full((3,), ANYWHERE)), ("near", torch.arange(-3, 0)))
        ]
        packed = Packed.tree([[1] * n for n in lengths.values()], parents=[ROOT] * len(lengths), samples=list(lengths))
        past = {sample: cache.length(sample) for sample in lengths}
        sight = cache.with_extra(extra).sight(packed)
        seen, near, whole = (sight.mask(window).sum(1) for window in (1, 2, None))
        for row, offset in enumerate(
            torch.cat([torch.arange(past[s], past[s] + n) for s, n in lengths.items()]).tolist()
        ):
            inside = any(start <= row < stop for start, stop in runs)
            assert int(whole[row]) == offset + 1 + 6 * inside
            assert int(seen[row]) == 1 + 3 * inside
            assert int(near[row]) == min(offset + 1, 2) + (3 + (offset == 0)) * inside
        written = torch.zeros_like(sight.mask())
        for q0, q1, k0, k1, causal in sight.calls.tolist():
            written[q0:q1, k0:k1] |= torch.ones(q1 - q0, k1 - k0, dtype=torch.bool).tril() if causal else True
        assert torch.equal(written, sight.mask())


def test_a_freed_slot_is_taken_by_the_next_and_keeps_nothing() -> None:
    model, cache = tiny("qwen3"), Cache()
    feed(model, cache, {0: text(9, 0), 1: text(5, 1)})
    cache.release(0)
    assert cache.length(0) == 0
    (logits,) = feed(model, cache, {2: text(4, 2)}).values()
    torch.testing.assert_close(logits, logits_of(model, Packed.tree([text(4, 2)])), rtol=1e-9, atol=1e-9)
    assert cache._layers[0].keys.shape[0] == 2
    (logits,) = feed(model, cache, {1: text(3, 4)}).values()
    whole = logits_of(model, Packed.tree([text(5, 1) + text(3, 4)]))[5:]
    torch.testing.assert_close(logits, whole, rtol=1e-9, atol=1e-9)


def test_keys_are_not_copied_when_there_is_room() -> None:
    model, cache = tiny("llama"), Cache()
    feed(model, cache, {0: text(9, 0)})
    before = cache._layers[1].keys.data_ptr()
    feed(model, cache, {0: text(1, 1)})
    assert cache._layers[1].keys.data_ptr() == before


@pytest.mark.parametrize(
    "packed",
    [
        Packed.tree([[1], [2]], parents=[ROOT, 0], samples=[0, 1]),
        Packed.tree([[1], [2]], parents=[ROOT, ROOT], samples=4),
    ],
)
def test_what_a_cache_cannot_keep_is_refused(packed: Packed) -> None:
    with pytest.raises(ValueError, match="one segment a sequence"):
        Cache().sight(packed)
