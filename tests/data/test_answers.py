"""From rows of preferences to samples: ids, the cache, truncation, streams, splits, quarantine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.batch import Answers as Contract
from danlu.data import Answers, Collection, DataConfig, Rules, Tokenizer, build_data, build_encoder
from danlu.data.chat import Chat
from danlu.data.document import Completion, Conversation, Excerpt, Judged, Message, Preference
from danlu.data.shapes import recognise
from danlu.data.statistics import Statistics
from danlu.errors import DanluError, DataError

from .conftest import sentence
from .templates import CASES, tokenizer

CHATML = CASES["danlu"]
Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def rows(*rows: object, name: str = "pairs.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
        return str(path)

    return rows


def pair(number: int, **more: object) -> dict[str, object]:
    return {"prompt": sentence(number), "chosen": sentence(2 * number), "rejected": sentence(3 * number + 1), **more}


def open_pairs(
    file: str, folder: Path, rules: Rules | None = None, made: Tokenizer | None = None, **options: Any
) -> Any:
    encoder = build_encoder(made or CHATML.tokenizer, learns_from="answers", **options)
    return Collection.open(file, encoder, rules or Rules(1000), cache=folder / "cache")


def samples(collection: Any) -> list[Answers]:
    corpus = collection.whole()
    return [corpus[i] for i in range(len(corpus))]


def ids_of(*texts: str, made: Tokenizer | None = None) -> list[int]:
    """Each text by itself; written-out special tokens are these."""
    encoded = (made or CHATML.tokenizer).encode_chat(texts)
    return [int(i) for ids, _ in encoded for i in ids]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "chosen": "A", "rejected": "the furnace"},
        {"prompt": [{"role": "user", "content": "Q"}], "chosen": "A", "rejected": "the furnace"},
        {
            "chosen": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
            "rejected": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "the furnace"}],
        },
        {
            "conversations": [{"from": "human", "value": "Q"}],
            "chosen": {"from": "gpt", "value": "A"},
            "rejected": {"from": "gpt", "value": "the furnace"},
        },
        {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: the furnace"},
    ],
)
def test_every_shape_becomes_what_the_template_renders(tmp_path: Path, write: Write, row: dict[str, Any]) -> None:
    (sample,) = samples(open_pairs(write(row), tmp_path))
    assert sample.prompt.tolist() == ids_of("<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n")
    assert [answer.tolist() for answer in sample.answers] == [ids_of("A<|im_end|>"), ids_of("the furnace<|im_end|>")]
    assert sample.weights is None
    assert sample.values == {}
    assert sample.origin == f"{tmp_path}/pairs.jsonl:1"
    assert sample.num_bytes == len("A") + len("the furnace")


def test_a_tokenizer_without_a_template_joins_texts(tmp_path: Path, write: Write, tokenizer: Tokenizer) -> None:
    rows = [
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {"prompt": "Q", "chosen": " A", "rejected": "B"},
        {"prompt": "Q ", "chosen": "A", "rejected": "B"},
        {"chosen": "The sky is blue", "rejected": "The sky is black"},
        {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
    ]
    parts = [
        ("Q\n", "A", "B"),
        ("Q", " A", "B"),
        ("Q ", "A", "B"),
        ("The sky is", " blue", " black"),
        ("\n\nHuman: Q\n\nAssistant:", " A", " B"),
    ]
    found = samples(open_pairs(write(*rows), tmp_path, made=tokenizer))
    for sample, (prompt, *answers) in zip(found, parts, strict=True):
        assert sample.prompt.tolist() == [0, *tokenizer.encode(prompt).tolist()]
        assert [a.tolist() for a in sample.answers] == [[*tokenizer.encode(answer).tolist(), 0] for answer in answers]
    bare = samples(open_pairs(write(rows[0]), tmp_path, made=tokenizer, add_bos=False, add_eos=False))
    assert bare[0].prompt.tolist() == tokenizer.encode("Q\n").tolist()


def test_texts_that_begin_alike_are_rendered_by_no_template(tmp_path: Path, write: Write) -> None:
    row = {"chosen": "The sky is blue", "rejected": "The sky is black"}
    (sample,) = samples(open_pairs(write(row), tmp_path))
    assert CHATML.tokenizer.decode(sample.prompt) == "<s>The sky is"
    assert [CHATML.tokenizer.decode(answer) for answer in sample.answers] == [" blue<|im_end|>", " black<|im_end|>"]
    assert sample.shape == "preference/text"


def test_values_and_weights_come_with_their_answers(tmp_path: Path, write: Write) -> None:
    turns = [{"role": "assistant", "content": "A"}, {"role": "user", "content": "R"}]
    last = {"role": "assistant", "content": "B", "weight": 0.5}
    rows = [
        {"prompt": "Q", "chosen": [*turns, last], "rejected": "C", "score_chosen": 3, "score_rejected": 1},
        {"prompt": "Q", "completion": "A", "label": False},
        pair(1),
    ]
    first, judged, plain = samples(open_pairs(write(*rows), tmp_path))
    assert first.values == {"margin": (2.0, 2.0), "score": (3.0, 1.0)}
    assert first.weights is not None
    between = len(ids_of("\n<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n"))
    assert first.weights[0].tolist() == [1, 1, *[0] * between, 0.5, 0.5]
    assert first.weights[1].tolist() == [1, 1]
    assert judged.values == {"desirable": (0.0,)}
    assert [a.tolist() for a in judged.answers] == [ids_of("A<|im_end|>")]
    assert plain.values == {}


def test_all_learns_everything_behind_the_prompt(tmp_path: Path, write: Write) -> None:
    turns = [{"role": "assistant", "content": "A"}, {"role": "user", "content": "R"}]
    row = {"prompt": "Q", "chosen": [*turns, {"role": "assistant", "content": "B"}], "rejected": "C"}
    (sample,) = samples(open_pairs(write(row), tmp_path, train_on=("all",)))
    assert sample.prompt.tolist() == ids_of("<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n")
    said = "A<|im_end|>\n<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n"
    assert CHATML.tokenizer.decode(sample.answers[0]) == said
    assert sample.weights is None


WORD = st.text("ab <\n火", min_size=1, max_size=8).filter(str.strip)


@pytest.mark.parametrize("name", CASES)
@given(st.tuples(WORD, WORD, WORD))
def test_a_prompt_with_an_answer_is_what_is_learned_of_it_alone(name: str, said: tuple[str, str, str]) -> None:
    """Whatever the template: each path is the row's own tokens, and nothing of the prompt is learned."""
    case = CASES[name]
    chat = Chat(case.tokenizer, case.template)
    prompt, *answers = said
    paths = [Completion(prompt, answer) for answer in answers]
    both = chat.encode(Preference(*paths), "f:1")
    assert both.weights is not None
    bounds = [*both.answers, len(both.ids)]
    for path, start, end in zip(paths, bounds, bounds[1:], strict=False):
        alone = chat.encode(path, "f:1")
        assert alone.weights is not None
        ids = [*both.ids[: bounds[0]].tolist(), *both.ids[start:end].tolist()]
        assert ids == alone.ids[: len(ids)].tolist()
        learned = [*both.weights[: bounds[0]].tolist(), *both.weights[start:end].tolist()]
        assert learned == alone.weights[: len(ids)].tolist()
        assert not alone.weights[len(ids) :].any()
    assert not both.weights[: bounds[0]].any()
    judged = chat.encode(Judged(paths[0], desirable=True), "f:1")
    assert judged.ids.tolist() == both.ids[: bounds[1]].tolist()


@given(st.tuples(WORD, WORD, WORD))
def test_the_tokens_are_those_of_trl(said: tuple[str, str, str]) -> None:
    """But for the line end behind the last turn, of which nothing is learned here."""
    apply = pytest.importorskip("trl.data_utils").apply_chat_template
    transformers = pytest.importorskip("transformers")
    made = tokenizer(CASES["chatml"].source, "<s>", "<|im_end|>", "<|im_end|>")
    processing = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made._backend, chat_template=CASES["chatml"].source
    )
    prompt, chosen, rejected = said
    row = {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }
    theirs = apply(row, processing)
    _, document = recognise(row, "f:1", learns_from="answers")
    tokens = Chat(made, CASES["chatml"].template).encode(document, "f:1")
    parts = np.split(tokens.ids, tokens.answers)
    for part, name in zip(parts[1:], ("chosen", "rejected"), strict=True):
        assert made.decode([*parts[0], *part]) == (theirs["prompt"] + theirs[name]).removesuffix("\n")
    shared = made.decode(parts[0])  # line ends that an answer begins with may be one token with its prompt's
    assert theirs["prompt"] in (shared, f"{shared}\n")


def test_where_tokens_lie_across_the_prompts_end_the_prompt_is_what_is_shared() -> None:
    """Between generation blocks the text is encoded whole, so an answer's first letters may join its prompt's last."""
    made = CASES["chatml"].tokenizer
    source = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% else %}{% generation %}{{ m.content }}"
    source += "<|im_end|>{% endgeneration %}{% endif %}{% endfor %}"
    chat = Chat(made, replace(CASES["chatml"].template, source=source))
    tokens = chat.encode(Preference(Completion("the bu", "rns"), Completion("the bu", "x")), "f:1")
    assert tokens.weights is not None
    whole = [ids_of(f"the bu{end}<|im_end|>", made=made) for end in ("rns", "x")]
    parts = [part.tolist() for part in np.split(tokens.ids, tokens.answers)]
    assert [parts[0] + parts[1], parts[0] + parts[2]] == whole
    assert len(parts[0]) < len(ids_of("the bu", made=made))  # or the case is none
    assert not tokens.weights[: tokens.answers[0]].any()


def test_no_prompt_is_a_sentence(tokenizer: Tokenizer) -> None:
    chat = Chat(tokenizer, None, add_bos=False)
    with pytest.raises(DataError, match="a.jsonl:1: no token comes before the answers. Give a prompt"):
        chat.encode(Preference(Excerpt("", "a"), Excerpt("", "b")), "a.jsonl:1")
    silent = Chat(CHATML.tokenizer, CHATML.template, ("user",))
    with pytest.raises(DataError, match="a.jsonl:1: nothing of the chosen answer is learned. Give the answer words"):
        silent.encode(Preference(Completion("q", "a"), Completion("q", "b")), "a.jsonl:1")
    mute = Conversation((Message("user", "q", 0.0), Message("assistant", "a", 0.0)))
    with pytest.raises(DataError, match="nothing of the undesirable answer is learned"):
        Chat(CHATML.tokenizer, CHATML.template).encode(Judged(mute, desirable=False), "a.jsonl:1")


LENGTHS = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))


@given(
    st.lists(LENGTHS, min_size=1, max_size=5), st.integers(1, 14), st.sampled_from(["truncate_left", "truncate_right"])
)
def test_truncation_is_what_it_would_be_by_hand(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: Tokenizer,
    rows: list[tuple[int, int, int]],
    context: int,
    policy: Any,
) -> None:
    """The prompt loses its beginning, or answers their end; no path has more targets than the context."""
    folder = tmp_path_factory.mktemp("cut")
    letters = [tuple("x" * n for n in row) for row in rows]
    lines = [{"prompt": f"{p}\n", "chosen": a, "rejected": b} for p, a, b in letters]
    file = folder / "a.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    expected = []
    for prompt, *answers in letters:
        before = [0, *tokenizer.encode(f"{prompt}\n").tolist()]
        behind = [[*tokenizer.encode(answer).tolist(), 0] for answer in answers]
        over = max(0, len(before) + max(map(len, behind)) - (context + 1))
        if policy == "truncate_left":
            before = before[over:]
        else:
            behind = [answer[: max(0, context + 1 - len(before))] for answer in behind]
        if before and all(behind):
            expected.append((before, behind))
    collection = open_pairs(str(file), folder, Rules(context, policy), made=tokenizer)
    corpus = collection.corpus([0])
    found = [corpus[i] for i in range(len(corpus))]
    assert [(s.prompt.tolist(), [a.tolist() for a in s.answers]) for s in found] == expected
    assert corpus.lengths.tolist() == [s.num_targets for s in found]
    statistics = corpus.statistics
    assert statistics.samples == len(expected)
    assert statistics.unlearned == len(rows) - len(expected)
    assert statistics.targets == sum(len(p) + len(a) + len(b) - 1 for p, (a, b) in expected)
    assert statistics.learned == sum(len(a) + len(b) for _, (a, b) in expected)
    assert (statistics.cut, statistics.refused) == (0, 0)


@pytest.mark.parametrize("policy", ["split", "refuse"])
def test_a_pair_is_never_split(tmp_path: Path, write: Write, tokenizer: Tokenizer, policy: Any) -> None:
    file = write({"prompt": "x\n", "chosen": "y", "rejected": "y"}, {"prompt": "x\n", "chosen": "y", "rejected": "yyy"})
    with pytest.raises(DataError, match=r"pairs.jsonl:2: the prompt with its longest answer has 7 tokens, and 6 fit"):
        open_pairs(file, tmp_path, Rules(5, policy), made=tokenizer).whole()
    encoder = build_encoder(tokenizer, learns_from="answers")
    aside = {"cache": tmp_path / "cache", "quarantine": tmp_path / "bad"}
    corpus = Collection.open(file, encoder, Rules(5, policy), **aside).whole()
    assert [corpus[i].origin for i in range(len(corpus))] == [f"{file}:1"]
    assert corpus.statistics.refused == 1
    (line,) = (tmp_path / "bad" / "pairs.jsonl.jsonl").read_text().splitlines()
    assert json.loads(line)["where"] == f"{file}:2"


def test_the_cache_gives_back_what_was_encoded(tmp_path: Path, write: Write) -> None:
    rows = [pair(number, margin=number / 7) for number in range(40)]
    file = write(*rows[:20], "", *rows[20:])
    collection = open_pairs(file, tmp_path)
    first = samples(collection)
    chat = collection.encoder.chat
    for row, sample in zip(rows, first, strict=True):
        tokens = chat.encode(recognise(row, "f:1", learns_from="answers")[1], "f:1")
        assert np.concatenate([sample.prompt, *sample.answers]).tolist() == tokens.ids.tolist()
        assert np.cumsum([len(sample.prompt), *map(len, sample.answers)])[:-1].tolist() == list(tokens.answers)
        assert sample.values["margin"] == (row["margin"],) * 2
    again = open_pairs(file, tmp_path)
    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert list(map(said, samples(again))) == list(map(said, first))
    assert stored == {path: path.stat().st_mtime_ns for path in stored}
    assert again.statistics == Statistics(
        files=1,
        documents=41,
        empty=1,
        tokens=sum(s.num_targets + 1 for s in first),
        samples=40,
        targets=sum(s.num_targets for s in first),
        learned=sum(map(len, (a for s in first for a in s.answers))),
        num_bytes=again.statistics.num_bytes,
        shapes={"preference": 40},
    )
    assert sum(s.num_bytes for s in first) == pytest.approx(again.statistics.num_bytes)


def test_sequences_and_answers_of_one_file_lie_in_shards_of_their_own(tmp_path: Path, write: Write) -> None:
    file = write({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], **pair(3)})
    sequence = Collection.open(file, build_encoder(CHATML.tokenizer), Rules(1000), cache=tmp_path / "cache").whole()[0]
    (answers,) = samples(open_pairs(file, tmp_path))
    assert CHATML.tokenizer.decode(sequence.tokens).startswith("<|im_start|>user\nQ<|im_end|>")  # type: ignore[union-attr]
    assert sentence(3) in CHATML.tokenizer.decode(answers.prompt)


def said(sample: Any) -> tuple[Any, ...]:
    """A sample as it can be compared."""
    weights = None if sample.weights is None else [own.tolist() for own in sample.weights]
    parts = (sample.prompt.tolist(), [answer.tolist() for answer in sample.answers], weights)
    return (*parts, sample.values, sample.id, sample.origin, sample.num_bytes)


def config(file: str, folder: Path, **more: Any) -> DataConfig:
    made = folder / "tokenizer"
    CHATML.tokenizer.save(made)
    (made / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "bos_token": "<s>", "chat_template": CHATML.source})
    )
    fields = {"context": 1000, "step_samples": 3, "cache": str(folder / "cache"), "tokenizer": str(made)}
    return DataConfig(train=more.pop("train", file), **{**fields, **more})


def drawn(source: Any, count: int) -> list[Any]:
    return [said(sample) for _ in range(count) for sample in source.draw()]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("consumed", [1, 4])
def test_a_source_goes_on_where_it_was(tmp_path: Path, write: Write, mixed: bool, consumed: int) -> None:
    file = write(*map(pair, range(12)))
    other = write(
        *({"prompt": sentence(n), "completion": sentence(n + 1), "label": n % 2 == 0} for n in range(9)), name="b.jsonl"
    )
    parts = [{"files": file, "weight": 2}, {"files": other, "weight": 1}] if mixed else file
    settings = config(file, tmp_path, train=parts)
    data = build_data(settings, 0, learns_from="answers")
    whole, source = (data.source(settings, seed=1, epochs=2) for _ in range(2))
    drawn(whole, consumed)
    state = json.loads(json.dumps(whole.state_dict()))
    source.load_state_dict(state)
    rest = drawn(whole, 20)
    assert drawn(source, 20) == rest
    assert whole.exhausted
    assert len(rest) + 3 * consumed == 2 * (21 if mixed else 12)
    assert len({one[4] for one in rest}) > 6
    if mixed:
        assert {len(one[1]) for one in rest} == {1, 2}


def test_a_fraction_is_held_out_and_the_sides_share_no_pair(tmp_path: Path, write: Write) -> None:
    settings = config(write(*map(pair, range(60))), tmp_path, held_out=0.3)
    data = build_data(settings, 0, learns_from="answers")
    assert data.held_out is not None
    held = [data.held_out[i].origin for i in range(len(data.held_out))]
    train = [one[5] for one in drawn(data.source(settings, seed=0, epochs=1), 30)]
    assert 5 < len(held) < 35
    assert sorted(held + train) == sorted(f"{tmp_path}/pairs.jsonl:{line + 1}" for line in range(60))


def test_a_tokenizer_is_trained_on_prompts_and_answers(tmp_path: Path, write: Write) -> None:
    settings = config(
        write({"prompt": "q" * 40, "chosen": "zz " * 40, "rejected": "b"}), tmp_path, tokenizer=None, vocab_size=270
    )
    made = build_data(settings, 0, learns_from="answers").tokenizer
    assert len(made.encode("zz zz")) < 5
    assert len(made.encode("qqqq")) < 4


BAD = [
    '{"prompt": "Q", "chosen": "A"}',
    '{"prompt": "Q", "chosen": "A", "rejected": ""}',
    '{"prompt": "Q", "completion": "A"}',
    '{"text": "Q"}',
    '{"prompt": "Q", "chosen": [{"role": "user", "content": "A"}], "rejected": "B"}',
    '{"chosen": [{"role": "user", "content": "A"}], "rejected": [{"role": "user", "content": "A"}]}',
    "{",
]


def test_bad_rows_are_set_aside_each_with_its_sentence(tmp_path: Path, write: Write) -> None:
    file = write(pair(1), *BAD, pair(2))
    settings = config(file, tmp_path, quarantine=str(tmp_path / "bad"))
    data = build_data(settings, 0, learns_from="answers")
    kept = drawn(data.source(settings, seed=0, epochs=1), 3)
    assert sorted(one[5] for one in kept) == [f"{file}:1", f"{file}:{len(BAD) + 2}"]
    aside = [json.loads(line) for line in (tmp_path / "bad" / "pairs.jsonl.jsonl").read_text().splitlines()]
    assert [line["where"] for line in aside] == [f"{file}:{n + 2}" for n in range(len(BAD))]
    assert [line["row"] for line in aside] == BAD
    assert data.train.statistics.faults == len(BAD)
    for number, row in enumerate(BAD):
        alone = config(write(row, name=f"{number}.jsonl"), tmp_path)
        with pytest.raises(DataError, match=rf"{number}.jsonl:1: .*\. "):
            build_data(alone, 0, learns_from="answers").source(alone, seed=0).draw()


def test_what_a_method_does_not_learn_from_is_refused(tmp_path: Path, write: Write) -> None:
    pairs, texts = config(write(pair(1)), tmp_path), config(write({"text": "a b"}, name="t.jsonl"), tmp_path)
    with pytest.raises(DataError, match=r"pairs.jsonl:1: the row is a pair .* learns from sequences. Set method=dpo"):
        build_data(pairs, 0).source(pairs, seed=0).draw()
    with pytest.raises(DataError, match=r"t.jsonl:1: the row is of shape 'text', and the method learns from answers"):
        build_data(texts, 0, learns_from="answers").source(texts, seed=0).draw()
    named = config(write({"q": "a b"}, name="f.jsonl"), tmp_path, field="q")
    with pytest.raises(DataError, match=r"f.jsonl:1: the row is of shape 'text', and the method learns from answers"):
        build_data(named, 0, learns_from="answers").source(named, seed=0).draw()
    (tmp_path / "a.txt").write_text("plain")
    plain = config(str(tmp_path / "a.txt"), tmp_path)
    with pytest.raises(DataError, match=r"a.txt:1: the row is of shape 'text', and the method learns from answers"):
        build_data(plain, 0, learns_from="answers").source(plain, seed=0).draw()


def test_a_step_of_tokens_counts_the_prompt_once(tmp_path: Path, write: Write) -> None:
    file = write(*map(pair, range(12)))
    settings = config(file, tmp_path, step_samples=None, step_tokens=150)
    source = build_data(settings, 0, learns_from="answers").source(settings, seed=0, epochs=1)
    steps = iter(source.draw, [])
    sizes = [[len(s.prompt) + sum(map(len, s.answers)) - 1 for s in step] for step in steps]
    assert sum(map(len, sizes)) == 12
    assert all(sum(step) <= 150 or len(step) == 1 for step in sizes)


def test_a_sample_is_what_the_contract_says(tmp_path: Path, write: Write) -> None:
    def read(sample: Contract) -> Iterable[Sequence[float]]:
        assert len(sample.prompt) >= 1
        assert isinstance(sample.id, int)
        assert len(sample.origin) > 0
        assert sample.num_bytes > 0
        assert sample.weights is None or len(sample.weights) == len(sample.answers)
        return [*sample.answers, *sample.values.values()]

    for sample in samples(open_pairs(write(pair(1, margin=2), {**pair(2), "score_chosen": 1}), tmp_path)):
        assert isinstance(sample, Answers)
        assert len(list(read(sample))) in (2, 3)
        assert all(part.dtype == np.int64 for part in (sample.prompt, *sample.answers))


TEXT = st.text("ab 火\n", max_size=5)
TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": TEXT})
FIELD = TEXT | st.lists(TURN, max_size=3) | TURN | st.none() | st.booleans()


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["prompt", "chosen", "rejected", "completion", "label", "messages", "system"]), FIELD
        ),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 40),
    st.sampled_from(["split", "refuse", "truncate_left", "truncate_right"]),
)
def test_any_rows_are_samples_or_sentences(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], context: int, policy: Any
) -> None:
    folder = tmp_path_factory.mktemp("any")
    file = folder / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = ""
    try:
        open_pairs(str(file), folder, Rules(context, policy)).whole()
    except DanluError as fault:
        told = str(fault)
    assert not told or told.startswith(str(file))
    encoder = build_encoder(CHATML.tokenizer, learns_from="answers")
    aside = Collection.open(
        str(file), encoder, Rules(context, policy), cache=folder / "cache", quarantine=folder / "bad"
    )
    corpus = aside.corpus([0])
    read = corpus.statistics
    left_out = read.faults + read.refused + read.unlearned + read.empty
    assert len(corpus) + left_out == len(rows)
    for i in range(len(corpus)):
        sample: Any = corpus[i]
        assert len(sample.prompt) > 0
        assert all(len(sample.prompt) + len(answer) - 1 <= context for answer in sample.answers)
        weights = sample.weights or [np.ones(len(answer)) for answer in sample.answers]
        assert all((own > 0).any() for own in weights)
        assert [len(own) for own in weights] == [len(answer) for answer in sample.answers]
        assert sample.num_targets == corpus.lengths[i]
