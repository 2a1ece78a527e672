from __future__ import annotations

import importlib.util
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from danlu.errors import RecipeError, UnsupportedError
from danlu.evaluation import lm_eval as bridge_module
from danlu.evaluation.lm_eval import Answerer, bridge, run_lm_eval
from danlu.generate import LanguageModel
from danlu.generate.chat_session import chat_template
from evaluation.chats import END, START, checkpoint, learned, write

PAIRS = [
    ("The furnace", " burns"),
    ("The furnace", " is cold"),
    ("", "火候 到"),
    ("The furnace ", "burns"),
    ("Another", "x"),
    ("The furnace", " b"),
    ("   ", "x"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("asked"))


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return LanguageModel.load(folder)


def eos(model: LanguageModel) -> int:
    assert model.tokenizer.eos_id is not None
    return model.tokenizer.eos_id


class Theirs:
    """The same answers by transformers, one question at a time."""

    def __init__(self, folder: Path, before: int) -> None:
        transformers = pytest.importorskip("transformers")
        self.network = transformers.AutoModelForCausalLM.from_pretrained(folder)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.before = before

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        with torch.no_grad():
            logits = self.network(torch.tensor([[*context, *continuation]])).logits[0].double()
        rows = logits[len(context) - 1 : -1].log_softmax(1)
        wanted = torch.tensor(continuation)
        return float(rows.gather(1, wanted[:, None]).sum()), bool((rows.argmax(1) == wanted).all())


def test_likelihoods_are_transformers_likelihoods(folder: Path, model: LanguageModel) -> None:
    theirs = Theirs(folder, eos(model))
    for found, (context, continuation) in zip(Answerer(model).likelihoods(PAIRS), PAIRS, strict=True):
        ids = theirs.ids(context + continuation)
        given = len(theirs.ids(context.rstrip()))
        expected = theirs.score(ids[:given] or [theirs.before], ids[given:])
        assert found[0] == pytest.approx(expected[0], abs=1e-4)
        assert found[1] == expected[1]


def test_what_greedy_decoding_writes_is_told(model: LanguageModel) -> None:
    one = Answerer(model)
    (written,) = one.written([("The furnace", {"max_gen_toks": 4})])
    found = one.likelihoods([("The furnace", written), ("The furnace", f"{written[:-1]}~")])
    if one._encode("The furnace" + written) == (*one._encode("The furnace"), *one._encode(written)):
        assert [greedy for _, greedy in found] == [True, False]
    assert one.likelihoods([]) == []
    assert one.likelihoods([("a", "")]) == [(0.0, True)]


def test_a_context_is_computed_once_for_all_its_continuations(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    forward = model.model.forward

    def counted(packed: Any, *rest: Any) -> Any:
        rows.append(len(packed))
        return forward(packed, *rest)

    monkeypatch.setattr(model.model, "forward", counted)
    context, letters = "a long question about furnaces", ("A", "B", "C", "D")
    Answerer(model).likelihoods([(context, letter) for letter in letters])
    assert rows == [len(context)]


def test_packs_and_order_change_nothing(model: LanguageModel) -> None:
    found = Answerer(model).likelihoods(PAIRS)
    for one, pairs in ((Answerer(model, pack_tokens=1), PAIRS), (Answerer(model), PAIRS[::-1])):
        again = one.likelihoods(pairs)
        for (a, greedy), (b, expected) in zip(again if pairs is PAIRS else again[::-1], found, strict=True):
            assert (a, greedy) == (pytest.approx(b, abs=1e-4), expected)


def test_long_contexts_lose_their_beginning(folder: Path, model: LanguageModel) -> None:
    theirs = Theirs(folder, eos(model))
    one = Answerer(model, context=8)
    context, continuation = "0123456789abcdef", "xyz"
    ids = theirs.ids(context + continuation)[-9:]
    (found,) = one.likelihoods([(context, continuation)])
    assert found[0] == pytest.approx(theirs.score(ids[:-3], ids[-3:])[0], abs=1e-4)
    with pytest.raises(UnsupportedError, match="a continuation has 9 tokens, the model sees 8 at once"):
        one.likelihoods([("a", "123456789")])


@pytest.mark.parametrize(
    ("count", "size", "windows"),
    [
        (10, 4, [([-1], [0, 1, 2, 3]), ([3], [4, 5, 6, 7]), ([5, 6, 7], [8, 9])]),
        (4, 4, [([-1], [0, 1, 2, 3])]),
        (3, 4, [([-1], [0, 1, 2])]),
        (5, 1, [([-1], [0]), ([0], [1]), ([1], [2]), ([2], [3]), ([3], [4])]),
        (0, 4, []),
    ],
)
def test_windows_are_lm_eval_s(
    model: LanguageModel, count: int, size: int, windows: list[tuple[list[int], list[int]]]
) -> None:
    """The first is the example of its documentation, less what of each context is predicted itself."""
    first = eos(model)
    expected = [(tuple(first if i < 0 else i for i in a), tuple(b)) for a, b in windows]
    assert list(Answerer(model, context=size)._windows(tuple(range(count)))) == expected


def test_texts_are_scored_whole_and_by_windows(folder: Path, model: LanguageModel) -> None:
    theirs = Theirs(folder, eos(model))
    text = "the furnace burns low"
    ids = theirs.ids(text)
    (whole,) = Answerer(model).rolling([text])
    assert whole == pytest.approx(theirs.score([theirs.before], ids)[0], abs=1e-3)
    found = Answerer(model, context=8).rolling([text, "", "low"])
    expected = theirs.score([theirs.before], ids[:8])[0] + theirs.score(ids[7:8], ids[8:16])[0]
    expected += theirs.score(ids[len(ids) - 9 : 16], ids[16:])[0]
    assert found[0] == pytest.approx(expected, abs=1e-3)
    assert found[1] == 0.0
    assert found[2] == pytest.approx(theirs.score([theirs.before], theirs.ids("low"))[0], abs=1e-4)


def test_a_tokenizer_with_a_first_token_begins_with_it_once(tmp_path: Path) -> None:
    model = LanguageModel.load(checkpoint(tmp_path, bos=START))
    one = Answerer(model)
    bos = model.tokenizer.bos_id
    assert one._encode("ab")[0] == one._encode(f"{START}ab")[0] == bos
    assert len(one._encode("ab")) == len(one._encode(f"{START}ab")) == 3
    assert one._pair("", "ab") == ((bos,), one._encode("ab")[1:])
    assert one._pair("a", "b") == (one._encode("a"), one._encode("b")[1:])


def test_a_tokenizer_without_ends_cannot_score_a_text_s_first_token(tmp_path: Path) -> None:
    one = Answerer(LanguageModel.load(checkpoint(tmp_path, eos=None)))
    assert one.likelihoods([("a", "b")])
    with pytest.raises(UnsupportedError, match="no token that could predict a text's first"):
        one.rolling(["a"])


def test_what_is_written_ends_where_it_is_to(model: LanguageModel) -> None:
    one = Answerer(model)
    greedy = {"until": [], "max_gen_toks": 20, "do_sample": False, "temperature": 0.0}
    (whole,) = one.written([("The furnace", greedy)])
    end = whole[3:5]
    asked = [
        ("The furnace", {**greedy, "until": [end, "never"]}),
        ("Another", greedy),
        ("The furnace", {**greedy, "until": end}),
        ("", greedy),
        ("The furnace", {"do_sample": True, "temperature": 1.0, "top_p": 0.9, "max_gen_toks": 5, "until": "\n\n"}),
    ]
    found = one.written(asked)
    assert found[0] == found[2] == whole.partition(end)[0]
    assert found[1] == one.written([("Another", greedy)])[0]
    with pytest.raises(UnsupportedError, match="a task asks for 'num_beams' in generation"):
        one.written([("a", {"num_beams": 4})])


def test_written_prompts_that_are_too_long_lose_their_beginning(tmp_path: Path) -> None:
    one = Answerer(LanguageModel.load(checkpoint(tmp_path, learned(longest=16))))
    settings = {"max_gen_toks": 6, "until": []}
    assert one.written([("0123456789abcdef", settings)]) == one.written([("6789abcdef", settings)])
    with pytest.raises(UnsupportedError, match=r"max_gen_toks \(16\) leaves no room"):
        one.written([("a", {"max_gen_toks": 16})])


def test_without_lm_eval_its_extra_is_named(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UnsupportedError, match=r"lm-eval is not installed. Install it: pip install 'danlu\[lm-eval\]'"):
        run_lm_eval(Answerer(model), ["hellaswag"])


@dataclass
class Instance:
    """As lm-eval hands a request over."""

    args: tuple[Any, ...]


@dataclass
class Harness:
    """lm-eval's interface, as much of it as the bridge touches."""

    options: dict[str, Any] = field(default_factory=dict)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class LM:
            pass

        class TaskManager:
            all_tasks = ("hellaswag", "wikitext")

            def __init__(self, include_path: str | None = None) -> None:
                assert include_path is None

            def match_tasks(self, names: list[str]) -> list[str]:
                return [name for name in names if name in self.all_tasks]

        package, api, model, tasks = (
            types.ModuleType(f"lm_eval{name}") for name in ("", ".api", ".api.model", ".tasks")
        )
        model.LM, tasks.TaskManager = LM, TaskManager  # type: ignore[attr-defined]
        package.simple_evaluate = self.evaluate  # type: ignore[attr-defined]
        for module in (package, api, model, tasks):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(bridge_module, "_require", lambda: None)

    def evaluate(self, **options: Any) -> dict[str, Any]:
        self.options = options
        values = {"alias": "hellaswag", "acc,none": 0.25, "acc_stderr,none": 0.1, "em,strict": 0.5}
        samples = {"hellaswag": [{"doc_id": 0, "acc": 1.0}]}
        return {"results": {"hellaswag": values}, "n-samples": {"hellaswag": {"effective": 4}}, "samples": samples}


def test_requests_reach_the_model_and_results_come_back(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = Harness()
    harness.install(monkeypatch)
    answerer = Answerer(model, chat_template(model.tokenizer))
    lm = bridge(answerer)
    requests = [Instance(pair) for pair in PAIRS]
    assert lm.loglikelihood(requests, disable_tqdm=True) == answerer.likelihoods(PAIRS)
    assert lm.loglikelihood_rolling([Instance(("low",))]) == answerer.rolling(["low"])
    settings = {"max_gen_toks": 3}
    assert lm.generate_until([Instance(("a", settings))]) == answerer.written([("a", settings)])
    rendered = lm.apply_chat_template([{"role": "user", "content": "hi"}])
    assert rendered == f"{START}user\nhi{END}\n{START}assistant\n"
    assert lm.tokenizer_name == model.tokenizer.fingerprint
    found = run_lm_eval(answerer, ["hellaswag"], limit=4, num_fewshot=2, as_chat=True)
    assert found["hellaswag"].metrics == {"acc": 0.25, "acc_stderr": 0.1, "em,strict": 0.5}
    assert found["hellaswag"].counts == {"samples": 4}
    assert found["hellaswag"].records == ({"doc_id": 0, "acc": 1.0},)
    asked = {name: harness.options[name] for name in ("tasks", "limit", "num_fewshot", "apply_chat_template")}
    assert asked == {"tasks": ["hellaswag"], "limit": 4, "num_fewshot": 2, "apply_chat_template": True}
    with pytest.raises(RecipeError, match=r"lm-eval has no task 'hellaswg'. Did you mean 'hellaswag'"):
        run_lm_eval(answerer, ["hellaswg"])
    with pytest.raises(UnsupportedError, match="no chat template"):
        bridge(Answerer(model)).apply_chat_template([])


YAML = """\
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
{more}
"""
TASKS = {
    "furnace_choice": (
        "multiple_choice",
        "doc_to_choice: [A, Bee, C]\ndoc_to_target: 1\nmetric_list: [{metric: acc}, {metric: acc_norm}]",
    ),
    "furnace_written": (
        "generate_until",
        'doc_to_target: "{{answer}}"\ngeneration_kwargs: {until: ["\\n"], max_gen_toks: 6}\nmetric_list: [{metric: exact_match}]',
    ),
    "furnace_rolling": (
        "loglikelihood_rolling",
        'doc_to_target: "{{question}}"\nmetric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]',
    ),
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks of lm-eval's three kinds, on data of our own."""
    pytest.importorskip("lm_eval", reason="lm-eval is optional and not installed")
    here = tmp_path_factory.mktemp("tasks")
    rows = [{"question": f"What is {i} and 火?", "answer": "two"} for i in range(5)]
    file = write(here / "rows.jsonl", rows)
    for task, (kind, more) in TASKS.items():
        (here / f"{task}.yaml").write_text(YAML.format(task=task, file=file, kind=kind, more=more))
    return here


def test_lm_eval_itself_finds_the_same_by_its_own_models(
    folder: Path, model: LanguageModel, tasks: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=2)
    manager = TaskManager(include_path=str(tasks))
    expected = lm_eval.simple_evaluate(model=theirs, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0)
    found = run_lm_eval(Answerer(model), list(TASKS), include=str(tasks))
    for task in TASKS:
        assert found[task].counts["samples"] == len(found[task].records) == 5
        for name, value in expected["results"][task].items():
            if isinstance(value, float) and "stderr" not in name:
                assert found[task].metrics[name.removesuffix(",none")] == pytest.approx(value, rel=1e-4)
        for ours, record in zip(found[task].records, expected["samples"][task], strict=True):
            if task == "furnace_written":
                assert ours["resps"] == record["resps"]
