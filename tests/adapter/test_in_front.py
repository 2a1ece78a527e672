"""Prefix-Tuning and prompt tuning, which stand in front of sequences, against `peft` and against their definitions."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import tiny
from adapter.bases import BASES, base, logits, pack, peft_logits, stirred
from danlu.adapter.adapted import Adapters
from danlu.adapter.contract import Adapter
from danlu.adapter.hub import read_adapter, save_adapter
from danlu.adapter.lora import LoRA
from danlu.adapter.prefix import PrefixTuning
from danlu.adapter.prompt import PromptTuning
from danlu.architecture.checkpoint import load_model
from danlu.contracts import SequenceModel
from danlu.engine.context import Ringed
from danlu.engine.recompute import recompute
from danlu.errors import CheckpointError, RecipeError, UnsupportedError
from danlu.generate.cache import Cache
from danlu.generate.generator import complete, generate
from danlu.generate.sampling import Sampling
from danlu.packed import NO_ADAPTER, ROOT, Packed, Targets
from danlu.parts.readout import Hidden, Likelihood, Logits, LogProbs
from danlu.tensor_file import load_tensors
from rings import in_a_ring
from strategies import VOCABULARY, keyed

pytestmark = [pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")]  # of peft, to itself

KINDS: dict[str, Adapter] = {
    "prefix": PrefixTuning(length=3, hidden=5),
    "prefix as it is": PrefixTuning(length=5, reparameterize=False),
    "prompt": PromptTuning(length=3),
}


def exact(model: SequenceModel) -> SequenceModel:
    """In float64, whatever is trained moved."""
    model.double()
    model.compute_dtype = torch.float64
    stirred(model)
    return model


def adapters(model: SequenceModel) -> Adapters:
    assert isinstance(model.adapted, Adapters)
    return model.adapted


def close(where: str) -> dict[str, float]:
    tolerance = 1e-5 if where == "bridged-gemma2" else 1e-9  # whose norm computes in float32 whatever it is given
    return {"rtol": tolerance, "atol": tolerance}


@pytest.mark.parametrize("where", BASES)
@pytest.mark.parametrize("kind", KINDS)
def test_peft_computes_the_same_with_our_adapter(kind: str, where: str, tmp_path: Path) -> None:
    """Grouped heads, heads that are wider than the width divided by their number, and windows are among the bases."""
    peft = pytest.importorskip("peft")
    model = base(where, tmp_path / "base")
    attached = KINDS[kind].attach(model)
    stirred(model)
    save_adapter(attached, tmp_path / "adapter", base=str(tmp_path / "base"))
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    torch.testing.assert_close(peft_logits(theirs, pack()), logits(model, pack()), rtol=1e-4, atol=1e-4)


def their_config(peft: Any, kind: str) -> Any:
    common = {"num_virtual_tokens": 4, "task_type": "CAUSAL_LM"}
    if kind == "prompt":
        return peft.PromptTuningConfig(**common)
    return peft.PrefixTuningConfig(**common, prefix_projection=kind == "made by a network", encoder_hidden_size=6)


@pytest.mark.parametrize("where", ["gpt2", "llama", "qwen3", "bridged-gemma2"])
@pytest.mark.parametrize("kind", ["prefix", "made by a network", "prompt"])
def test_we_compute_the_same_with_an_adapter_of_peft(kind: str, where: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base(where, tmp_path / "base")
    inner = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    torch.manual_seed(1)
    wrapped = peft.get_peft_model(inner, their_config(peft, kind)).eval()
    wrapped.save_pretrained(tmp_path / "adapter")
    model = load_model(tmp_path / "base", bridge=where.startswith("bridged-")).eval()
    before = logits(model, pack())
    read_adapter(tmp_path / "adapter").attach(model)
    assert not torch.allclose(logits(model, pack()), before, atol=1e-2)
    torch.testing.assert_close(logits(model, pack()), peft_logits(wrapped, pack()), rtol=1e-4, atol=1e-4)


def test_beyond_windows_is_what_peft_does_not_do(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = base("qwen2", tmp_path / "base")
    attached = PrefixTuning(length=2, reparameterize=False, beyond_windows=True).attach(model)
    stirred(model)
    save_adapter(attached, tmp_path / "adapter", base=str(tmp_path / "base"))
    assert read_adapter(tmp_path / "adapter").adapter == attached.adapter
    with pytest.warns(UserWarning, match="danlu_beyond_windows"):
        theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    short, long = Packed.tree([[4]]), Packed.tree([[4, 5, 6, 7, 8, 9]])
    torch.testing.assert_close(peft_logits(theirs, short), logits(model, short), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(peft_logits(theirs, long)[-1], logits(model, long)[-1], atol=1e-3)


def test_a_prefix_begins_as_what_the_network_of_the_paper_makes(tmp_path: Path) -> None:
    model = base("llama", tmp_path)
    attached = PrefixTuning(length=3, hidden=5).attach(model, seed=4)
    parts = {name: parameter.detach() for name, parameter in attached.learned.named_parameters()}
    network = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 2 * 2 * 2 * 4))
    state = {"0.weight": parts["W1"], "0.bias": parts["b1"], "2.weight": parts["W2"], "2.bias": parts["b2"]}
    network.load_state_dict(state)
    torch.testing.assert_close(attached.learned.flat(), network(parts["embedding"]))
    for name, inputs in (("W1", 8), ("b1", 8), ("W2", 5), ("b2", 5)):
        assert 0.5 * inputs**-0.5 < float(parts[name].abs().max()) <= inputs**-0.5  # as torch begins linear layers


def test_first_values_follow_from_the_seed(tmp_path: Path) -> None:
    for adapter in KINDS.values():
        found = []
        for seed in (0, 0, 1):
            model = base("llama", tmp_path)
            adapter.attach(model, seed=seed)
            found.append({name: p.clone() for name, p in model.named_parameters() if p.requires_grad})
        assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
        assert not any(torch.equal(found[0][name], found[2][name]) for name in found[0])


def test_a_file_holds_the_prefix_alone_and_is_trained_on_as_it_is(tmp_path: Path) -> None:
    model = base("qwen3", tmp_path / "base")
    attached = PrefixTuning(length=3, hidden=5).attach(model)
    stirred(model)
    save_adapter(attached, tmp_path / "adapter", base=str(tmp_path / "base"))
    tensors, _ = load_tensors(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {"prompt_embeddings": (3, 2 * 2 * 2 * 4)}
    again = base("qwen3", tmp_path / "base")
    read_adapter(tmp_path / "adapter").attach(again)
    trained = {name: p for name, p in again.named_parameters() if p.requires_grad}
    assert list(trained) == ["prefix.weight"]
    assert torch.equal(trained["prefix.weight"], tensors["prompt_embeddings"])
    with pytest.raises(CheckpointError, match="a network makes"):
        attached.load(tensors)


@pytest.mark.parametrize("where", BASES)
@pytest.mark.parametrize("kind", KINDS)
def test_with_a_cache_it_is_what_it_is_all_at_once(kind: str, where: str, tmp_path: Path) -> None:
    """Sequences come and go, several tokens at a time and one; keys that all see are kept once."""
    model = base(where, tmp_path).double()
    KINDS[kind].attach(model)
    exact(model)
    texts = {7: [3, 1, 4, 1, 5, 9, 2, 6], 3: [2, 7, 1, 8], 5: [1, 1, 2, 3, 5, 8, 12]}
    schedule = [{7: 5, 3: 1}, {7: 1, 3: 1, 5: 6}, {3: 2, 5: 1}, {7: 2}]
    cache, given, past = Cache(num_rows=2), {sample: [] for sample in texts}, dict.fromkeys(texts, 0)
    for chunks in schedule:
        pieces = [texts[sample][past[sample] : past[sample] + n] for sample, n in chunks.items()]
        positions = torch.cat([torch.arange(past[sample], past[sample] + n) for sample, n in chunks.items()])
        packed = Packed.tree(pieces, parents=[ROOT] * len(chunks), samples=list(chunks), positions=positions)
        with torch.no_grad():
            (found,) = model(packed, [Logits(torch.arange(len(packed)))], cache)
        for (sample, n), part in zip(chunks.items(), found.split(list(chunks.values())), strict=True):
            given[sample].append(part)
            past[sample] += n
    for sample, text in texts.items():
        torch.testing.assert_close(torch.cat(given[sample]), logits(model, Packed.tree([text])), **close(where))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_what_would_be_written_from_scratch(kind: str, tmp_path: Path) -> None:
    model = base("gpt2", tmp_path)
    KINDS[kind].attach(model)
    exact(model)
    prompts = [[3, 4, 5], [6], [7, 8, 9, 10, 2]]
    for prompt, written in zip(
        prompts, complete(model, prompts, Sampling(max_new_tokens=9, temperature=0), max_active=2), strict=True
    ):
        ids = list(prompt)
        for token in written.tokens:
            assert int(logits(model, Packed.tree([ids]))[-1].argmax()) == token
            ids.append(token)


def test_a_prefix_is_written_into_a_cache_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = base("llama", tmp_path)
    attached = PrefixTuning(length=3, hidden=5).attach(model)
    made = []
    values = attached.learned.values
    monkeypatch.setattr(attached.learned, "values", lambda dtype: made.append(dtype) or values(dtype))
    complete(model, [[1, 2], [3]], Sampling(max_new_tokens=8))
    assert made == [torch.float32]


def chosen(packed: Packed, adapters: list[int]) -> Packed:
    return replace(packed, adapter=torch.tensor(adapters))


def test_several_in_one_pack_are_what_each_is_alone(tmp_path: Path) -> None:
    """Two prefixes of different lengths, a prompt and a LoRA, beside what goes through none."""
    model = base("qwen3", tmp_path).double()
    every = {
        "first": PrefixTuning(length=3, hidden=5),
        "soft": PromptTuning(length=2),
        "second": PrefixTuning(length=7, reparameterize=False),
        "low": LoRA(rank=2),
    }
    for name, adapter in every.items():
        adapter.attach(model, name=name)
        exact(model)
    trees = [pack().split()[0], *(Packed.tree([[n, 3, n + 1, 5]], samples=n) for n in range(9))]
    which = [0, 1, 3, 2, 2, 1, 1, NO_ADAPTER, 0, 3]
    packed = Packed.join([chosen(t, [n] * t.num_segments) for t, n in zip(trees, which, strict=True)])
    together = logits(model, packed)
    names = list(every)
    for tree, number, (start, stop) in zip(trees, which, packed.trees, strict=True):
        with adapters(model).off() if number == NO_ADAPTER else adapters(model).use(names[number]):
            torch.testing.assert_close(together[start:stop], logits(model, tree), rtol=1e-9, atol=1e-9)


def test_segments_of_a_tree_may_see_different_prefixes(tmp_path: Path) -> None:
    """The definition: the rows of each see their own, whatever their ancestors see."""
    model = base("llama", tmp_path).double()
    for name, length in (("a", 2), ("b", 4)):
        PrefixTuning(length=length, reparameterize=False).attach(model, name=name)
        exact(model)
    whole = Packed.tree([[1, 2, 3], [4, 5], [6, 7, 8]], parents=[ROOT, 0, 0])
    both = logits(model, chosen(whole, [0, 1, 0]))
    plain = logits(model, chosen(whole, [0, 0, 0]))
    torch.testing.assert_close(both[[0, 1, 2, 5, 6, 7]], plain[[0, 1, 2, 5, 6, 7]], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(both[3:5], plain[3:5])


@pytest.mark.parametrize("causal", [True, False])
def test_learned_rows_are_the_causal_root_of_every_tree(causal: bool, tmp_path: Path) -> None:
    model, seen = base("llama", tmp_path), []
    PromptTuning(length=2).attach(model)
    model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[1]))  # type: ignore[index]
    logits(model, Packed.tree([[1, 2], [3], [4, 5]], parents=[ROOT, 0, ROOT], causal=causal))
    full = int(not causal)
    expected = [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, full, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, full],
        [1, 1, 0, 0, 0, 1, 1],
    ]
    assert seen[0].sight.mask().int().tolist() == expected
    offsets = [0, 1, 2, 3, 4, 2, 3]
    assert seen[0].query_offset.tolist() == offsets


@pytest.mark.parametrize("kind", KINDS)
def test_every_readout_is_of_the_rows_it_asks_about(kind: str, tmp_path: Path) -> None:
    """Together, and by `Likelihood`, the sums of `LogProbs`, which are of `Logits`, which are of `Hidden`."""
    model = base("llama", tmp_path)
    KINDS[kind].attach(model)
    exact(model)
    packed, rows = pack(), torch.tensor([1, 3, 6, 12])
    targets = Targets(rows, torch.tensor([2, 0, 5, 7]), torch.tensor([1.0, 0.5, 2.0, 1.0]))
    asked = [Likelihood(targets), LogProbs(targets), Logits(rows), Hidden(rows)]
    with torch.no_grad():
        sums, log_probs, found, hidden = model(packed, asked)
    torch.testing.assert_close(found, hidden @ model.lm_head.weight.T)  # type: ignore[union-attr]
    torch.testing.assert_close(log_probs, found.log_softmax(-1)[torch.arange(4), targets.tokens])
    torch.testing.assert_close(sums.loss, -(log_probs * targets.weights).sum())
    torch.testing.assert_close(found, logits(model, packed)[rows])


def gradients(model: SequenceModel, packed: Packed) -> list[Tensor]:
    targets = Targets(torch.arange(len(packed)), packed.tokens.roll(1), torch.linspace(0.5, 1.5, len(packed)))
    model.zero_grad(set_to_none=True)
    (sums,) = model(packed, [Likelihood(targets)])
    sums.loss.backward()
    return [p.grad for p in model.parameters() if p.requires_grad]  # type: ignore[misc]


@pytest.mark.parametrize("where", ["gpt2", "qwen3", "bridged-gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_made_again_in_backward_gradients_are_the_same_to_the_bit(kind: str, where: str, tmp_path: Path) -> None:
    found = []
    for mode in ("none", "selective", "full"):
        model = base(where, tmp_path)
        KINDS[kind].attach(model)
        stirred(model)
        recompute(model, mode)  # type: ignore[arg-type]
        model.train()
        found.append(gradients(model, keyed(pack())))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("where", ["gpt2", "bridged-gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pack_of_nothing_gives_what_is_learned_a_gradient_of_zero(kind: str, where: str, tmp_path: Path) -> None:
    """Or sharded ranks, one of which has no more packs, would wait for each other."""
    model = base(where, tmp_path)
    KINDS[kind].attach(model)
    (sums,) = model(Packed.empty(), [Likelihood(Targets.none())])
    sums.loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("where", tiny.ARCHITECTURES)
def test_on_a_ring_gradients_of_a_prefix_add_up(where: str) -> None:
    model = tiny.model(where)
    PrefixTuning(length=5, hidden=4).attach(model)
    exact(model)
    packed = keyed(pack())
    whole = gradients(model, packed)
    for size in (1, 2, 3):
        shares = in_a_ring(size, lambda ring: gradients(Ringed(copy.deepcopy(model), ring), packed))
        for expected, *parts in zip(whole, *shares, strict=True):
            torch.testing.assert_close(torch.stack(parts).sum(0), expected, rtol=1e-9, atol=1e-9)


def test_a_prompt_on_a_ring_is_refused() -> None:
    model = tiny.model("llama")
    PromptTuning(length=2).attach(model)

    def made(ring: Any) -> None:
        with pytest.raises(UnsupportedError, match=r"run.context_parallel: an adapter puts rows of its own into packs"):
            Ringed(model, ring)

    in_a_ring(1, made)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_keyed_and_reaches_what_is_in_front(kind: str) -> None:
    model = tiny.model("gpt2")
    KINDS[kind].attach(model)
    exact(model)
    first, again, other = (gradients(model, keyed(pack(), step=step)) for step in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    if kind == "prompt":
        with pytest.raises(ValueError, match="what they follow from"):
            gradients(model, replace(keyed(pack()), key=None))


def test_a_prompt_begins_as_tokens_of_the_model(tmp_path: Path) -> None:
    model = base("llama", tmp_path)
    table = model.embedding.weight.detach().clone()
    drawn = PromptTuning(length=40).attach(model).learned.weight
    assert all(any(torch.equal(row, token) for token in table) for row in drawn)
    assert len({tuple(row.tolist()) for row in drawn}) > VOCABULARY // 2
    spoken = PromptTuning(length=5, text="ab").encoded(lambda text: [ord(c) - ord("a") for c in text])
    written = spoken.attach(base("llama", tmp_path)).learned.weight
    assert torch.equal(written, table[[0, 1, 0, 1, 0]])
    normal = PromptTuning(length=400, start="normal").attach(base("llama", tmp_path)).learned.weight.detach()
    assert abs(float(normal.mean())) < 0.1
    assert abs(float(normal.std()) - 1) < 0.1


def test_bad_input_is_a_sentence(tmp_path: Path) -> None:
    model = base("gpt2", tmp_path)
    with pytest.raises(RecipeError, match=r"adapter.text: the text has 4 tokens, and adapter.length is 3\. Shorten"):
        PromptTuning(length=3, text="long").encoded(lambda text: list(range(len(text))))
    with pytest.raises(RecipeError, match="the text was not turned into tokens"):
        PromptTuning(length=3, text="long").attach(model)
    with pytest.raises(RecipeError, match="token 13 is none of the model's 13"):
        PromptTuning(length=3, tokens=(13,)).attach(model)
    for adapter in (PrefixTuning, PromptTuning):
        with pytest.raises(ValueError, match="greater than or equal to 1"):
            adapter(length=0)
        with pytest.raises(RecipeError, match=r"adapter.length: 48 positions in front .* leave none of the model's 48"):
            adapter(length=48).attach(model)
    with pytest.raises(ValueError, match="tokens has 2 tokens for a length of 1"):
        PromptTuning(length=1, tokens=(1, 2))
    PrefixTuning(length=40).attach(model)
    with pytest.raises(UnsupportedError, match=r"come to 9, the model has positions for 8"):
        generate(model, [[1, 2, 3]], Sampling(max_new_tokens=6))
    latent = pytest.importorskip("architecture.bridged").bridged("deepseek_v3")
    with pytest.raises(UnsupportedError, match="keys and values of 'deepseek_v3' are not of one shape"):
        PrefixTuning().attach(latent)


def test_a_model_that_keeps_no_keys_has_no_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("llama")
    monkeypatch.setattr(
        type(model.config), "memory_shape", property(lambda _: (_ for _ in ()).throw(NotImplementedError))
    )
    with pytest.raises(UnsupportedError, match="the layers of 'llama' keep no keys"):
        PrefixTuning().attach(model)


def test_half_a_tree_has_no_prompt(tmp_path: Path) -> None:
    model = base("llama", tmp_path)
    PromptTuning(length=2).attach(model)
    with pytest.raises(RecipeError, match="only a part of a tree"):
        logits(model, chosen(pack(), [0, 0, NO_ADAPTER, 0, 0]))


def test_files_of_an_encoder_and_a_decoder_are_refused(tmp_path: Path) -> None:
    model = base("llama", tmp_path / "base")
    for adapter in KINDS.values():
        save_adapter(adapter.attach(copy.deepcopy(model)), tmp_path / "adapter", base="nowhere")
        file = tmp_path / "adapter" / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "num_transformer_submodules": 2}))
        with pytest.raises(UnsupportedError, match="for an encoder and a decoder"):
            read_adapter(tmp_path / "adapter")
