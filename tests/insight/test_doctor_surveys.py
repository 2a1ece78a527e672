from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from doctor_rows import answered, decode, diagnose, encode, found, places, row_of, spoilt, text
from hypothesis import given
from hypothesis import strategies as st

from danlu.data.document import Conversation, Message, Tokens
from danlu.insight.doctor import Case, Setting
from danlu.insight.doctor.characters import SCRIPTS, code_points, letters_by_script, main_script, visible, words_of
from danlu.insight.doctor.copies import Copies
from danlu.insight.doctor.near import ALIKE, SHINGLE, Sketches, nearest
from danlu.insight.doctor.places import Places

VERSE = "shall i compare thee to a summers day thou art more lovely and more temperate rough winds do shake"


def edited(words: list[str], num_edits: int, rng: np.random.Generator) -> list[str]:
    """Words replaced, left out or put in at random."""
    words = list(words)
    for _ in range(num_edits):
        at = int(rng.integers(len(words)))
        words[at : at + int(rng.integers(2))] = [f"w{rng.integers(10**6)}"] * int(rng.integers(2))
    return words


def jaccard(a: list[str], b: list[str]) -> float:
    x, y = ({tuple(words[at : at + SHINGLE]) for at in range(len(words) - SHINGLE + 1)} for words in (a, b))
    return len(x & y) / max(len(x | y), 1)


def test_copies_are_found_whatever_their_case_and_spaces() -> None:
    rows = [
        text("To be", 1),
        text("or not", 2),
        text(" to  BE\n", 3),
        text("to be", 7, file="b.jsonl"),
        text("tobe", 9),
    ]
    finding = found(diagnose(rows), "duplicates")
    assert finding is not None
    assert finding.count == 2
    assert [(some.where, some.what) for some in finding.examples] == [
        ("a.jsonl:3", "the same as a.jsonl:1"),
        ("b.jsonl:7", "the same as a.jsonl:1"),
    ]


def test_who_speaks_and_what_the_system_says_makes_a_difference() -> None:
    def chat(*said: tuple[str, str]) -> Conversation:
        return Conversation(tuple(Message(role, content) for role, content in said))

    rows = [
        row_of(chat(("user", "a"), ("assistant", "b"))),
        row_of(chat(("system", "be kind"), ("user", "a"), ("assistant", "b")), 2),
        row_of(chat(("user", "a"), ("assistant", "b"), ("tool", "")), 3),
    ]
    assert found(diagnose(rows), "duplicates") is None


def test_rows_that_are_not_used_are_no_copies() -> None:
    assert diagnose([spoilt(line=1), spoilt(line=2), text("", 3), text("", 4)]).train.used == 0
    assert found(diagnose([spoilt(line=1), spoilt(line=2), text("", 3), text("", 4)]), "duplicates") is None


def test_held_out_rows_that_are_trained_on() -> None:
    nearly = VERSE.replace("summers", "winters")
    train = [text("alpha beta", 1), text(VERSE, 2)]
    held_out = [
        text("Alpha  beta", 1, file="h.jsonl"),
        text(nearly, 2, file="h.jsonl"),
        text("gamma", 3, file="h.jsonl"),
    ]
    diagnosis = diagnose(train, held_out)
    leaks, near = found(diagnosis, "leaks"), found(diagnosis, "near_leaks")
    assert leaks is not None
    assert near is not None
    assert (leaks.count, near.count) == (1, 1)
    assert [(some.where, some.what) for some in leaks.examples] == [("h.jsonl:1", "the same as a.jsonl:1")]
    assert near.examples[0].where == "h.jsonl:2"
    assert near.examples[0].what.endswith("the same as a.jsonl:2")
    for name in ("duplicates", "near_duplicates"):
        assert found(diagnosis, name) is None
    apart = diagnose(train, held_out[2:])
    assert found(apart, "leaks") is None
    assert found(apart, "near_leaks") is None


def test_copies_within_the_held_out_rows_are_copies() -> None:
    diagnosis = diagnose([text("a", 1)], [text("b", 1, file="h"), text("b", 2, file="h"), text("a", 3, file="h")])
    assert places(diagnosis, "duplicates") == ["h:2"]
    assert places(diagnosis, "leaks") == ["h:3"]


def test_near_copies_are_named_with_their_clusters() -> None:
    other = " ".join(f"word{number}" for number in range(60))
    rows = [text(VERSE, 1), text(f"{VERSE} now", 2), text(other, 3), text(f"{VERSE} then", 4), text(f"well {other}", 5)]
    finding = found(diagnose(rows), "near_duplicates")
    assert finding is not None
    assert finding.count == 3
    assert "2 clusters" in finding.title
    assert {some.where: some.what.split()[-1] for some in finding.examples} == {
        "a.jsonl:2": "a.jsonl:1",
        "a.jsonl:4": "a.jsonl:1",
        "a.jsonl:5": "a.jsonl:3",
    }


def test_a_shared_system_prompt_is_no_likeness() -> None:
    rng = np.random.default_rng(0)
    system = Message("system", " ".join(f"rule{number}" for number in range(300)))
    rows = [
        row_of(
            Conversation(
                (system, Message("user", " ".join(map(str, rng.integers(999, size=20)))), Message("assistant", "ok"))
            ),
            line,
        )
        for line in range(20)
    ]
    assert found(diagnose(rows), "near_duplicates") is None


def test_near_copies_against_all_pairs() -> None:
    """MinHash against the Jaccard similarity of every pair: hardly a clear copy missed, hardly a stranger taken."""
    rng = np.random.default_rng(0)
    texts = [[f"v{word}" for word in rng.zipf(1.3, size=rng.integers(40, 160)) % 5000] for _ in range(150)]
    texts += [edited(texts[int(rng.integers(150))], int(rng.integers(0, 20)), rng) for _ in range(250)]
    sketches = Sketches()
    for words in texts:
        sketches.add(" ".join(words))
    table, sketched = sketches.taken()
    assert sketched.all()
    beside, across = nearest(table, len(texts))
    assert (across.of == -1).all()
    likest = np.array([max((jaccard(texts[i], texts[j]) for j in range(i)), default=0.0) for i in range(len(texts))])
    taken = beside.of >= 0
    clear, stranger = likest >= ALIKE + 0.1, likest < ALIKE - 0.15
    assert clear.sum() > 50
    assert stranger.sum() > 100
    assert taken[clear].mean() >= 0.97
    assert taken[stranger].mean() <= 0.01
    assert taken[likest >= ALIKE].mean() >= 0.9
    true = [jaccard(texts[i], texts[j]) for i, j in enumerate(beside.of.tolist()) if j >= 0]
    assert np.abs(np.array(true) - beside.likeness[taken]).mean() < 0.05


@given(st.lists(st.text(max_size=60), max_size=12), st.integers(0, 12))
def test_sketches_of_any_texts(texts: list[str], first_of_second: int) -> None:
    sketches = Sketches()
    for content in texts:
        sketches.add(content)
    table, sketched = sketches.taken()
    assert len(table) == len(sketched) == len(texts)
    assert sketched.tolist() == [len(words_of(code_points(content))[0]) >= SHINGLE for content in texts]
    beside, across = nearest(table, first_of_second)
    index = np.arange(len(texts))
    assert (beside.of < index).all()
    assert (across.of < first_of_second).all()
    assert (across.of[:first_of_second] == -1).all()
    roots = beside.roots()
    assert (roots <= index).all()
    assert np.array_equal(roots[roots], roots)


def test_a_text_has_the_same_sketch_in_any_company(monkeypatch: pytest.MonkeyPatch) -> None:
    def table(batch: int) -> np.ndarray:
        monkeypatch.setattr("danlu.insight.doctor.near._BATCH_CHARACTERS", batch)
        sketches = Sketches()
        for content in (VERSE, "", "你好世界今天天气很好", "one two three"):
            sketches.add(content)
        return sketches.taken()[0]

    assert np.array_equal(table(1), table(10**6))


def test_words() -> None:
    def cut(content: str) -> list[str]:
        starts = words_of(code_points(content))[1].tolist()
        return [content[start] for start in starts]

    assert cut("to be, 2b; привет мир") == ["t", "b", "2", "п", "м"]
    assert cut("你好 ok 今") == ["你", "好", "o", "今"]
    assert cut(" .,! ") == []
    hashes = words_of(code_points("one two one"))[0]
    assert hashes[0] == hashes[2] != hashes[1]


def test_scripts() -> None:
    def script(content: str) -> str | None:
        return main_script(letters_by_script(code_points(content)))

    assert script("hello, мир") == "Latin"
    assert script("привет") == "Cyrillic"
    assert script("東京は大きい") == "Japanese"
    assert script("今天天气很好") == "Han"
    assert script("안녕하세요") == "Hangul"
    assert script("12 + 3 = 15 😀") is None
    assert len(set(SCRIPTS)) == len(SCRIPTS)


def test_rows_in_another_script() -> None:
    rows = [text(f"the quick brown fox {line}", line) for line in range(1, 9)]
    rows += [text("съешь ещё этих булок", 9), text("今天天气很好我们去公园", 10), text("1 + 1 = 2", 11), text("π", 12)]
    finding = found(diagnose(rows), "other_scripts")
    assert finding is not None
    assert finding.count == 2
    assert "Latin 80.0%" in finding.title
    assert [(some.where, some.what) for some in finding.examples] == [
        ("a.jsonl:9", "it is mostly Cyrillic"),
        ("a.jsonl:10", "it is mostly Han"),
    ]
    assert found(diagnose(rows[:8]), "other_scripts") is None


def test_answers_of_odd_length() -> None:
    rows = [answered("why?", "because " * (10 + line % 5), line) for line in range(1, 30)]
    odd = [answered("why?", "x", 30), answered("why?", "y" * 9000, 31)]
    diagnosis = diagnose([*rows, *odd])
    short, long = found(diagnosis, "short_answers"), found(diagnosis, "long_answers")
    assert short is not None
    assert long is not None
    assert [(some.where, some.what) for some in short.examples] == [
        ("a.jsonl:30", "message 2 (assistant) has 1 characters")
    ]
    assert [(some.where, some.what) for some in long.examples] == [
        ("a.jsonl:31", "message 2 (assistant) has 9,000 characters")
    ]
    assert (short.count, long.count) == (1, 1)
    for name in ("short_answers", "long_answers"):
        assert found(diagnose(rows), name) is None
        assert found(diagnose([answered("hi", "y", line) for line in range(20)]), name) is None


def test_answers_many_rows_share() -> None:
    refusal = "I am sorry, but I cannot help you with that."
    rows = [answered(f"question {line}", refusal, line) for line in range(3, 9)]
    rows += [answered(f"question {line}", f"a long and different answer {line}", line) for line in range(9, 40)]
    rows += [answered(f"true or false {line}", "true", line) for line in range(40, 60)]
    finding = found(diagnose(rows), "repeated_answers")
    assert finding is not None
    assert finding.count == 6
    [example] = finding.examples
    assert (example.where, example.what) == ("a.jsonl:3", f'the first of 6 answers "{refusal}"')
    assert found(diagnose(rows[2:]), "repeated_answers") is None


def test_a_full_table_of_answers_forgets_the_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("danlu.insight.doctor.surveys._KEPT_ANSWERS", 10)
    rows = []
    for line in range(300):
        said = "always the very same answer" if line % 3 == 0 else f"an answer of its own, {line}"
        rows.append(answered("what?", said, line))
    finding = found(diagnose(rows), "repeated_answers")
    assert finding is not None
    assert 90 <= finding.count <= 100


def test_ids_are_compared_by_what_they_say() -> None:
    rows = [
        row_of(Tokens(np.array(encode("to be"), np.int64)), 1),
        row_of(Tokens(np.array(encode("To be"), np.int64)), 2),
    ]
    assert places(diagnose(rows), "duplicates") == ["a.jsonl:2"]


@given(
    st.lists(
        st.one_of(
            st.text(max_size=12), st.builds(lambda n, k: f"{n}:{k}", st.text(max_size=4), st.integers(-3, 10**20))
        )
    )
)
def test_places_come_back(wheres: list[str]) -> None:
    kept = Places()
    assert [kept.add(where) for where in wheres] == list(range(len(wheres)))
    assert [kept[index] for index in range(len(kept))] == wheres


@given(st.text(st.characters()))
def test_what_is_visible_can_be_written(content: str) -> None:
    shown = visible(content + "\ud800\x1b")
    shown.encode()
    assert "\x1b" not in shown


def test_a_row_leaves_a_few_bytes_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("danlu.insight.doctor.near._BATCH_CHARACTERS", 1 << 14)
    setting = Setting(1000, "split", decode, frozenset(), frozenset(), 5)
    survey = Copies(setting)
    tracemalloc.start()
    sizes = []
    for line in range(4001):
        survey.see(Case(text(f"{line} " * 100, line), False, setting))
        if line % 2000 == 0:
            sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert (sizes[2] - sizes[1]) / 2000 < 250
