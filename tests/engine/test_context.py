"""A model whose packs are shared out over ranks learns what one rank learns."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import tiny
from danlu.batch import Batch
from danlu.contracts import SequenceModel
from danlu.engine.context import ProcessRing, Ringed, pieces
from danlu.engine.launch import launched
from danlu.errors import RunError, UnsupportedError
from danlu.generate.cache import Cache
from danlu.method.sft import SFT
from danlu.packed import ROOT, Packed, Targets
from danlu.parts.attention_ring import Ring, rows_in, zigzag
from danlu.parts.linear import Dropout
from danlu.parts.readout import Hidden, Likelihood, Logits, LogProbs, Values
from ranks import run_ranks
from rings import in_a_ring
from strategies import VOCABULARY, forests, keyed, targets

EXACT, SINGLE = 1e-11, 1e-4
MODELS = (*tiny.ARCHITECTURES, "bridge gemma2", "bridge gpt_oss", "bridge deepseek_v3")


def made(name: str, dtype: torch.dtype = torch.float64) -> SequenceModel:
    """A tiny model that drops; of the bridge's those with windows, capped scores, sinks, and narrow values."""
    if not name.startswith("bridge "):
        return tiny.model(name, dtype=dtype)
    from architecture.bridged import bridged  # transformers takes seconds to import, which not every rank should pay

    model = bridged(name.removeprefix("bridge ")).to(dtype)
    model.compute_dtype = dtype
    for number, module in enumerate(m for m in model.modules() if isinstance(m, Dropout)):
        module.place.fill_(number)
    return model


def learned(model: torch.nn.Module, packed: Packed, wanted: Targets) -> dict[str, Tensor]:
    """The sums of a pack, and each weight's gradient."""
    for parameter in model.parameters():
        parameter.grad = None
    (sums,) = model(packed, [Likelihood(wanted, label_smoothing=0.1, z_loss=0.01)])
    sums.loss.backward()
    own = model.inner if isinstance(model, Ringed) else model
    gradients = {name: p.grad for name, p in own.named_parameters()}
    assert all(g is not None for g in gradients.values())
    dense = {name: g.to_dense() if g.is_sparse else g for name, g in gradients.items()}  # type: ignore[union-attr]
    return {**{f"sum of {name}": x.detach() for name, x in sums._asdict().items()}, **dense}


def equal(shares: list[dict[str, Tensor]], whole: dict[str, Tensor], tolerance: float = EXACT) -> None:
    """Shares that add up to the whole."""
    for name, expected in whole.items():
        found = torch.stack([share[name] for share in shares]).sum(0)
        assert (found - expected).norm() <= tolerance * expected.norm().clamp(min=1e-3), name


def a_pack(seed: int = 0) -> tuple[Packed, Targets]:
    """A forest in which each cut goes through a segment, some rows of it predicting twice."""
    generator = torch.Generator().manual_seed(seed)
    segments = [torch.randint(VOCABULARY, (n,), generator=generator) for n in (13 + seed, 5, 4 + 2 * seed, 1, 9)]
    packed = keyed(Packed.tree(segments, parents=[ROOT, 0, 1, 0, ROOT], causal=True, samples=[3, 3, 3, 3, 8]))
    rows = torch.tensor([0, 3, 12, 12, 17, 20, 22, 26, 31])
    return packed, Targets(rows, packed.tokens[rows], torch.linspace(0.5, 2, len(rows)))


@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_add_up_to_those_of_one_rank(name: str) -> None:
    theirs = name.startswith("bridge")  # which round to single precision inside, or know no other
    model, (packed, wanted) = made(name, torch.float32 if theirs else torch.float64), a_pack()
    whole = learned(model, packed, wanted)
    for size in (1, 2, 3):
        shares = in_a_ring(size, lambda ring: learned(Ringed(copy.deepcopy(model), ring), packed, wanted))
        equal(shares, whole, SINGLE if theirs else EXACT)


@settings(max_examples=20)
@given(st.data(), forests(max_length=8), st.integers(1, 4), st.sampled_from(tiny.ARCHITECTURES))
def test_any_forest_adds_up(data: st.DataObject, packed: Packed, size: int, name: str) -> None:
    """Also those with too few rows for so many ranks, and with targets on some ranks only, or on none."""
    model, wanted = made(name), data.draw(targets(packed))
    whole = learned(model, keyed(packed), wanted)
    shares = in_a_ring(size, lambda ring: learned(Ringed(copy.deepcopy(model), ring), keyed(packed), wanted))
    equal(shares, whole)


def recomputed(model: SequenceModel) -> SequenceModel:
    """The same, its blocks computed again in the backward pass."""
    for block in model.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
    return model


def over_processes() -> list[dict[str, Tensor]]:
    torch.set_num_threads(1)
    ring, (packed, wanted) = ProcessRing.of(launched(), dist.group.WORLD), a_pack()
    found = [learned(Ringed(made(name), ring), packed, wanted) for name in ("llama", "gpt2")]
    found.append(learned(Ringed(recomputed(made("llama")), ring), packed, wanted))
    found.append(learned(Ringed(made("qwen3", torch.float32), ring), packed, wanted))
    few = Packed.tree([[1, 2]])
    found.append(learned(Ringed(made("llama"), ring), few, Targets(torch.tensor([1]), few.tokens[1:], torch.ones(1))))
    found.append(bent(Ringed(made("qwen3"), ring, values=True), packed, wanted, 2))
    return found


def test_processes_add_up_to_one() -> None:
    packed, wanted = a_pack()
    found = run_ranks(over_processes, 2)
    for number, name in enumerate(("llama", "gpt2", "llama")):
        equal([shares[number] for shares in found], learned(made(name), packed, wanted))
    equal([shares[3] for shares in found], learned(made("qwen3", torch.float32), packed, wanted), SINGLE)
    few = Packed.tree([[1, 2]])
    whole = learned(made("llama"), few, Targets(torch.tensor([1]), few.tokens[1:], torch.ones(1)))
    equal([shares[4] for shares in found], whole)
    equal([shares[5] for shares in found], bent(made("qwen3"), packed, wanted, 1))


def one_leaves() -> str:
    ring = ProcessRing.of(launched(), dist.group.WORLD)
    if ring.rank == 1:
        dist.destroy_process_group()
        return ""
    x = torch.zeros(4)
    with pytest.raises(RunError, match="rank 0 lost the others") as told:
        ring.hand_on(x, torch.empty(4))()
    dist.destroy_process_group()
    return str(told.value)


def test_a_rank_whose_neighbour_is_gone_says_so() -> None:
    (told, _) = run_ranks(one_leaves, 2)
    assert "See which rank ended first" in told


def test_a_rank_keeps_its_share_of_the_activations() -> None:
    """What autograd saves of a long document, beside the weights."""
    model, size = tiny.model("llama", layer_types=None, attention_dropout=0.0, hidden_dropout=0.0), 4
    packed = Packed.tree([torch.arange(1024) % VOCABULARY])
    wanted = Targets(torch.arange(1023), packed.tokens[1:], torch.ones(1023))

    def saved(model: Any) -> int:
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept: dict[int, int] = {}

        def note(x: Tensor) -> Tensor:
            if x.untyped_storage().data_ptr() not in weights:
                kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            (sums,) = model(packed, [Likelihood(wanted)])
        total = sum(kept.values())
        sums.loss.backward()
        return total

    alone = saved(model)
    shares = in_a_ring(size, lambda ring: saved(Ringed(copy.deepcopy(model), ring)))
    assert max(shares) < 1.1 * alone / size


def compiled_by_tracing(model: SequenceModel) -> SequenceModel:
    for block in model.blocks:
        block.compile(dynamic=True, backend="eager")
    return model


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_blocks_travel_too() -> None:
    """Tracing breaks where ranks talk to each other, and not anew for each pack."""
    alone = Alone()
    model, whole = Ringed(compiled_by_tracing(made("llama")), alone), made("llama")
    graphs = []
    for seed in range(4):
        packed, wanted = a_pack(seed)
        equal([learned(model, packed, wanted)], learned(whole, packed, wanted))
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs == [graphs[0]] * 4
    assert graphs[0] > 0


class Alone:
    rank, size = 0, 1

    def hand_on(self, given: Tensor, taken: Tensor) -> Any:
        raise AssertionError("nobody is there")


@given(forests(max_length=8), st.integers(1, 4))
def test_pieces_are_the_rows_as_they_are(packed: Packed, size: int) -> None:
    packed = keyed(packed)
    for runs in zigzag(len(packed), size):
        rows, own = rows_in(runs), pieces(packed, runs)
        assert len(own) == len(rows)
        for field in ("tokens", "positions", "keys"):
            assert torch.equal(getattr(own, field), getattr(packed, field)[rows])
        whose = packed.segment_of_row[rows]
        assert torch.equal(own.sample[own.segment_of_row], packed.sample[whose])
        assert torch.equal(own.causal[own.segment_of_row], packed.causal[whose])
        assert own.bounds[-1] == len(rows)
        assert (own.cu_seqlens.diff() > 0).all()
        for start, stop in zip(own.bounds, own.bounds[1:], strict=False):
            assert torch.equal(rows[start:stop], torch.arange(rows[start], rows[start] + stop - start))
            assert len(whose[start:stop].unique()) == 1


@given(st.data(), forests(min_segments=1), st.integers(1, 4))
def test_a_likelihood_is_shared_out_by_its_targets_rows(data: st.DataObject, packed: Packed, size: int) -> None:
    wanted = data.draw(targets(packed))
    whole = Likelihood(wanted, label_smoothing=0.2, z_loss=0.3)
    pairs = []
    for runs in zigzag(len(packed), size):
        share, rows = whole.within(runs), rows_in(runs)
        assert (share.label_smoothing, share.z_loss) == (0.2, 0.3)
        back = rows[share.targets.rows]
        pairs += list(zip(back.tolist(), share.targets.tokens.tolist(), share.targets.weights.tolist(), strict=True))
    expected = zip(wanted.rows.tolist(), wanted.tokens.tolist(), wanted.weights.tolist(), strict=True)
    assert sorted(pairs) == sorted(expected)


def test_what_does_not_add_up_is_refused() -> None:
    packed, wanted = a_pack()
    model = Ringed(made("llama"), Alone())
    for asked in (LogProbs(wanted), Values(wanted.rows), Logits(wanted.rows), Hidden(wanted.rows)):
        with pytest.raises(UnsupportedError, match=f"{type(asked).__name__} has no answer that adds up"):
            model(packed, [asked])
    with pytest.raises(UnsupportedError, match="Likelihood has no values of all rows for ranks which hold some"):
        Ringed(made("llama"), Alone(), values=True)(packed, [LogProbs(wanted), Likelihood(wanted)])
    with pytest.raises(UnsupportedError, match="cannot go on from a cache"):
        model(packed, [Likelihood(wanted)], Cache())


def bent(model: torch.nn.Module, packed: Packed, wanted: Targets, parts: int) -> dict[str, Tensor]:
    """A part of a loss that bends the sum of all targets, and each weight's gradient."""
    for parameter in model.parameters():
        parameter.grad = None
    (values,) = model(packed, [LogProbs(wanted)])
    loss = (values * wanted.weights).sum().tanh() + values.square().sum()
    (loss / parts).backward()
    own = model.inner if isinstance(model, Ringed) else model
    gradients = {name: p.grad for name, p in own.named_parameters()}
    dense = {name: g.to_dense() if g.is_sparse else g for name, g in gradients.items()}  # type: ignore[union-attr]
    return {"values": values.detach() / parts, "loss": loss.detach() / parts, **dense}


@settings(max_examples=15)
@given(st.data(), forests(min_segments=1, max_length=8), st.integers(1, 4), st.sampled_from(tiny.ARCHITECTURES))
def test_every_rank_has_all_values_and_its_part_of_the_loss(
    data: st.DataObject, packed: Packed, size: int, name: str
) -> None:
    """Also with too few rows for so many ranks, and with targets of some ranks only, or none."""
    model, wanted = made(name), data.draw(targets(packed))
    whole = bent(model, packed, wanted, 1)
    shares = in_a_ring(size, lambda ring: bent(Ringed(copy.deepcopy(model), ring, values=True), packed, wanted, size))
    for share in shares:
        torch.testing.assert_close(share["values"] * size, whole["values"], rtol=1e-9, atol=1e-11)
    equal(shares, whole)


@given(st.data(), forests(min_segments=1), st.integers(1, 4))
def test_values_are_shared_out_by_their_rows(data: st.DataObject, packed: Packed, size: int) -> None:
    wanted = data.draw(targets(packed))
    found = []
    for runs in zigzag(len(packed), size):
        rows = rows_in(runs)
        share, scored = LogProbs(wanted).within(runs), Values(wanted.rows).within(runs)
        assert torch.equal(scored.rows, share.targets.rows)
        back = rows[share.targets.rows]
        found += list(zip(back.tolist(), share.targets.tokens.tolist(), share.targets.weights.tolist(), strict=True))
    assert sorted(found) == sorted(
        zip(wanted.rows.tolist(), wanted.tokens.tolist(), wanted.weights.tolist(), strict=True)
    )


def test_it_is_the_model_within_that_is_trained() -> None:
    model = made("llama")
    ringed = Ringed(model, Alone())
    assert ringed.eval() is ringed
    assert not model.training
    assert not ringed.training
    model.train()
    assert ringed.training
    assert all(module.training for module in model.modules())
    ringed.train(False)
    assert not any(module.training for module in model.modules())
    ringed.compute_dtype = torch.bfloat16
    assert model.compute_dtype == ringed.compute_dtype == torch.bfloat16
    assert ringed.config is model.config
    assert ringed.notes is model.notes
    assert list(ringed.blocks) == list(model.blocks)
    packed, _ = a_pack()
    assert ringed.flops(packed, 3) == model.flops(packed, 3)
    assert {id(p) for p in ringed.parameters()} == {id(p) for p in model.parameters()}


def test_a_method_uses_it_as_its_policy() -> None:
    model, (packed, wanted) = made("llama"), a_pack()
    method, batch = SFT(label_smoothing=0.1), Batch(packed, wanted)
    for training in (True, False):
        model.train(training)
        whole = method.loss({"policy": model}, batch)

        def share(ring: Ring, training: bool = training) -> Any:
            with nullcontext() if training else torch.inference_mode():
                return method.loss({"policy": Ringed(copy.deepcopy(model), ring)}, batch)

        shares = in_a_ring(3, share)
        for kind in ("losses", "metrics"):
            terms = getattr(whole, kind)
            assert terms.keys() == getattr(shares[0], kind).keys()
            for name, value in terms.items():
                torch.testing.assert_close(sum(getattr(s, kind)[name] for s in shares), value, rtol=1e-9, atol=1e-9)
