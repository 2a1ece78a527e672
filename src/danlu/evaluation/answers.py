"""Answers that a model writes, compared with those it should have written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from danlu.data.chat_template import ChatTemplate
from danlu.data.document import Completion, Conversation, Document, Message, Tokens
from danlu.errors import DataError
from danlu.evaluation.extractors import Extractor
from danlu.evaluation.result import Result
from danlu.generate import LanguageModel, Sampling, generate
from danlu.generate.chat_session import chat_ids, turn_ending, turn_opening, until
from danlu.generate.text import pieces


@dataclass(frozen=True)
class Question:
    """What a model is asked.

    Attributes:
        origin: where it comes from, "file:line".
        prompt: all of it, as text.
        ids: its tokens.
        reference: what the answer should have been.
    """

    origin: str
    prompt: str
    ids: tuple[int, ...]
    reference: str


class Asker:
    """Makes questions of documents, as serving would render them, and has a model answer them.

    What is asked is all before a conversation's last assistant message, or a completion's prompt.
    """

    def __init__(
        self, model: LanguageModel, template: ChatTemplate | None, encode: Callable[[Document, str], Tokens]
    ) -> None:
        """Make one.

        Args:
            model: what answers.
            template: how conversations are rendered, if there is one.
            encode: a document's tokens with their weights, as in training.
        """
        self.model, self._template, self._encode = model, template, encode
        self._ending = "" if template is None else turn_ending(model.tokenizer, template)
        self._opening = "" if template is None else turn_opening(model.tokenizer, template)
        self.unfinished = 0

    def questions(
        self, examples: Iterable[tuple[str, Document]], max_new_tokens: int
    ) -> tuple[list[Question], dict[str, int]]:
        """The questions of all documents, and how many have none, by reason."""
        longest = self.model.model.longest
        found, left_out = [], Counter({"without_prompt": 0, "too_long": 0})
        for origin, document in examples:
            question = self._question(document, origin)
            if question is None:
                left_out["without_prompt"] += 1
            elif longest is not None and len(question.ids) + max_new_tokens > longest:
                left_out["too_long"] += 1
            else:
                found.append(question)
        return found, dict(left_out)

    def _question(self, document: Document, origin: str) -> Question | None:
        if isinstance(document, Completion) and self._template is None:
            tokens = self._encode(document, origin)
            first = 0 if tokens.weights is None else int(np.flatnonzero(tokens.weights)[:1].sum())
            ids = tuple(tokens.ids[:first].tolist())
            return Question(origin, document.prompt, ids, document.completion) if ids else None
        conversation = _as_conversation(document)
        if conversation is None:
            return None
        if self._template is None:
            do = "Set data.chat_template=chatml, or to the path of a .jinja file."
            raise DataError("the tokenizer has no chat template", where=origin, do=do)
        *before, last = conversation.messages
        messages, tools = [message.as_dict() for message in before], [dict(tool) for tool in conversation.tools]
        prompt = self._template.render(messages, tools or None, add_generation_prompt=True, where=origin)
        return Question(origin, prompt, tuple(chat_ids(self.model.tokenizer, prompt)), _text(last))

    def answers(
        self,
        questions: Sequence[Question],
        *,
        max_new_tokens: int,
        max_active: int,
        answered: Callable[[int], None] = lambda _: None,
    ) -> list[str]:
        """What the model writes, the most likely token at a time; `answered` hears of every answer that is done."""
        ending = chat_ids(self.model.tokenizer, self._ending)
        stop = self.model.stop | frozenset(ending if len(ending) == 1 else [])
        sampling = Sampling(temperature=0, max_new_tokens=max_new_tokens)
        written: list[list[int]] = [[] for _ in questions]
        prompts = [question.ids for question in questions]
        for step in generate(self.model.model, prompts, sampling, stop=stop, max_active=max_active):
            if step.token not in stop:
                written[step.prompt].append(step.token)
            if step.ended is not None:
                self.unfinished += step.ended == "length"
                answered(step.prompt)
        streams = (pieces(self.model.tokenizer, ids, new) for ids, new in zip(prompts, written, strict=True))
        texts = ["".join(until(stream, self._ending)) for stream in streams]
        return [text.rpartition(self._opening)[2].lstrip() if self._opening else text for text in texts]


def judge(
    task: str, extractor: Extractor, questions: Sequence[Question], answers: Sequence[str], left_out: dict[str, int]
) -> Result:
    """How many answers are right; one from which nothing can be extracted is wrong.

    Raises:
        DataError: when there is no question whose right answer is known.
    """
    records: list[dict[str, Any]] = []
    for question, answer in zip(questions, answers, strict=True):
        expected, extracted = extractor.reference(question.reference), extractor.answer(answer)
        if expected is not None:
            said = {"prompt": question.prompt, "reference": question.reference, "answer": answer}
            found = {"expected": expected, "extracted": extracted, "correct": extracted == expected}
            records.append({"origin": question.origin, **said, **found})
    counts = {**left_out, "without_reference": len(questions) - len(records)}
    if not records:
        reasons = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count)
        do = "Name data of prompts with their answers."
        raise DataError(f"no sample can be judged by '{task}' ({reasons or 'there is none'})", where="data.eval", do=do)
    num, share = len(records), sum(r["correct"] for r in records) / len(records)
    error = {"stderr": math.sqrt(share * (1 - share) / (num - 1))} if num > 1 else {}
    unanswered = sum(r["extracted"] is None for r in records)
    return Result(
        task, {"accuracy": share, **error}, {"samples": num, "unanswered": unanswered, **counts}, tuple(records)
    )


def _as_conversation(document: Document) -> Conversation | None:
    """Messages of which the last is the assistant's that is to be written; None where nothing is asked."""
    if isinstance(document, Completion):
        return Conversation((Message("user", document.prompt), Message("assistant", document.completion)))
    if not isinstance(document, Conversation):
        return None
    last = max((i for i, message in enumerate(document.messages) if message.role == "assistant"), default=0)
    return Conversation(document.messages[: last + 1], document.tools) if last else None


def _text(message: Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(str(part.get("text", "")) for part in message.content)
