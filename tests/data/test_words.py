from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from danlu.data.tokenizer import END_OF_TEXT, Tokenizer
from danlu.data.words import can_be_cut, encode_by_pieces, pieces

from .conftest import WORDS, sentence

# Merges of whole words with the spaces and line ends around them, where a wrong cut would show.
WORDY = Tokenizer.train_bpe([sentence(i) + "  'll \n\n  end  \t x" for i in range(100)], vocab_size=2000)

PARTS = st.sampled_from(
    [*WORDS, " ", "  ", "\n", "\t", "\r\n", "\x1c", "\u3000", "\xa0", "'", "'LL", "'ve", "'s", "a", "1", "!", "é"]
)
ASCII = st.text(st.characters(max_codepoint=127), max_size=30)
TEXTS = st.lists(PARTS, max_size=12).map("".join) | ASCII | st.text(st.characters(exclude_categories=["Cs"]))


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXTS, max_size=4))
@example(["", " ", "a ", " a", "a  b", "a b ", "a\n b", "a \nb", "\x1c a\x1c b", f"a {END_OF_TEXT} b"])
def test_ids_by_pieces_are_the_ids_of_the_whole(texts: list[str]) -> None:
    ids, lengths = encode_by_pieces(texts, WORDY._encode)
    expected, expected_lengths = WORDY._encode(texts)
    assert ids.tolist() == expected.tolist()
    assert lengths.tolist() == expected_lengths.tolist()
    assert ids.dtype == expected.dtype


@given(TEXTS)
def test_pieces_are_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text


def test_words_are_cut() -> None:
    assert pieces("it's 2\n  x1 ") == ["it", "'s", " 2", "\n ", " x", "1", " "]
    assert pieces("ün two\nthree  four five ") == ["ün", " two\nthree  four", " five "]
    assert can_be_cut(WORDY.json.decode())


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}},
        {"added_tokens": [{"content": "two words", "special": False}]},
        {"model": {"type": "BPE", "dropout": 0.1}},
    ],
)
def test_a_tokenizer_that_may_look_further_is_not_cut(change: dict[str, object]) -> None:
    assert not can_be_cut(json.dumps(json.loads(WORDY.json) | change))
