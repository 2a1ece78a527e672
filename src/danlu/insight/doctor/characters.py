"""What characters are: the words they make, the script they belong to, and how to show what cannot be seen."""

from __future__ import annotations

import functools
import re

import numpy as np
from jaxtyping import Int64, UInt8, UInt32

_SCRIPTS = {
    "Latin": "41-5a 61-7a aa-aa ba-ba c0-d6 d8-f6 f8-24f 250-2af 1e00-1eff 2c60-2c7f a720-a7ff ff21-ff3a ff41-ff5a",
    "Greek": "370-3ff 1f00-1fff",
    "Cyrillic": "400-52f 1c80-1c8f 2de0-2dff a640-a69f",
    "Armenian": "531-587",
    "Hebrew": "5d0-5f2",
    "Arabic": "620-65f 66e-6d3 750-77f 8a0-8ff fb50-fdff fe70-fefc",
    "Devanagari": "900-97f",
    "Bengali": "980-9ff",
    "Gurmukhi": "a00-a7f",
    "Gujarati": "a80-aff",
    "Tamil": "b80-bff",
    "Telugu": "c00-c7f",
    "Kannada": "c80-cff",
    "Malayalam": "d00-d7f",
    "Sinhala": "d80-dff",
    "Thai": "e00-e7f",
    "Lao": "e80-eff",
    "Tibetan": "f00-fff",
    "Burmese": "1000-109f",
    "Georgian": "10a0-10ff",
    "Ethiopic": "1200-139f",
    "Khmer": "1780-17ff",
    "Hangul": "1100-11ff 3130-318f ac00-d7af",
    "Han": "3400-4dbf 4e00-9fff f900-faff",
    "Japanese": "3041-30ff 31f0-31ff ff66-ff9f",
}
SCRIPTS = tuple(_SCRIPTS)
"""The scripts that are told apart, after Unicode's blocks of its first plane; kana are called Japanese."""
_UNSPACED = ("Thai", "Lao", "Tibetan", "Burmese", "Khmer", "Han", "Japanese")
"""Scripts without spaces between words: each of their characters is taken for a word."""
_PLANE = 1 << 16
_KANA_SHARE = 0.1
"""Japanese mixes kana with Han; with less than this of them a text is Chinese that quotes some."""
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufffe\uffff]"
)
_SPECIMEN = 60


def code_points(text: str) -> UInt32[np.ndarray, " n"]:
    """The characters of a text as numbers."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def letters_by_script(codes: UInt32[np.ndarray, " n"]) -> Int64[np.ndarray, " S"]:
    """How many letters are of which of the `SCRIPTS`.

    Example:
        >>> counts = letters_by_script(code_points("Ну, hi!"))
        >>> {name: int(num) for name, num in zip(SCRIPTS, counts, strict=True) if num}
        {'Latin': 2, 'Cyrillic': 2}
    """
    return np.bincount(_script_table()[np.minimum(codes, _PLANE - 1)], minlength=len(SCRIPTS) + 1)[1:]


def main_script(letters: Int64[np.ndarray, " S"]) -> str | None:
    """The script of most letters, Han among kana counted with them; None where there is no letter."""
    if not letters.any():
        return None
    counts = letters.copy()
    han, kana = SCRIPTS.index("Han"), SCRIPTS.index("Japanese")
    if counts[kana] > _KANA_SHARE * counts[han]:
        counts[kana] += counts[han]
    return SCRIPTS[int(counts.argmax())]


def words_of(
    codes: UInt32[np.ndarray, " n"],
) -> tuple[np.ndarray, Int64[np.ndarray, " W"]]:
    """The words of a text: a 64-bit hash of each, and where it starts.

    A word is a run of letters, marks and digits; where a script has no spaces, one character.

    References:
        Carter and Wegman, 1979, "Universal classes of hash functions", https://doi.org/10.1016/0022-0000(79)90044-8
    """
    kinds = _word_table()[np.minimum(codes, _PLANE - 1)]
    before = np.concatenate([np.zeros(1, np.uint8), kinds[:-1]])
    first = (kinds > 0) & ((before == 0) | (kinds == _ALONE) | (before == _ALONE))
    inside = kinds > 0
    starts = np.flatnonzero(first)
    if not len(starts):
        return np.zeros(0, np.uint64), starts
    heads = np.flatnonzero(first[inside])
    sizes = np.diff(heads, append=int(inside.sum()))
    place = np.arange(int(inside.sum())) - np.repeat(heads, sizes)
    terms = (codes[inside].astype(np.uint64) + np.uint64(1)) * _coefficients()[place % _LONGEST_WORD]
    return np.add.reduceat(terms, heads), starts


def visible(text: str) -> str:
    r"""The text with everything that cannot be seen, or steers a terminal, written out.

    Example:
        >>> visible("a\x1b[31mb\ufeff")
        'a\\x1b[31mb\\ufeff'
    """
    return _UNSEEN.sub(_written_out, text)


def _written_out(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


def excerpt(text: str, limit: int = _SPECIMEN) -> str:
    r"""The beginning of a text on one line, as it can be shown.

    Example:
        >>> excerpt("To be,  or not\n to be", limit=9)
        'To be, or…'
    """
    line = " ".join(text[: 8 * limit].split())
    return visible(line[:limit] + "…" if len(line) > limit or len(text) > 8 * limit else line)


_ALONE = 2
_LONGEST_WORD = 256
"""Characters further on in a word meet the first coefficients again."""


@functools.cache
def _coefficients() -> np.ndarray:
    random = np.random.default_rng(0).integers(1 << 63, size=_LONGEST_WORD, dtype=np.uint64)
    return random << np.uint64(1) | np.uint64(1)


@functools.cache
def _script_table() -> UInt8[np.ndarray, " 65536"]:
    """Of each character, one more than the number of its script; 0 is none."""
    table = np.zeros(_PLANE, np.uint8)
    for number, ranges in enumerate(_SCRIPTS.values()):
        for span in ranges.split():
            low, high = (int(end, 16) for end in span.split("-"))
            table[low : high + 1] = number + 1
    return table


@functools.cache
def _word_table() -> UInt8[np.ndarray, " 65536"]:
    """Of each character: 0 parts words, 1 belongs to one, 2 is one; what lies beyond the first plane is one."""
    scripts = _script_table()
    table = (scripts > 0).astype(np.uint8)
    table[np.isin(scripts, [SCRIPTS.index(name) + 1 for name in _UNSPACED])] = _ALONE
    table[ord("0") : ord("9") + 1] = 1
    table[0x300:0x370] = 1
    table[_PLANE - 1] = _ALONE
    return table
