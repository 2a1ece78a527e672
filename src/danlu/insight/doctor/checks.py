"""All that rows are examined for; a new check is written in `rules.py` or as a `Survey`, and named here."""

from __future__ import annotations

from danlu.insight.doctor import pairs, rules
from danlu.insight.doctor.copies import Copies
from danlu.insight.doctor.finding import Check
from danlu.insight.doctor.surveys import AnswerLengths, Languages, RepeatedAnswers

CHECKS: tuple[Check, ...] = (
    rules.unreadable,
    rules.empty,
    rules.unlearned,
    rules.refused,
    rules.cut,
    rules.split,
    rules.white_space,
    rules.byte_order_mark,
    rules.control_characters,
    rules.replacement_characters,
    rules.private_characters,
    rules.half_characters,
    rules.misread,
    rules.written_tokens,
    rules.empty_answer,
    rules.no_end,
    pairs.identical_pair,
    pairs.prompt_mismatch,
    pairs.repeated_prompt,
    Copies,
    AnswerLengths,
    RepeatedAnswers,
    Languages,
    pairs.AnswerBias,
    pairs.LabelBalance,
)
