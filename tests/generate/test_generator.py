from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from danlu.architecture.hub import save_hub
from danlu.contracts import SequenceModel
from danlu.errors import RecipeError, UnsupportedError
from danlu.generate import Sampling, Step, complete, generate

from .models import FAMILIES, VOCABULARY, tiny

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 35, 8], [2], [7, 18, 28], [27, 18, 28, 18, 28, 45], [9, 9]]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_what_transformers_writes(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    save_hub(model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64, attn_implementation="eager")
    written = complete(model, PROMPTS, Sampling(temperature=0, max_new_tokens=20), max_active=2)
    for prompt, continuation in zip(PROMPTS, written, strict=True):
        options = {"do_sample": False, "max_new_tokens": 20, "pad_token_id": 0, "eos_token_id": None}
        expected = theirs.generate(torch.tensor([prompt]), **options)[0, len(prompt) :]
        assert list(continuation.tokens) == expected.tolist()
        assert continuation.ended == "length"
    assert len({token for continuation in written for token in continuation.tokens}) > 5


@pytest.fixture(scope="module")
def model() -> SequenceModel:
    return tiny("qwen3")


def test_a_continuation_does_not_depend_on_its_neighbours(model: SequenceModel) -> None:
    sampling = Sampling(temperature=1.3, top_p=0.95, max_new_tokens=15, seed=5)
    together = complete(model, PROMPTS, sampling)
    for max_active in (1, 2, 3):
        assert complete(model, PROMPTS, sampling, max_active=max_active) == together
    for i, prompt in enumerate(PROMPTS):
        assert complete(model, [prompt], sampling, samples=[i]) == [together[i]]
    backwards = complete(model, PROMPTS[::-1], sampling, samples=range(len(PROMPTS))[::-1])
    assert backwards[::-1] == together


def test_a_continuation_can_be_broken_off_and_gone_on_with(model: SequenceModel) -> None:
    (whole,) = complete(model, [PROMPTS[0]], Sampling(max_new_tokens=12, seed=2))
    (rest,) = complete(model, [[*PROMPTS[0], *whole.tokens[:5]]], Sampling(max_new_tokens=7, seed=2))
    assert rest.tokens == whole.tokens[5:]


def test_one_prompt_many_times_gives_many_continuations(model: SequenceModel) -> None:
    written = complete(model, [[1, 2, 3]] * 6, Sampling(max_new_tokens=12))
    assert len({continuation.tokens for continuation in written}) == 6
    other = complete(model, [[1, 2, 3]] * 6, Sampling(max_new_tokens=12, seed=1))
    assert not set(other) & set(written)


def test_a_stop_token_ends_a_continuation_and_is_part_of_it(model: SequenceModel) -> None:
    sampling = Sampling(temperature=0, max_new_tokens=20)
    free = complete(model, PROMPTS, sampling)
    stop = free[0].tokens[6]
    for before, after in zip(free, complete(model, PROMPTS, sampling, stop=[stop], max_active=2), strict=True):
        cut = before.tokens.index(stop) + 1 if stop in before.tokens else 20
        assert after.tokens == before.tokens[:cut]
        assert after.ended == ("stop" if stop in before.tokens else "length")


def test_when_one_ends_the_next_begins_in_the_very_next_pass(model: SequenceModel) -> None:
    sizes = []
    forward = model.forward
    hook = model.register_forward_pre_hook(lambda module, args: sizes.append(args[0].cu_seqlens.diff().tolist()))
    steps = list(generate(model, PROMPTS, Sampling(temperature=0, max_new_tokens=3), max_active=2))
    hook.remove()
    assert model.forward == forward
    assert sizes == [[11, 1], [1, 1], [1, 1], [3, 6], [1, 1], [1, 1], [2], [1], [1]]
    assert [step.prompt for step in steps] == [0, 1] * 3 + [2, 3] * 3 + [4] * 3
    assert [step.ended for step in steps[:6]] == [None] * 4 + ["length"] * 2


def test_the_model_is_left_as_it_was(model: SequenceModel) -> None:
    model.train()
    first = next(iter(model.blocks))
    first.eval()
    inside = []
    hook = model.register_forward_pre_hook(
        lambda module, args: inside.append((module.training, torch.is_grad_enabled()))
    )
    steps = generate(model, PROMPTS, Sampling(max_new_tokens=4))
    for step in islice(steps, 7):
        assert isinstance(step, Step)
        assert model.training
        assert not first.training
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
    steps.close()
    hook.remove()
    assert inside == [(False, False)] * 2
    assert model.training
    model.eval()


def test_the_model_is_left_as_it_was_when_a_pass_fails(model: SequenceModel) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    model.train()
    hook = model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no memory"):
        complete(model, PROMPTS, Sampling())
    hook.remove()
    assert model.training
    model.eval()


def test_no_prompts_give_no_continuations(model: SequenceModel) -> None:
    assert complete(model, [], Sampling()) == []


@pytest.mark.parametrize(
    ("prompts", "options", "match"),
    [
        ([[1], []], {}, "prompt 1 has no tokens, so nothing predicts the first"),
        ([[1, VOCABULARY]], {}, f"prompt 0 has token {VOCABULARY}, the model has {VOCABULARY} tokens"),
        ([[-1]], {}, "prompt 0 has token -1"),
        ([[1]], {"max_active": 0}, "with max_active 0 nothing is ever written"),
        ([[1], [2]], {"samples": [3, 3]}, "every prompt needs a sample id of its own"),
        ([[1], [2]], {"samples": [3]}, "every prompt needs a sample id of its own"),
    ],
)
def test_what_cannot_be_continued_is_refused_at_once(prompts, options, match, model: SequenceModel) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RecipeError, match=match):
        generate(model, prompts, Sampling(), **options)


def test_more_than_the_learned_positions_is_refused() -> None:
    gpt2 = tiny("gpt2")
    longest = gpt2.config.longest
    assert longest is not None
    (continuation,) = complete(gpt2, [[1] * (longest - 5)], Sampling(max_new_tokens=5))
    assert len(continuation.tokens) == 5
    with pytest.raises(UnsupportedError, match=rf"come to {longest + 1}, the model has positions for {longest}"):
        generate(gpt2, [[1] * (longest - 5)], Sampling(max_new_tokens=6))
