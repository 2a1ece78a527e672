"""Several adapters on one base, chosen for each text: each writes and scores what it does alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import danlu
import strategies
from adapter.bases import BASES, base, logits, stirred
from commands import Say
from contracts.test_adapters import FIELDS as CASES
from contracts.test_adapters import SAVED, made
from danlu.adapter.adapted import Adapters
from danlu.adapter.hub import save_adapter
from danlu.adapter.lora import LoRA
from danlu.architecture.checkpoint import load_model
from danlu.contracts import SequenceModel
from danlu.data import Tokenizer
from danlu.errors import CheckpointError, RecipeError, UnsupportedError
from danlu.fingerprint import model_fingerprint
from danlu.generate import LanguageModel
from danlu.generate.generator import complete
from danlu.generate.sampling import Sampling
from danlu.packed import NO_ADAPTER, ROOT, Packed
from evaluation.chats import BYTES, CHATML, VOCABULARY, checkpoint, learned, write

FIELDS: dict[str, dict[str, Any]] = {
    "a": {"rank": 2},
    "b": {"rank": 4, "dora": True},
    "c": {"rank": 1, "rslora": True, "targets": ("q_proj", "down_proj")},
}
PROMPTS = ["the furnace", "burns", "low", "and", "nine times", "turned", "lead"]
LAST = BYTES.encode("reh").tolist()
"""What ends a text of one adapter, beside what ends all texts."""
NAMES = ["b", None, "a", "b", "c", None, "a"]
"""The adapter of each prompt."""


def adapters(folder: Path, base_folder: Path, fields: dict[str, dict[str, Any]]) -> None:
    mark = model_fingerprint(load_model(base_folder))
    for number, (name, of) in enumerate(fields.items()):
        model = load_model(base_folder)
        attached = LoRA(**of).attach(model)
        stirred(model, number)
        stirred(model, number + 10)
        save_adapter(attached, folder / name, base=str(base_folder), fingerprint=mark)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and three adapters, one of which has a generation config and a template of its own."""
    found = tmp_path_factory.mktemp("several")
    checkpoint(found / "base")
    adapters(found, found / "base", FIELDS)
    (found / "c" / "generation_config.json").write_text(json.dumps({"eos_token_id": LAST}))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(found / "base" / file, found / "c")
    (found / "c" / "chat_template.jinja").write_text(CHATML.replace("<|im_end|>\n", "<|im_end|>\n\n"))
    return found


@pytest.fixture(scope="module")
def together(folder: Path) -> LanguageModel:
    return danlu.load(folder / "base", adapters={name: folder / name for name in FIELDS})


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str | None, LanguageModel]:
    return {None: danlu.load(folder / "base"), **{name: danlu.load(folder / name) for name in FIELDS}}


def of(name: str | None) -> list[int]:
    return [i for i, one in enumerate(NAMES) if one == name]


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 1.5, "seed": 3}, {"max_active": 3}])
def test_each_writes_what_it_writes_alone(
    settings: dict[str, Any], together: LanguageModel, alone: dict[str | None, LanguageModel]
) -> None:
    written = together.generate(PROMPTS, adapters=NAMES, max_new_tokens=12, **settings)
    for name, model in alone.items():
        own = model.generate([PROMPTS[i] for i in of(name)], max_new_tokens=12, **settings)
        assert [written[i] for i in of(name)] == own
    assert len(set(together.generate(["x"] * 4, adapters=[None, *FIELDS], temperature=0, max_new_tokens=12))) == 4


def test_each_ends_its_texts_as_it_was_taught_to(
    together: LanguageModel, alone: dict[str | None, LanguageModel]
) -> None:
    assert together.stop != together.adapters["c"].stop == alone["c"].stop == {*LAST, 258}
    assert together.adapters["a"].stop == together.stop == alone["a"].stop
    written = together.generate(["x", "x"], adapters=["c", "a"], temperature=0, max_new_tokens=40)
    assert [len(text) < 40 for text in written] == [True, False]


def test_each_scores_what_it_scores_alone(together: LanguageModel, alone: dict[str | None, LanguageModel]) -> None:
    scored = together.log_prob(PROMPTS, adapters=NAMES)
    for name, model in alone.items():
        own = model.log_prob([PROMPTS[i] for i in of(name)])
        assert [scored[i] for i in of(name)] == pytest.approx(own, abs=1e-5)
    assert len({round(value, 3) for value in together.log_prob(["furnace"] * 4, adapters=[None, *FIELDS])}) == 4


def test_within_it_is_one_of_them(together: LanguageModel, alone: dict[str | None, LanguageModel]) -> None:
    for name, model in alone.items():
        with together.wearing(name) as worn:
            assert worn.log_prob(PROMPTS) == model.log_prob(PROMPTS)
            assert worn.stop == model.stop
            assert worn.tokenizer.files.get("chat_template.jinja") == model.tokenizer.files.get("chat_template.jinja")
    with pytest.raises(RecipeError, match="wears several adapters"):
        together.log_prob(PROMPTS)


@pytest.mark.parametrize("where", BASES)
def test_rows_of_one_mixed_pack_are_what_each_adapter_makes_of_them(where: str, tmp_path: Path) -> None:
    model = base(where, tmp_path)
    fields = {"a": {"rank": 2}, "b": {"rank": 3, "dora": True}, "c": {"rank": 1, "alpha": 3.0}}
    for number, (name, given) in enumerate(fields.items()):
        LoRA(**given).attach(model, name=name)
        stirred(model, number)
    adapted = model.adapted
    assert isinstance(adapted, Adapters)
    scattered, runs = [1, 2, 0, NO_ADAPTER, 0], [NO_ADAPTER, 0, 1, 2, 2]
    for numbers, times in ((scattered, 1), (runs, 1), (runs, 5)):  # runs of few rows, and of many
        packed = mixed(numbers, times)
        found = logits(model, packed)
        for (start, stop), number in zip(packed.trees, numbers, strict=True):
            one = Packed.tree([packed.tokens[start:stop]])
            if number == NO_ADAPTER:
                with adapted.off():
                    expected = logits(model, one)
            else:
                with adapted.use(list(fields)[number]):
                    expected = logits(model, one)
            torch.testing.assert_close(found[start:stop], expected, rtol=1e-6, atol=5e-6)


def mixed(numbers: list[int], times: int = 1) -> Packed:
    """As many documents, each through its adapter; so many times as long."""
    generator = torch.Generator().manual_seed(4)
    pieces = [torch.randint(strategies.VOCABULARY, (n * times,), generator=generator) for n in (4, 3, 5, 7, 1)]
    count = len(pieces)
    return Packed.tree(pieces, parents=[ROOT] * count, samples=list(range(count)), adapters=numbers)


def test_each_adapters_rows_are_one_run_in_every_pass(together: LanguageModel) -> None:
    seen: list[list[int]] = []
    model: SequenceModel = together.model
    hook = model.register_forward_pre_hook(lambda _, args: seen.append(args[0].adapter.tolist()))
    together.generate(PROMPTS, adapters=NAMES, max_new_tokens=5, max_active=4)
    hook.remove()
    assert seen
    assert all(numbers == sorted(numbers) for numbers in seen)


def test_names_are_given_or_follow_from_folders(folder: Path, tmp_path: Path) -> None:
    for run in ("poems", "code.v1"):
        shutil.copytree(folder / "a", tmp_path / run / "final")
    assert list(
        danlu.load(folder / "base", adapters=[tmp_path / run / "final" for run in ("poems", "code.v1")]).adapters
    ) == [
        "poems",
        "code.v1",
    ]
    one = danlu.load(folder / "base", adapters=[folder / "c"])
    assert list(one.adapters) == ["c"]
    kept = one.generate(PROMPTS, temperature=0, max_new_tokens=9)
    assert kept == danlu.load(folder / "c").generate(PROMPTS, temperature=0, max_new_tokens=9)


def test_what_cannot_go_together_is_refused(folder: Path, together: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="the model wears no adapter 'd'"):
        together.generate(["x"], adapters=["d"])
    with pytest.raises(RecipeError, match="2 texts have 1 adapters"):
        together.log_prob(["x", "y"], adapters=["a"])
    with pytest.raises(RecipeError, match="1 prompts have 2 adapters"):
        complete(together.model, [[1]], Sampling(), adapters=[0, 1])
    with pytest.raises(RecipeError, match="a sample id of its own"):
        complete(together.model, [[1], [2]], Sampling(), adapters=[0, 0], samples=[3, 3])
    with pytest.raises(RecipeError, match="wears no adapter. Load it with"):
        danlu.load(folder / "base").generate(["x"], adapters=["a"])
    with pytest.raises(RecipeError, match="given twice"):
        danlu.load(folder / "base", adapters=[folder / "a", folder / "a"])
    with pytest.raises(RecipeError, match="this is an adapter itself"):
        danlu.load(folder / "a", adapters=[folder / "b"])
    with pytest.raises(CheckpointError, match="this is no adapter: it has no adapter_config.json"):
        danlu.load(folder / "base", adapters=[folder / "base"])
    checkpoint(tmp_path / "other", learned())
    with pytest.raises(CheckpointError, match="trained on a base with other weights"):
        danlu.load(tmp_path / "other", adapters=[folder / "a"])
    adapters(tmp_path, folder / "base", {"whole": {"rank": 1, "also_train": ("norm",)}})
    with pytest.raises(
        UnsupportedError, match="trains weights of the model itself, which other adapters would be given"
    ):
        danlu.load(folder / "base", adapters=[folder / "a", tmp_path / "whole"])
    shutil.copytree(folder / "a", tmp_path / "strange")
    Tokenizer.train_bpe(["the the the furnace"], VOCABULARY).save(tmp_path / "strange")
    with pytest.raises(CheckpointError, match="the adapter's tokenizer gives other tokens than its base's"):
        danlu.load(folder / "base", adapters=[tmp_path / "strange"])


def test_the_command_answers_every_prompt_by_every_adapter(
    folder: Path, say: Say, alone: dict[str | None, LanguageModel]
) -> None:
    chosen = ("--adapter", folder / "a", "--adapter", folder / "c")
    answer = say("generate", folder / "base", *chosen, "-p", "the", "-p", "low", "--tokens", 6, "--seed", 5)
    assert (answer.status, answer.err) == (0, "")
    assert [(row["prompt"], row["adapter"]) for row in answer.rows] == [
        ("the", "a"),
        ("the", "c"),
        ("low", "a"),
        ("low", "c"),
    ]
    for name in ("a", "c"):
        own = say("generate", folder / name, "-p", "the", "-p", "low", "--tokens", 6, "--seed", 5)
        assert [row["text"] for row in answer.rows if row["adapter"] == name] == [row["text"] for row in own.rows]


def test_the_command_measures_every_adapter(folder: Path, say: Say, tmp_path: Path) -> None:
    rows = [{"question": f"{i} + 1?", "answer": f"so\n#### {i + 1}"} for i in range(3)]
    asked = ("data.eval=" + write(tmp_path / "eval.jsonl", rows), "tasks=loss,gsm8k", "run.max_new_tokens=4")
    answer = say(
        "eval", folder / "base", "--adapter", folder / "a", "--adapter", folder / "c", *asked, "--out", "o.json"
    )
    assert [(row["task"], row["adapter"]) for row in answer.rows] == [
        ("loss", "a"),
        ("gsm8k", "a"),
        ("loss", "c"),
        ("gsm8k", "c"),
    ]
    for name in ("a", "c"):
        own = say("eval", folder / name, *asked).rows
        measured = [{key: row[key] for key in row if key != "adapter"} for row in answer.rows if row["adapter"] == name]
        assert measured == own
    assert [each["adapter"] for each in json.loads((tmp_path / "o.json").read_text())] == ["a", "a", "c", "c"]


@pytest.mark.parametrize(("name", "number"), [case for case in SAVED if not CASES[case[0]][case[1]].get("also_train")])
def test_kinds_of_adapters_go_together(name: str, number: int, folder: Path, tmp_path: Path) -> None:
    """Beside a LoRA, and beside sequences that go through none."""
    model = load_model(folder / "base")
    attached = made(name, number).attach(model)
    stirred(model)
    save_adapter(attached, tmp_path / "other", base=str(folder / "base"))
    together = danlu.load(folder / "base", adapters=[tmp_path / "other", folder / "a"])
    names = ["other", None, "a", "other", "a", None, "other"]
    written = together.generate(PROMPTS, adapters=names, temperature=0, max_new_tokens=10, max_active=5)
    scored = together.log_prob(PROMPTS, adapters=names)
    for one, where in (("other", tmp_path / "other"), ("a", folder / "a"), (None, folder / "base")):
        alone, own = danlu.load(where), [i for i, each in enumerate(names) if each == one]
        prompts = [PROMPTS[i] for i in own]
        assert [written[i] for i in own] == alone.generate(prompts, temperature=0, max_new_tokens=10)
        assert [scored[i] for i in own] == pytest.approx(alone.log_prob(prompts), abs=1e-4)
