"""What of a text is its answer, so that two texts can be said to agree."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod

from danlu.registry import export


class Extractor(ABC):
    """Finds the answer in a reference and in what a model wrote; they agree when the two are equal texts."""

    @abstractmethod
    def reference(self, text: str) -> str | None:
        """The right answer, or None where the reference has none."""

    @abstractmethod
    def answer(self, text: str) -> str | None:
        """The answer that a model gave, or None where it gave none."""


@export("extractor", "exact", source="Rajpurkar et al., 2016, https://arxiv.org/abs/1606.05250")
class Exact(Extractor):
    """All of the text, white space around it left off."""

    def reference(self, text: str) -> str:
        """See the class."""
        return text.strip()

    def answer(self, text: str) -> str:
        """See the class."""
        return text.strip()


_NUMBER = re.compile(r"-?\$?-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_MARK = "####"


@export("extractor", "gsm8k", source="Cobbe et al., 2021, https://arxiv.org/abs/2110.14168")
class GSM8K(Extractor):
    r"""The number behind '####'; of an answer without one, its last number.

    As GSM8K is usually evaluated, commas and dollar signs are left out, so is a full stop behind the number, and what
    is left is compared as text: 1,000 is 1000, and 18.00 is not 18.

    References:
        Cobbe et al., 2021, "Training verifiers to solve math word problems", https://arxiv.org/abs/2110.14168
        Gao et al., 2024, "The language model evaluation harness", https://zenodo.org/records/12608602 (gsm8k)

    Example:
        >>> GSM8K().reference("9 - 4 = 5, so $5,000.\n#### 5,000")
        '5000'
        >>> GSM8K().answer("She has 12 eggs and earns $18."), GSM8K().answer("I cannot say.")
        ('18', None)
    """

    def reference(self, text: str) -> str | None:
        """See the class."""
        _, mark, rest = text.partition(_MARK)
        return _plain(_NUMBER.search(rest)) if mark else None

    def answer(self, text: str) -> str | None:
        """See the class."""
        return self.reference(text) or _plain(next(reversed(list(_NUMBER.finditer(text))), None))


def _plain(number: re.Match[str] | None) -> str | None:
    return None if number is None else number[0].replace(",", "").replace("$", "")


_SAID = re.compile(r"(?i:answer)\b(?i:[\s*:=]|is)*\(?\**([A-D])\b")
_FIRST = re.compile(r"\s*\**\(?([A-D])(?:[).:,*\s]*$|[).:,*]|\s*\n)")
_CHOSEN = re.compile(r"(?i:choice|option)\b(?i:[\s*:=]|is)*\(?\**([A-D])\b")
_ALONE = re.compile(r"\(([A-D])\)|\b([B-D])\b|\bA\b(?! [a-z])")


@export("extractor", "choice", source="Hendrycks et al., 2021, https://arxiv.org/abs/2009.03300")
class Choice(Extractor):
    """A letter from A to D: that is said to be the answer, else that it begins with, else a choice, else the last.

    Example:
        >>> Choice().reference("B"), Choice().reference("(C) a furnace")
        ('B', 'C')
        >>> Choice().answer("A furnace is hot, so the answer is (D)."), Choice().answer("A furnace is hot.")
        ('D', None)
    """

    def reference(self, text: str) -> str | None:
        """See the class."""
        return self.answer(text)

    def answer(self, text: str) -> str | None:
        """See the class."""
        if said := _SAID.findall(text):
            return str(said[-1])
        if first := _FIRST.match(text):
            return first[1]
        if chosen := _CHOSEN.findall(text):
            return str(chosen[-1])
        alone = next(reversed(list(_ALONE.finditer(text))), None)
        return None if alone is None else alone[1] or alone[2] or "A"
