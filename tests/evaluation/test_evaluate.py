from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from danlu.batch import Batch
from danlu.data.chat import Chat
from danlu.data.document import Completion, Conversation, Message, Text
from danlu.errors import DataError, RecipeError
from danlu.evaluation import EvalData, EvalRun, evaluate
from danlu.evaluation.held_out import Piece
from danlu.generate import LanguageModel
from danlu.generate.chat_session import chat_template
from danlu.method.sft import SFT
from evaluation.chats import checkpoint, learned, write

CHATS = [
    {"messages": [{"role": "user", "content": f"add {i}"}, {"role": "assistant", "content": "x" * (3 * i + 1)}]}
    for i in range(7)
] + [
    {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "一"},
            {"role": "assistant", "content": "火候"},
            {"role": "user", "content": "two"},
            {"role": "assistant", "content": "naïve"},
        ]
    }
]
Files = Callable[..., EvalData]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("evaluated"))


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return LanguageModel.load(folder)


@pytest.fixture
def rows(tmp_path: Path) -> Files:
    def make(some: list[Any], **options: Any) -> EvalData:
        return EvalData(eval=write(tmp_path / "eval.jsonl", some), **options)

    return make


def documents(some: list[Any]) -> list[Conversation]:
    return [Conversation(tuple(Message(**m) for m in row["messages"])) for row in some]


def test_the_loss_is_transformers_loss_over_the_learned_tokens(folder: Path, model: LanguageModel, rows: Files) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    chat = Chat(model.tokenizer, chat_template(model.tokenizer), ("assistant",))
    nll, correct, count = 0.0, 0, 0
    for document in documents(CHATS):
        tokens = chat.encode(document, "here")
        ids = torch.from_numpy(tokens.ids)
        labels = torch.where(torch.from_numpy(tokens.weights) > 0, ids, -100)
        with torch.no_grad():
            found = theirs(ids[None], labels=labels[None])
        learned_tokens = labels[1:] >= 0
        nll += float(found.loss) * int(learned_tokens.sum())
        correct += int((found.logits[0, :-1].argmax(1) == labels[1:])[learned_tokens].sum())
        count += int(learned_tokens.sum())
    result = evaluate(model, rows(CHATS))["loss"]
    assert result.metrics["loss"] == pytest.approx(nll / count, rel=1e-5)
    assert result.metrics["perplexity"] == pytest.approx(math.exp(nll / count), rel=1e-4)
    assert result.metrics["token_accuracy"] == correct / count
    said = sum(len(m["content"].encode()) for row in CHATS for m in row["messages"] if m["role"] == "assistant")
    with_newlines = said + sum(m["role"] == "assistant" for row in CHATS for m in row["messages"])
    bits = nll / math.log(2)
    assert bits / with_newlines * (1 - 1e-5) <= result.metrics["bits_per_byte"] <= bits / said * (1 + 1e-5)
    assert (result.counts["samples"], result.counts["targets"]) == (len(CHATS), count)


def test_the_loss_is_the_method_s_own(model: LanguageModel, rows: Files) -> None:
    chat = Chat(model.tokenizer, chat_template(model.tokenizer), ("assistant",))
    encoded = [chat.encode(document, "here") for document in documents(CHATS)]
    method = SFT()
    batch = Batch.join([method.group(Piece(i, t.ids, t.weights[1:], "here")) for i, t in enumerate(encoded)])
    with torch.no_grad():
        outcome, counts = method.loss({"policy": model.model}, batch), method.counts(batch)
    metrics = evaluate(model, rows(CHATS))["loss"].metrics
    assert metrics["loss"] == pytest.approx(float(outcome.losses["nll"]) / counts["nll"], rel=1e-5)
    assert metrics["token_accuracy"] == pytest.approx(float(outcome.metrics["accuracy"]) / counts["accuracy"])


def test_packs_change_nothing(model: LanguageModel, rows: Files) -> None:
    for some in (CHATS, [{"text": "火候 到" * n} for n in range(1, 9)]):
        found = [evaluate(model, rows(some), run=EvalRun(pack_tokens=n))["loss"] for n in (1, 100, 4096)]
        for other in found[1:]:
            assert other.metrics == pytest.approx(found[0].metrics, rel=1e-5)
            assert [r["origin"] for r in other.records] == [r["origin"] for r in found[0].records]


def test_long_texts_are_cut_and_every_target_counts_once(tmp_path: Path, rows: Files) -> None:
    model = LanguageModel.load(checkpoint(tmp_path / "model", learned(longest=32)))
    text = "the furnace burns low, " * 5
    result = evaluate(model, rows([{"text": text}, {"text": "short"}]))["loss"]
    whole = len(Chat(model.tokenizer, None, ("assistant",)).encode(Text(text), "here").ids) - 1
    assert result.counts["cut"] == 1
    assert sum(r["targets"] for r in result.records[:-1]) == whole
    assert all(r["targets"] <= 32 for r in result.records)
    assert "tokens 32-64" in result.records[1]["origin"]
    by_sum = sum(r["nll"] for r in result.records) / sum(r["weight"] for r in result.records)
    assert result.metrics["loss"] == pytest.approx(by_sum)
    shorter = evaluate(model, rows([{"text": text}, {"text": "short"}], context=8))["loss"]
    assert shorter.counts["targets"] == result.counts["targets"]
    assert len(shorter.records) > len(result.records)


def test_exact_match_is_of_transformers_greedy_answers(folder: Path, model: LanguageModel, rows: Files) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    some, answers = [], []
    for i, row in enumerate(CHATS):
        asked = row["messages"][:-1]
        ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        with torch.no_grad():
            written = theirs.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, pad_token_id=0)[0]
        new = [int(token) for token in written[len(ids) :] if int(token) != tokenizer.eos_token_id]
        answers.append(tokenizer.decode([*ids, *new])[len(tokenizer.decode(ids)) :])
        wanted = answers[-1] if i % 3 else "something else"
        some.append({"messages": [*asked, {"role": "assistant", "content": wanted or " "}]})
    result = evaluate(model, rows(some), tasks=["exact"], run=EvalRun(max_new_tokens=12, max_active=3))["exact"]
    assert [r["answer"] for r in result.records] == answers
    right = [i % 3 > 0 or answers[i].strip() == "something else" for i in range(len(some))]
    assert [r["correct"] for r in result.records] == right
    assert result.metrics["accuracy"] == sum(right) / len(right)
    assert [r["origin"].rpartition(":")[2] for r in result.records] == [str(i + 1) for i in range(len(some))]


def test_what_cannot_be_asked_is_counted(tmp_path: Path, rows: Files) -> None:
    model = LanguageModel.load(checkpoint(tmp_path / "model", learned(longest=64)))
    some = [
        {"question": "1 + 1?", "answer": "so\n#### 2"},
        {"question": "1 + 2?", "answer": "three"},
        {"question": "long " * 20, "answer": "#### 3"},
        {"text": "nothing is asked"},
    ]
    found = evaluate(model, rows(some), tasks=["gsm8k", "loss"], run=EvalRun(max_new_tokens=8))
    counts = found["gsm8k"].counts
    assert [r.task for r in found.results] == ["gsm8k", "loss"]
    assert {name: counts[name] for name in ("samples", "too_long", "without_prompt", "without_reference")} == {
        "samples": 1, "too_long": 1, "without_prompt": 1, "without_reference": 1,
    }  # fmt: skip
    assert "stderr" not in found["gsm8k"].metrics
    (record,) = found["gsm8k"].records
    assert (record["expected"], record["reference"]) == ("2", "so\n#### 2")
    with pytest.raises(DataError, match=r"no sample can be judged by 'choice' \(1 without prompt\)"):
        evaluate(model, rows(some[3:]), tasks=["choice"])


def test_a_prompt_without_a_template_is_asked_as_it_is_trained(tmp_path: Path, rows: Files) -> None:
    model = LanguageModel.load(checkpoint(tmp_path / "model", template=None))
    row = Completion("Say it:", "furnace")
    tokens = Chat(model.tokenizer, None, ("assistant",)).encode(row, "here")
    given = int((tokens.weights > 0).argmax())
    found = evaluate(model, rows([{"prompt": row.prompt, "completion": row.completion}]), tasks=["exact"])["exact"]
    (record,) = found.records
    from danlu.generate import Sampling, complete

    (done,) = complete(
        model.model, [tokens.ids[:given].tolist()], Sampling(temperature=0, max_new_tokens=512), stop=model.stop
    )
    kept = [t for t in done.tokens if t not in model.stop]
    before = model.tokenizer.decode(tokens.ids[:given].tolist())
    assert record["answer"] == model.tokenizer.decode([*tokens.ids[:given].tolist(), *kept])[len(before) :]
    with pytest.raises(DataError, match=r"eval\.jsonl:1: .*template"):
        evaluate(model, rows(CHATS[:1]), tasks=["exact"])


def test_nothing_to_measure_is_said(model: LanguageModel, rows: Files, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no sample"):
        evaluate(model, EvalData(eval=blank(tmp_path)))
    silent = [{"messages": [*CHATS[0]["messages"][:1], {"role": "assistant", "content": "x", "weight": 0}]}]
    with pytest.raises(DataError, match="none of the 1 samples has a token that is learned"):
        evaluate(model, rows(silent))
    with pytest.raises(RecipeError, match=r"there is no task 'gsm8'. Did you mean 'gsm8k'\?"):
        evaluate(model, rows(CHATS), tasks=["gsm8"])
    with pytest.raises(RecipeError, match="nothing is to be measured"):
        evaluate(model, rows(CHATS), tasks=[])


def blank(folder: Path) -> str:
    path = folder / "blank.jsonl"
    path.write_text("\n\n")
    return str(path)


def test_only_the_first_samples_when_asked(model: LanguageModel, rows: Files) -> None:
    heard: list[tuple[str, int, int]] = []
    data = rows(CHATS, limit=3)
    found = evaluate(
        model, data, tasks=["loss", "exact"], run=EvalRun(max_new_tokens=2), progress=lambda *said: heard.append(said)
    )
    assert found["loss"].counts["samples"] == found["exact"].counts["samples"] == 3
    assert heard[:3] == [("loss", n, 3) for n in (1, 2, 3)]
    assert heard[-1] == ("answers", 3, 3)


def test_all_of_it_can_be_written(model: LanguageModel, rows: Files, tmp_path: Path) -> None:
    found = evaluate(model, rows(CHATS), tasks=["exact"], run=EvalRun(max_new_tokens=2))
    found.save(tmp_path / "out.json")
    (content,) = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert content["task"] == "exact"
    assert set(content["records"][0]) == {
        "origin", "prompt", "reference", "answer", "expected", "extracted", "correct",
    }  # fmt: skip
