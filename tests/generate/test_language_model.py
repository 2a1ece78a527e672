from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from danlu.architecture.gpt2 import GPT2Config
from danlu.architecture.hub import save_hub
from danlu.architecture.llama import LlamaConfig
from danlu.data.tokenizer import Tokenizer
from danlu.errors import CheckpointError, RecipeError, UnsupportedError
from danlu.generate import LanguageModel
from danlu.generate.text import pieces

BYTES = Tokenizer.train_bpe([], 257)
NO_BOS = Tokenizer({"tokenizer.json": BYTES.json}, bos_id=None, eos_id=None)


def checkpoint(path: Path, tokenizer: Tokenizer = BYTES, vocabulary: int = 257, longest: int = 64) -> Path:
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=longest, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5
    )
    model = config.build()
    config.initialize(model, seed=0)
    save_hub(model, path)
    tokenizer.save(path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return LanguageModel.load(checkpoint(tmp_path_factory.mktemp("model")))


def of_no_bos(model: LanguageModel) -> LanguageModel:
    return LanguageModel(model.model, NO_BOS)


@given(prompt=st.text(max_size=5), text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_pieces_are_whole_characters_and_make_the_text(prompt: str, text: str) -> None:
    ids = [BYTES.encode(x.encode("utf-8", "replace").decode()).tolist() for x in (prompt, text)]
    streamed = list(pieces(BYTES, ids[0], ids[1]))
    assert "".join(streamed) == text
    assert all(streamed)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in streamed)
        assert len(streamed) == len(text)


@given(text=st.text(max_size=6), noise=st.lists(st.integers(1, 256), max_size=12))
def test_bytes_that_are_no_text_come_out_as_decoding_gives_them(text: str, noise: list[int]) -> None:
    prompt = BYTES.encode(text.encode("utf-8", "replace").decode()).tolist()
    assert "".join(pieces(BYTES, prompt, noise)) == BYTES.decode([*prompt, *noise])[len(BYTES.decode(prompt)) :]


def test_a_text_that_breaks_off_within_a_character_ends_with_a_mark() -> None:
    ids = BYTES.encode("é").tolist()
    assert list(pieces(BYTES, [], ids[:1])) == ["\ufffd"]


def test_a_space_between_words_is_kept_where_a_tokenizer_hides_it() -> None:
    """As Llama 2's does: a text's first space is dropped, so a continuation alone would lose its own."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models

    backend = Backend(models.WordLevel({"▁one": 0, "▁two": 1}, unk_token="▁one"))
    backend.decoder = decoders.Metaspace()
    tokenizer = Tokenizer({"tokenizer.json": backend.to_str().encode()}, None, None)
    assert tokenizer.decode([1]) == "two"
    assert list(pieces(tokenizer, [0], [1, 0])) == [" two", " one"]


def test_streaming_gives_what_generate_gives(model: LanguageModel) -> None:
    for seed in range(5):
        (whole,) = model.generate("to be or", max_new_tokens=30, seed=seed)
        assert "".join(model.stream("to be or", max_new_tokens=30, seed=seed)) == whole


def test_several_prompts_are_continued_in_order(model: LanguageModel) -> None:
    prompts = ["the furnace", "", "火候"]
    together = model.generate(prompts, temperature=0, max_new_tokens=12)
    alone = [model.generate(prompt, temperature=0, max_new_tokens=12)[0] for prompt in prompts]
    assert together == alone
    assert model.generate(prompts, temperature=0, max_new_tokens=12, max_active=1) == alone
    assert model.generate(prompts, max_new_tokens=12, seed=1) != model.generate(prompts, max_new_tokens=12, seed=2)
    assert model.generate(prompts, top_k=1, max_new_tokens=12) == alone
    assert model.generate(prompts, top_p=1e-9, max_new_tokens=12) == alone
    assert model.generate([]) == []


def test_log_probs_are_sums_over_tokens_one_text_at_a_time(model: LanguageModel) -> None:
    texts = ["abc", "a", "", "火候到"]
    for one, num_given in ((model, 0), (of_no_bos(model), 1)):
        some = [text for text in texts if text or num_given == 0]
        for text, actual in zip(some, one.log_prob(some), strict=True):
            ids = [0, *BYTES.encode(text).tolist()]
            probabilities = _next_token_log_probs(one, ids[num_given:])
            expected = sum(probabilities[i, token] for i, token in enumerate(ids[num_given + 1 :]))
            assert actual == pytest.approx(float(expected), abs=1e-4)
    assert of_no_bos(model).log_prob(["a"]) == [0.0]
    assert model.log_prob([]) == []


def _next_token_log_probs(model: LanguageModel, ids: list[int]) -> torch.Tensor:
    from danlu.packed import Packed
    from danlu.parts.readout import Logits

    with torch.no_grad():
        return model.model(Packed.tree([ids]), [Logits(torch.arange(len(ids)))])[0].double().log_softmax(1)


def test_a_text_ends_with_any_token_that_the_checkpoint_names(tmp_path: Path, model: LanguageModel) -> None:
    assert model.stop == {0}
    path = checkpoint(tmp_path)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    loaded = LanguageModel.load(path)
    assert loaded.stop == {0, 5, 7}
    (text,) = loaded.generate("x", temperature=0, max_new_tokens=40)
    ids = BYTES.encode("x" + text).tolist()
    assert not loaded.stop & set(ids[1:])
    (path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        LanguageModel.load(path)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the tokenizer has 257 tokens, the model 200"):
        LanguageModel.load(checkpoint(tmp_path, vocabulary=200))
    assert LanguageModel.load(checkpoint(tmp_path, vocabulary=300)).model.config.vocabulary == 300


def test_nothing_to_begin_with_and_too_long_are_refused(model: LanguageModel) -> None:
    with pytest.raises(RecipeError, match="prompt 0 has no tokens"):
        of_no_bos(model).generate("")
    with pytest.raises(RecipeError, match="text 1 has no tokens"):
        of_no_bos(model).log_prob(["a", ""])
    with pytest.raises(UnsupportedError, match="text 0 has 65 tokens, the model has positions for 64"):
        model.log_prob(["a" * 64])
    with pytest.raises(UnsupportedError, match="positions for 64"):
        model.stream("a", max_new_tokens=64)


def test_rotary_models_load_too(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    model = config.build()
    config.initialize(model, seed=0)
    save_hub(model, tmp_path)
    BYTES.save(tmp_path)
    assert len(LanguageModel.load(tmp_path).log_prob(["a", "b"])) == 2
