"""The contract of every exported architecture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import tiny
from danlu.contracts import ArchitectureConfig, SequenceModel
from danlu.packed import ROOT, Packed, Targets
from danlu.parts import attention as attention_module
from danlu.parts.attention import Asked, Backend, attend_reference, backend_for
from danlu.parts.linear import Dropout
from danlu.parts.readout import Hidden, Likelihood, Logits
from danlu.sight import Extra, Sight
from strategies import VOCABULARY, forests, keyed

pytestmark = pytest.mark.parametrize("name", tiny.ARCHITECTURES)

DROPS = ("attention_dropout", "hidden_dropout", "embd_pdrop", "attn_pdrop", "resid_pdrop")


def document(length: int = 7, *, causal: bool = True) -> Packed:
    return Packed.tree([(torch.arange(length) * 5 + 2) % VOCABULARY], causal=causal)


def initialized(config: ArchitectureConfig, seed: int) -> SequenceModel:
    model = config.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    config.initialize(model, seed)
    return model


def test_it_builds_and_initializes_every_weight_from_the_seed_alone(name: str) -> None:
    config = tiny.config(name)
    state = torch.get_rng_state()
    first, same, other = (initialized(config, seed) for seed in (1, 1, 2))
    assert isinstance(first, SequenceModel)
    for key, parameter in first.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.isfinite().all(), key
        assert torch.equal(parameter, dict(same.named_parameters())[key]), key
        if parameter.dim() > 1:
            assert not torch.equal(parameter, dict(other.named_parameters())[key]), key
    again = initialized(config, 1)
    torch.rand(3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    config.initialize(again, 5)
    torch.set_rng_state(state)


def test_initializing_leaves_torchs_generator_alone(name: str) -> None:
    config = tiny.config(name)
    model = config.build()
    state = torch.get_rng_state()
    config.initialize(model, 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_fresh_model_knows_nothing(name: str) -> None:
    """Its loss is near that of guessing; what it says of itself is finite."""
    model = initialized(tiny.config(name), 0)
    pack = document()
    logits, sums = model(pack, [Logits(torch.arange(len(pack))), Likelihood(next_tokens(pack))])
    assert logits.isfinite().all()
    assert float(sums.nll) / (len(pack) - 1) == pytest.approx(math.log(VOCABULARY), rel=0.02)


def next_tokens(packed: Packed) -> Targets:
    rows = torch.arange(len(packed) - 1)
    return Targets(rows, packed.tokens[1:], torch.ones(len(rows)))


def test_gradients_reach_every_weight(name: str) -> None:
    model, pack = tiny.model(name), document(12)
    (sums,) = model(pack, [Likelihood(next_tokens(pack))])
    sums.loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 1e-8 or key.endswith("k_proj.bias"), key  # softmax hardly knows it


def test_every_weight_has_one_name_in_the_hub_and_every_name_one_weight(name: str) -> None:
    config = tiny.config(name)
    names = config.hub_names()
    assert set(names) == {key for key, _ in config.build().named_parameters()}
    assert len(set(names.values())) == len(names)
    assert config.hub_transposed() <= set(names)


def test_its_config_survives_the_hub_format(name: str) -> None:
    config = tiny.config(name)
    told = config.to_hub()
    assert told["model_type"] == config.model_type
    again = type(config).from_hub(told)
    exclude = {"hidden_dropout"}  # the hub's format has no place for it
    assert again.model_dump(exclude=exclude) == config.model_dump(exclude=exclude)
    assert config.vocabulary == again.vocabulary == VOCABULARY
    assert config.longest is None or config.longest > 0


@dataclass
class Recorder:
    """A memory that keeps nothing, and notes what it is offered."""

    shapes: dict[int, list[tuple[int, ...]]] = field(default_factory=dict)

    def sight(self, packed: Packed) -> Sight:
        return packed.sight

    def backend(self, layer: int) -> Backend:
        def attend(q: Tensor, k: Tensor, v: Tensor, sight: Sight, asked: Asked) -> Tensor:
            self.shapes.setdefault(layer, []).extend([tuple(k.shape), tuple(v.shape)])
            return backend_for(q.device)(q, k, v, sight, asked)

        return attend

    def with_extra(self, extra: Sequence[Extra]) -> Recorder:
        return self


def test_the_keys_and_values_offered_to_memory_are_of_the_shape_it_says(name: str) -> None:
    model, recorder, pack = tiny.model(name), Recorder(), document()
    every = [Logits(torch.arange(len(pack)))]
    (found,) = model(pack, every, recorder)
    layers, heads, width = model.config.memory_shape
    assert recorder.shapes == {layer: [(len(pack), heads, width)] * 2 for layer in range(layers)}
    assert torch.equal(found, model(pack, every)[0])


def test_blocks_are_its_repeated_parts(name: str) -> None:
    model = tiny.model(name)
    blocks = list(model.blocks)
    assert len(blocks) == model.config.memory_shape[0]
    assert len({type(block) for block in blocks}) == 1
    assert {id(p) for block in blocks for p in block.parameters()} < {id(p) for p in model.parameters()}


def counted(model: SequenceModel, packed: Packed, rows: int) -> tuple[int, int]:
    """Operations of products with weights, and of products in attention, as torch counts them in the reference."""
    with patch.object(attention_module, "backend_for", lambda _: attend_reference):
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            model(packed, [Logits(torch.arange(rows))])
    each = {operation.__name__: flops for operation, flops in counter.get_flop_counts()["Global"].items()}
    attention = each.pop("bmm", 0) + each.pop("bmm.default", 0)
    return sum(each.values()), attention


@pytest.mark.parametrize(("length", "rows"), [(7, 3), (2, 1), (12, 0)])
def test_its_operations_are_those_torch_counts(name: str, length: int, rows: int) -> None:
    """In a full segment without a window every pair is seen, as in the reference's own products."""
    model, pack = tiny.model(name, **unlimited(name)), document(length, causal=False)
    linear, attention = counted(model, pack, rows)
    assert model.flops(pack, rows) == linear + attention > 0
    half = document(length)
    assert model.flops(half, rows) == linear + attention * half.visible_pairs() // length**2


def unlimited(name: str) -> dict[str, None]:
    return {"layer_types": None} if "layer_types" in tiny.FIELDS[name] else {}


def test_a_window_and_a_shared_prompt_save_operations(name: str) -> None:
    free = tiny.model(name, **unlimited(name))
    tree = Packed.tree([[1] * 9, [2] * 5, [3] * 4], parents=[ROOT, 0, 0])
    alone = sum(free.flops(path, 0) for path, _ in tree.unroll())
    assert free.flops(tree, 0) < alone
    if unlimited(name):
        windowed = tiny.model(name)
        saved = sum(tree.visible_pairs() - tree.visible_pairs(windowed.config.window(layer)) for layer in range(2))
        config = windowed.config
        assert saved > 0
        assert free.flops(tree, 0) - windowed.flops(tree, 0) == 4 * config.num_attention_heads * config.head_dim * saved


def test_operations_add_up_over_trees_and_targets(name: str) -> None:
    model = tiny.model(name)

    @given(forests(), forests())
    def check(a: Packed, b: Packed) -> None:
        assert model.flops(Packed.join([a, b]), 5) == model.flops(a, 2) + model.flops(b, 3)

    check()
    assert model.flops(Packed.empty(), 0) == 0


def test_it_computes_in_the_precision_it_is_told(name: str) -> None:
    model, pack = tiny.model(name, dtype=torch.float32), document(12)
    model.compute_dtype = torch.bfloat16
    hidden, sums = model(pack, [Hidden(torch.arange(4)), Likelihood(next_tokens(pack))])
    assert (hidden.dtype, sums.loss.dtype) == (torch.bfloat16, torch.float32)
    sums.loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    model.compute_dtype = torch.float32
    exact = model(pack, [Likelihood(next_tokens(pack))])[0].loss
    torch.testing.assert_close(sums.loss, exact, rtol=0.05, atol=0)


def test_dropout_is_on_with_keys_only_and_off_at_zero(name: str) -> None:
    model, pack = tiny.model(name), document()
    readout = [Hidden(torch.arange(len(pack)))]
    plain, dropped = model(pack, readout)[0], model(keyed(pack), readout)[0]
    assert torch.equal(plain, model(pack, readout)[0])
    assert torch.equal(dropped, model(keyed(pack), readout)[0])
    assert not torch.allclose(plain, dropped)
    assert not torch.allclose(dropped, model(keyed(pack, step=2), readout)[0])
    fields = [key for key in tiny.FIELDS[name] if key in DROPS]
    silent = tiny.model(name, **dict.fromkeys(fields, 0.0))
    torch.testing.assert_close(silent(keyed(pack), readout)[0], plain, rtol=1e-12, atol=1e-12)
    places = {key: module for key, module in silent.named_modules() if isinstance(module, Dropout)}
    for key, module in places.items():  # each of them does something by itself
        module.p = 0.4
        assert not torch.allclose(silent(keyed(pack), readout)[0], plain), key
        module.p = 0.0


def test_dropout_differs_from_place_to_place(name: str) -> None:
    places = [int(module.place) for module in tiny.model(name).modules() if isinstance(module, Dropout)]
    assert len(places) == len(set(places)) > 2


def test_nothing_of_it_is_kept_beside_its_parameters(name: str) -> None:
    model = tiny.model(name)
    assert set(model.state_dict()) == {key for key, _ in model.named_parameters()}
    assert not any(isinstance(module, nn.Dropout) for module in model.modules())
