"""Models that score sequences: what `transformers` loads by AutoModelForSequenceClassification."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

import tiny
from danlu.architecture.bridge import Bridged
from danlu.architecture.checkpoint import load_model, save_model
from danlu.architecture.scorer import as_scorer
from danlu.contracts import SequenceModel
from danlu.errors import UnsupportedError
from danlu.generate import Sampling, generate
from danlu.packed import ROOT, Packed, Targets
from danlu.parts.readout import Hidden, Likelihood, Logits, LogProbs, Values

from .bridged import VOCABULARY, build

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
CARRIED = ("qwen3", "gemma2", "gpt_neox", "mistral")


def forest() -> Packed:
    """A prompt with two answers, and a text."""
    generator = torch.Generator().manual_seed(1)
    segments = [torch.randint(2, 13, (length,), generator=generator) for length in (4, 3, 5, 6)]
    return Packed.tree(segments, parents=[ROOT, 0, 0, ROOT])


def last_rows(packed: Packed) -> Tensor:
    return torch.tensor([int(rows[-1]) for _, rows in packed.unroll()])


def ours(model: SequenceModel, packed: Packed) -> Tensor:
    with torch.no_grad():
        (scores,) = model(packed, [Values(last_rows(packed))])
    return scores


def theirs(directory: Path, packed: Packed) -> Tensor:
    """Of each path alone, by the class that the files name."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    assert type(model).__name__ == json.loads((directory / "config.json").read_text())["architectures"][0]
    assert model.config.num_labels == 1
    with torch.no_grad():
        return torch.cat([model(input_ids=path.tokens[None]).logits[0] for path, _ in packed.unroll()])


def made(name: str) -> SequenceModel:
    """A language model on the host, as it is loaded."""
    if name in tiny.ARCHITECTURES:  # of Llama, transformers knows no windows
        return tiny.model(name, dtype=torch.float32, **({"layer_types": None} if name == "llama" else {}))
    return Bridged(build(name.removeprefix("bridge ")))


@pytest.mark.parametrize("name", [*tiny.ARCHITECTURES, *(f"bridge {kind}" for kind in CARRIED)])
def test_a_scorer_is_what_transformers_loads_and_is_loaded_again(name: str, tmp_path: Path) -> None:
    language, packed = made(name), forest()
    with torch.no_grad():
        (hidden,) = language(packed, [Hidden(last_rows(packed))])
    scorer = as_scorer(language, seed=3).eval()
    assert scorer.config.scores
    assert as_scorer(scorer, seed=4) is scorer
    save_model(scorer, tmp_path / "model")
    found = ours(scorer, packed)
    weight = next(p for n, p in scorer.named_parameters() if n.endswith("score.weight"))
    assert weight.shape == (1, hidden.shape[1])
    torch.testing.assert_close(found, (hidden.float() @ weight.detach().t()).squeeze(1), **TOLERANCE)
    assert not any("lm_head" in name for name, _ in scorer.named_parameters())
    torch.testing.assert_close(theirs(tmp_path / "model", packed), found, **TOLERANCE)
    again = load_model(tmp_path / "model", bridge=name.startswith("bridge"))
    assert type(again) is type(scorer)
    assert again.config.scores
    torch.testing.assert_close(ours(again, packed), found, rtol=1e-6, atol=1e-7)
    save_model(again, tmp_path / "again", like=tmp_path / "model")
    torch.testing.assert_close(theirs(tmp_path / "again", packed), found, **TOLERANCE)


def test_the_heads_weights_are_drawn_as_transformers_draws_them() -> None:
    """Normal, by the config's standard deviation; another seed draws others."""
    wide = {"hidden_size": 1024, "num_attention_heads": 4, "num_hidden_layers": 1, "layer_types": None}
    model = tiny.model("llama", dtype=torch.float32, **wide)
    first, second = (as_scorer(model, seed).score.weight for seed in (0, 1))
    assert float(first.detach().std()) == pytest.approx(model.config.initializer_range, rel=0.1)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bridge qwen3"])
def test_what_has_no_tokens_to_predict_says_so(name: str) -> None:
    scorer, packed = as_scorer(made(name), seed=0), forest()
    wanted = Targets(torch.tensor([1]), packed.tokens[1:2], torch.ones(1))
    for asked in (Likelihood(wanted), LogProbs(wanted), Logits(torch.tensor([0]))):
        with pytest.raises(UnsupportedError, match="scores sequences, and predicts no tokens"):
            scorer(packed, [asked])
    with pytest.raises(UnsupportedError, match="scores sequences, .* Generate with the language model"):
        generate(scorer, [[1, 2]], Sampling())
    with pytest.raises(UnsupportedError, match="predicts tokens, and scores no sequences"):
        made(name)(packed, [Values(torch.tensor([0]))])


def test_a_classifier_is_no_reward_model(tmp_path: Path) -> None:
    config = transformers.Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_labels=3
    )
    transformers.Qwen3ForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match="sorts sequences into 3 classes. A reward model has one label"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bridge qwen3"])
def test_operations_are_counted_without_a_vocabulary(name: str) -> None:
    model, packed = made(name), forest()
    with_tokens = model.flops(packed, 2) - model.flops(packed, 0)
    width = with_tokens // (2 * 2 * model.config.vocabulary)
    scorer = as_scorer(model, seed=0)
    assert scorer.flops(packed, 2) - scorer.flops(packed, 0) == 2 * 2 * width
