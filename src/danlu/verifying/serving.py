"""Checks that what is trained is what is served: the exported weights and tokenizer, and the chat template."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from danlu.adapter.hub import is_adapter
from danlu.adapter.quantizing import quantized_kind
from danlu.architecture.bridge_library import quiet_transformers
from danlu.contracts import SequenceModel
from danlu.data.chat import Chat
from danlu.data.document import Completion, Conversation, Document, Message, Tokens
from danlu.data.rendered import says
from danlu.errors import DanluError, DataError
from danlu.generate.chat_session import chat_ids
from danlu.hub_files import read_json
from danlu.packed import Packed
from danlu.parts.readout import Logits, Values
from danlu.verifying.runs import straight_run, trained_policy
from danlu.verifying.subject import Subject
from danlu.verifying.tolerances import OTHER_CODE, SAME_BITS
from danlu.verifying.verdict import Inapplicable, Measured, check, size

_CONVERSATIONS = 8
_LOOKED_AT = 2000
"""Rows among which conversations are looked for."""


@check("the exported model is the same")
def exported_model(subject: Subject) -> Measured:
    """What a run exports has the same logits, or scores, in transformers, on the user's own tokens."""
    if importlib.util.find_spec("transformers") is None:
        raise Inapplicable("The package transformers is not installed.")
    if (kind := quantized_kind(subject.policy)) is not None:
        raise Inapplicable(f"The base is trained over as {kind}, and exported as its files have it.")
    with quiet_transformers() as transformers:
        final = straight_run(subject) / "final"
        auto = _peft(final, subject.scores) if is_adapter(final) else _auto(transformers, final, subject)
        theirs = auto.from_pretrained(
            final, dtype=torch.float32, local_files_only=True, trust_remote_code=subject.trusted
        ).to(subject.device)
        ours = trained_policy(subject)
        paths = [(path, group.origin) for group in subject.groups for path, _ in group.packed.unroll()]
        if not all(bool(path.causal.all()) for path, _ in paths):
            raise Inapplicable("Some tokens see what comes after them, which is not asked of transformers here.")
        found = [(_logit_error(ours, theirs, path.to(subject.device)), origin) for path, origin in paths]
    error, origin = max(found, key=lambda each: size(each[0]))
    what = "scores" if subject.scores else "logits"
    fault = f"In transformers the exported model has other {what} on {', '.join(origin)}."
    of = f"{len(paths)} answers" if subject.scores else f"{subject.tokens:,} tokens"
    return Measured(f"{what} of {of}", error, OTHER_CODE, fault)


def _auto(transformers: Any, final: Path, subject: Subject) -> Any:
    """What loads a whole model there."""
    kind = read_json(final / "config.json").get("model_type")
    if kind not in transformers.CONFIG_MAPPING and not subject.trusted:
        raise Inapplicable(f"The package transformers knows no model of type '{kind}'.")
    return transformers.AutoModelForSequenceClassification if subject.scores else transformers.AutoModelForCausalLM


def _peft(final: Path, scores: bool) -> Any:
    """What loads an adapter and its base there."""
    if importlib.util.find_spec("peft") is None:
        raise Inapplicable("The package peft is not installed.")
    peft: Any = importlib.import_module("peft")
    kind = read_json(final / "adapter_config.json").get("peft_type")
    if kind not in peft.PeftType.__members__:
        raise Inapplicable(f"The package peft knows no adapter of type '{kind}'.")
    return peft.AutoPeftModelForSequenceClassification if scores else peft.AutoPeftModelForCausalLM


@torch.no_grad()
def _logit_error(ours: SequenceModel, theirs: Any, path: Packed) -> float:
    """The largest difference of a sequence's logits, relative to the largest logit; or of its score at its end."""
    every = torch.arange(len(path), device=path.tokens.device)
    (logits,) = ours.eval()(path, [Values(every[-1:]) if ours.config.scores else Logits(every)])
    rows = path.tokens[None]
    expected = theirs(input_ids=rows, attention_mask=torch.ones_like(rows), use_cache=False).logits[0]
    expected = expected[-len(logits) :]  # rows that an adapter puts in front have theirs, too
    return float((logits - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


@dataclass(frozen=True)
class _Turn:
    """What an assistant answers.

    Attributes:
        messages: before its answer, as a template takes them.
        tools: likewise.
        trained: the ids that training puts before the answer; None where nothing of the answer is learned there.
        served: the ids that serving renders.
        where: ``file:line``, and which message.
    """

    messages: Sequence[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    trained: list[int] | None
    served: list[int]
    where: str


@check("training renders what serving renders")
def training_template_is_serving_template(subject: Subject) -> Measured:
    """Before each answer training has the very tokens that serving renders, here and by the exported tokenizer."""
    conversations = list(itertools.islice(_conversations(subject), _CONVERSATIONS))
    if not conversations:
        raise Inapplicable("The data hold no conversations.")
    turns = [turn for chat, said, where in conversations for turn in _turns(chat, said, where)]
    if not turns:
        raise Inapplicable(f"Of {len(conversations)} conversations no answer is learned that is prompted for.")
    faults = [
        f"Before the answer of {turn.where} training has other tokens than serving renders"
        for turn in turns
        if turn.trained != turn.served
    ]
    others = "the exported tokenizer was not asked, as transformers is not installed"
    if importlib.util.find_spec("transformers") is not None:
        others = "by the exported tokenizer, too"
        faults += [f"The exported tokenizer renders {where} otherwise" for where in _rendered_otherwise(subject, turns)]
    what = f"prompts of {len(turns)} answers in {len(conversations)} conversations, {others}"
    more = f", and {len(faults) - 1} more like this" if len(faults) > 1 else ""
    return Measured(what, float(len(faults)), SAME_BITS, f"{faults[0]}{more}." if faults else "")


def _conversations(subject: Subject) -> Iterator[tuple[Chat, Conversation, str]]:
    """The first conversations of each part of the data."""
    for part in subject.experiment.data.documents.train:
        chat = part.encoder.chat
        if chat is None or chat.template is None:
            continue
        rows = (
            row
            for chunk in part.chunks
            for row in zip(chunk.place.each(chunk.num_documents), part.encoder.reader.read(chunk), strict=False)
        )
        for where, read in itertools.islice(rows, _LOOKED_AT):
            said = None if isinstance(read, DataError) else _conversation(read[1])
            if said is not None:
                yield chat, said, where


def _conversation(document: Document) -> Conversation | None:
    if isinstance(document, Completion):
        return Conversation((Message("user", document.prompt), Message("assistant", document.completion)))
    return document if isinstance(document, Conversation) else None


def _turns(chat: Chat, said: Conversation, where: str) -> Iterator[_Turn]:
    """The answers that are learned, but those that nothing could be rendered before."""
    assert chat.template is not None
    try:
        tokens = chat.encode(said, where)
    except DataError:  # such a row stops a run, or is set aside
        return
    messages, tools = [_plain(message) for message in said.messages], [dict(tool) for tool in said.tools] or None
    for i in _learned(chat, said, messages):
        try:
            prompt = chat.template.render(messages[:i], tools, add_generation_prompt=True, where=where)
        except DanluError:
            continue
        served = chat_ids(chat.tokenizer, prompt)
        yield _Turn(messages[:i], tools, _before(chat, tokens, len(served)), served, f"{where} message {i + 1}")


def _learned(chat: Chat, said: Conversation, messages: Sequence[dict[str, Any]]) -> list[int]:
    """The answers that are learned: of an assistant, with words, and with something before them."""
    spoken = [i for i, message in enumerate(said.messages) if message.role == "assistant"]
    if not {"assistant", "all"} & set(chat.train_on):
        spoken = spoken[-1:] if "last" in chat.train_on else []
    return [i for i in spoken if i > 0 and said.messages[i].weight > 0 and says(messages[i])]


def _before(chat: Chat, tokens: Tokens, count: int) -> list[int] | None:
    """The first ids, if what is learned begins right behind them."""
    assert tokens.weights is not None
    begins = len(tokens.ids) > count and tokens.weights[count] > 0
    ends = count == 0 or tokens.weights[count - 1] == 0
    alone = set(chat.train_on) <= {"assistant", "last"}
    return tokens.ids[:count].tolist() if begins and (ends or not alone) else None


def _plain(message: Message) -> dict[str, Any]:
    """A message as a server hands it to a template: parts are lines of one text."""
    parts = [message.content] if isinstance(message.content, str) else [part.get("text") for part in message.content]
    return {**message.as_dict(), "content": "\n".join(map(str, parts))}


def _rendered_otherwise(subject: Subject, turns: Sequence[_Turn]) -> Iterator[str]:
    """The turns before which `transformers`, with the exported files, has other ids than serving."""
    with quiet_transformers() as transformers:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            subject.exported, local_files_only=True, trust_remote_code=subject.trusted
        )
        for turn in turns:
            rendered = tokenizer.apply_chat_template(
                list(turn.messages), tools=turn.tools, add_generation_prompt=True, tokenize=True, return_dict=True
            )
            if list(rendered["input_ids"]) != turn.served:
                yield turn.where
