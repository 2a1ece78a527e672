"""What may be wrong with a row by itself."""

from __future__ import annotations

import re

from danlu.insight.doctor.case import Case
from danlu.insight.doctor.characters import excerpt, visible
from danlu.insight.doctor.finding import rule

_BYTE_ORDER_MARK = "\ufeff"
_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f]")
_NO_CHARACTER = re.compile("[\ue000-\uf8ff\ufdd0-\ufdef\ufffe\uffff\U000f0000-\U0010ffff]")
_HALF = re.compile("[\ud800-\udfff]")
_AFTER = "\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
"""What a byte 80 to BF is in Latin-1 or Windows-1252: the bytes of a character after its first."""
_MISREAD = re.compile(
    f"Ã[\u0080-\u00bfƒ†‡ˆ‰Š‹ŒŽ˜™š›œžŸ€„‚]|Â[\u0080-\u00ba\u00bc-\u00bf]|â€[{_AFTER}]|ðŸ[{_AFTER}]{{2}}|"
    f"ï»¿|ï¿½|(?:[ÐÑ][{_AFTER}]){{2}}|(?:[ã-é][{_AFTER}]{{2}}){{2}}"
)
"""UTF-8 that was read as Latin-1 or Windows-1252: é as "Ã©", ’ as "â€™"; what also occurs in sound text is left out."""


@rule("error", "rows that cannot be read", "Repair or remove them, or set them aside with --quarantine.")
def unreadable(case: Case) -> str | None:
    """Not JSON, no known shape, a role out of order, a template that raises: whatever reader and encoder refuse."""
    fault = case.row.fault
    if fault is None:
        return None
    place = f" (at {fault.where})" if fault.where not in (None, case.row.where) else ""
    mark = "; it begins with a byte-order mark" if case.row.raw.startswith(_BYTE_ORDER_MARKS) else ""
    record = case.row.raw[:1000].decode("utf-8", "backslashreplace").strip(_BYTE_ORDER_MARK)
    return f"{fault.what}{place}{mark}" + (f": {excerpt(record)}" if record.strip() else "")


@rule("error", "rows without text", "Remove them, or find out what they lost.")
def empty(case: Case) -> str | None:
    """No token at all."""
    return "there is nothing in it" if case.fate == "empty" else None


@rule("error", "rows with nothing to learn", "Look at data.train_on, the weights of messages and data.too_long.")
def unlearned(case: Case) -> str | None:
    """No token of the row counts in the loss."""
    if case.fate != "unlearned":
        return None
    if case.num_tokens == 1:
        return "it is one token, which has nothing to be predicted from"
    if not len(case.targets):
        return f"none of its {case.num_tokens:,} tokens is learned"
    if case.answers:
        return f"of its {case.num_tokens:,} tokens the prompt or all that is learned of an answer is cut off"
    return f"its {len(case.targets):,} learned tokens all lie in what is cut off"


@rule("error", "rows longer than the context, which are refused", "Raise data.context, or let data.too_long cut them.")
def refused(case: Case) -> str | None:
    """Over the context, where the recipe refuses that."""
    return f"it has {_beyond(case)}" if case.fate == "refused" else None


@rule("warning", "rows cut off at the context", "Raise data.context, or split them by data.too_long=split.")
def cut(case: Case) -> str | None:
    """Over the context, where the recipe truncates."""
    if case.fate != "used" or not case.too_long or case.policy == "split":
        return None
    end = "beginning" if case.policy == "truncate_left" else "end"
    return f"it has {_beyond(case)}; its {end} is lost, with {len(case.targets) - case.num_learned:,} learned tokens"


@rule("note", "rows split at the context", "Raise data.context where a row should be seen whole.")
def split(case: Case) -> str | None:
    """Over the context, where the recipe splits."""
    if case.fate != "used" or not case.too_long or case.policy != "split":
        return None
    return f"it has {_beyond(case)}, and becomes {len(case.lengths)} samples"


@rule("warning", "rows of nothing but white space", "Remove them.")
def white_space(case: Case) -> str | None:
    """Tokens, but nothing to read."""
    blank = case.fate == "used" and not case.said.strip()
    return f"its {case.num_tokens:,} tokens say nothing" if blank else None


@rule("warning", "byte-order marks inside text", "Remove U+FEFF; files that were joined often have it.")
def byte_order_mark(case: Case) -> str | None:
    """U+FEFF, which is no text."""
    return _first(case, re.compile(_BYTE_ORDER_MARK))


@rule("warning", "control characters in text", "Remove them; most are left over from another format.")
def control_characters(case: Case) -> str | None:
    """NUL and the like; tabs, line ends and form feeds are text."""
    return _first(case, _CONTROL, in_ascii=True)


@rule("warning", "replacement characters in text", "Read the source anew in the encoding that it was written in.")
def replacement_characters(case: Case) -> str | None:
    """U+FFFD stands where something could not be decoded."""
    return _first(case, re.compile("\ufffd"))


@rule("warning", "characters without a meaning", "Remove them, or replace them by what their font showed.")
def private_characters(case: Case) -> str | None:
    """Private-use characters and noncharacters mean nothing outside their font, often a PDF's."""
    return _first(case, _NO_CHARACTER)


@rule("warning", "halves of surrogate pairs in text", "Write the source anew; a character was cut in two.")
def half_characters(case: Case) -> str | None:
    """A lone surrogate is no character, and cannot be written as UTF-8."""
    return _first(case, _HALF)


@rule("warning", "text read in the wrong encoding", "Read the source as UTF-8; ftfy repairs what is lost already.")
def misread(case: Case) -> str | None:
    """Mojibake."""
    return _first(case, _MISREAD)


@rule(
    "warning",
    "special tokens written out in text",
    "In a conversation they become those tokens and may end a turn inside a message; in a text they stay text. "
    "Give messages as they are, before a template was applied.",
)
def written_tokens(case: Case) -> str | None:
    """``<|im_end|>`` inside a message."""
    pattern = case.setting.special_text
    return None if pattern is None else _first(case, pattern, in_ascii=True)


@rule("warning", "assistant messages that are empty", "Remove them, or fill them in: an empty answer is learned too.")
def empty_answer(case: Case) -> str | None:
    """An answer without a word, and without a tool call."""
    empties = [content.place for content in case.contents if content.answer and not content.text.strip()]
    return f"{empties[0]} is empty" if empties else None


@rule(
    "warning",
    "rows whose learned part has no end",
    "Learn the token that ends a turn (data.add_eos, data.train_on), or the model will not learn to stop.",
)
def no_end(case: Case) -> str | None:
    """The last learned token is not one that ends a text or a turn."""
    if case.fate != "used" or not case.setting.end_ids or case.row.ids is None:
        return None
    ends = [int(case.row.ids[own.stop - 1]) for own in case.answers] or [int(case.row.ids[case.targets[-1]])]
    for number, last in enumerate(ends):
        if last not in case.setting.end_ids:
            of = "the rejected answer's" if number else "the chosen answer's" if len(ends) > 1 else "its"
            return f"{of} last learned token is {_shown(case, last)}"
    return None


def _beyond(case: Case) -> str:
    answered = " with its longest answer" * bool(case.answers)
    return f"{case.path:,} tokens{answered} for a context of {case.setting.context:,}"


def _shown(case: Case, token: int) -> str:
    return f'"{visible(case.setting.decode([token]))}"'


def _first(case: Case, pattern: re.Pattern[str], *, in_ascii: bool = False) -> str | None:
    """Where a pattern is first found, and how often in all; one that is never in ASCII is not looked for there."""
    first, count = "", 0
    for content in case.contents:
        if content.text.isascii() and not in_ascii:
            continue
        found = pattern.search(content.text)
        if found is None:
            continue
        if not count:
            place = f"{content.place} has " if content.place else ""
            first = f"{place}{_named(found[0])} at character {found.start() + 1:,}"
        count += sum(1 for _ in pattern.finditer(content.text))
    return f"{first}, {count:,} in all" if count > 1 else first or None


def _named(found: str) -> str:
    """What was found: what cannot be seen by its number, what can as it is."""
    return f"U+{ord(found):04X}" if len(found) == 1 else f'"{found}"'
