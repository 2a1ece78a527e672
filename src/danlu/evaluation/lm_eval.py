"""The bridge to `lm-eval`: its questions put to a packed model.

Continuations of one context share it: the context is a segment, each continuation a child of it, so a multiple choice
costs one context. Contexts that are too long lose their beginning, and texts that are scored whole go by windows.

References:
    Gao et al., 2024, "The language model evaluation harness", https://zenodo.org/records/12608602
"""

from __future__ import annotations

import importlib.util
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch

from danlu.batch import Batch
from danlu.data.chat_template import ChatTemplate
from danlu.errors import RecipeError, UnsupportedError, did_you_mean
from danlu.evaluation.result import Evaluation, Result
from danlu.evaluation.score import score
from danlu.generate import LanguageModel, Sampling, complete
from danlu.generate.chat_session import chat_ids, turn_ending, until
from danlu.generate.text import pieces
from danlu.packed import ROOT, Packed, Targets

Ids: TypeAlias = tuple[int, ...]

_MAX_NEW_TOKENS = 256
"""What lm-eval's own models write at most where a task says nothing."""
_SETTINGS = frozenset({"until", "do_sample", "temperature", "top_p", "top_k", "max_gen_toks", "max_new_tokens"})


@dataclass(frozen=True)
class Answerer:
    """Answers what lm-eval asks, as plain text and numbers.

    Texts begin with what the tokenizer begins a text with, and special tokens in them are read as such, since rendered
    chats consist of them.

    Attributes:
        model: what is asked.
        template: its chat template, if it has one.
        context: the most tokens that are seen at once; by default as many as the model has positions for.
        pack_tokens: tokens that go through at once.
        max_active: texts that are continued at once.
    """

    model: LanguageModel
    template: ChatTemplate | None = None
    context: int | None = None
    pack_tokens: int = 4096
    max_active: int = 32

    def likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Log p(continuation | context) in nats, and whether it is what greedy decoding writes."""
        return self._scores([self._pair(*pair) for pair in pairs])

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """Log p of each whole text in nats, every token given as many before it as its window holds."""
        windows = [list(self._windows(self._encode(text))) for text in texts]
        scores = iter(self._scores([pair for some in windows for pair in some]))
        return [sum(next(scores)[0] for _ in some) for some in windows]

    def written(self, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """What the model writes behind each context, up to the first of the texts that end it.

        Raises:
            UnsupportedError: for a generation setting that has no counterpart here.
        """
        alike: dict[str, list[int]] = defaultdict(list)
        for i, (_, settings) in enumerate(requests):
            alike[json.dumps(settings, sort_keys=True)].append(i)
        found: dict[int, str] = {}
        for members in alike.values():
            found.update(
                zip(members, self._write([requests[i][0] for i in members], requests[members[0]][1]), strict=True)
            )
        return [found[i] for i in range(len(requests))]

    @property
    def longest(self) -> int | None:
        """The most tokens that are seen at once."""
        return self.context or self.model.model.longest

    @cached_property
    def _first(self) -> Ids:
        """What every text begins with, or nothing."""
        bos = self.model.tokenizer.bos_id
        return () if bos is None else (bos,)

    @cached_property
    def _before(self) -> Ids:
        """What the first token of a text is predicted from."""
        eos = self.model.tokenizer.eos_id
        if not self._first and eos is None:
            do = "Give it a first or a last token."
            raise UnsupportedError("the tokenizer has no token that could predict a text's first", do=do)
        return self._first or (int(eos or 0),)

    def _encode(self, text: str) -> Ids:
        ids = tuple(chat_ids(self.model.tokenizer, text))
        return ids if ids[:1] == self._first else (*self._first, *ids)

    def _pair(self, context: str, continuation: str) -> tuple[Ids, Ids]:
        """Context and continuation as tokens, split where the context's own tokens end."""
        before, whole = self._encode(context.rstrip()), self._encode(context + continuation)
        return before or self._before, whole[len(before) :]

    def _windows(self, ids: Ids) -> Iterator[tuple[Ids, Ids]]:
        """Each token once, as what is predicted, behind as much as fits."""
        ids = ids[len(self._first) :]
        size = self.longest or max(len(ids), 1)
        for start in range(0, len(ids), size):
            stop = min(start + size, len(ids))
            before = self._before if start == 0 else ids[stop - size - 1 : start]
            yield before, ids[start:stop]

    def _scores(self, pairs: Sequence[tuple[Ids, Ids]]) -> list[tuple[float, bool]]:
        shared: dict[Ids, list[int]] = defaultdict(list)
        for i, (context, continuation) in enumerate(pairs):
            shared[self._fitted(context, len(continuation))].append(i)
        groups = [_group(context, [pairs[i][1] for i in members]) for context, members in shared.items()]
        found: dict[int, tuple[float, bool]] = {}
        for members, scored in zip(shared.values(), score(self.model.model, groups, self.pack_tokens), strict=True):
            sizes = [len(pairs[i][1]) for i in members]
            parts = zip(scored.log_probs.split(sizes), scored.greedy.split(sizes), strict=True)
            found.update(
                (i, (float(logs.sum()), bool(greedy.all()))) for i, (logs, greedy) in zip(members, parts, strict=True)
            )
        return [found[i] for i in range(len(pairs))]

    def _fitted(self, context: Ids, more: int) -> Ids:
        """As much of the end of a context as fits before so many tokens, of which the last is only predicted."""
        if self.longest is None:
            return context
        if more > self.longest:
            what = f"a continuation has {more} tokens, the model sees {self.longest} at once"
            raise UnsupportedError(what, do="Leave the task out.")
        return context[-(self.longest + 1 - max(more, 1)) :]

    def _write(self, contexts: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
        sampling, endings = _sampling(settings), _endings(settings)
        if self.template is not None:
            endings.append(turn_ending(self.model.tokenizer, self.template))
        prompts = [self._encode(context) or self._before for context in contexts]
        if self.longest is not None:
            room = self.longest - sampling.max_new_tokens
            if room < 1:
                what = (
                    f"max_gen_toks ({sampling.max_new_tokens}) leaves no room for a prompt in {self.longest} positions"
                )
                raise UnsupportedError(what, do="Lower it.")
            prompts = [prompt[-room:] for prompt in prompts]
        model, texts = self.model, []
        done = complete(model.model, prompts, sampling, stop=model.stop, max_active=self.max_active)
        for prompt, continuation in zip(prompts, done, strict=True):
            text = "".join(pieces(model.tokenizer, prompt, [t for t in continuation.tokens if t not in model.stop]))
            for ending in endings:
                text = "".join(until([text], ending))
            texts.append(text)
        return texts


def _group(context: Ids, continuations: Sequence[Ids]) -> Batch:
    """A context with its continuations: a root's last row predicts each child's first token."""
    segments, parents, rows = [context], [ROOT], []
    end = len(context)
    for continuation in continuations:
        inside = continuation[:-1]
        if continuation:
            rows += [len(context) - 1, *range(end, end + len(inside))]
        if inside:
            segments.append(inside)
            parents.append(0)
            end += len(inside)
    tokens = torch.tensor([token for continuation in continuations for token in continuation], dtype=torch.int64)
    targets = Targets(torch.tensor(rows, dtype=torch.int64), tokens, torch.ones(len(tokens)))
    return Batch(Packed.tree(segments, parents=parents), targets)


def _sampling(settings: Mapping[str, Any]) -> Sampling:
    unknown = sorted(set(settings) - _SETTINGS)
    if unknown:
        raise UnsupportedError(f"a task asks for '{unknown[0]}' in generation", do="Leave the task out.")
    most = settings.get("max_gen_toks") or settings.get("max_new_tokens") or _MAX_NEW_TOKENS
    if not settings.get("do_sample", bool(settings.get("temperature"))):
        return Sampling(temperature=0, max_new_tokens=int(most))
    return Sampling(
        temperature=float(settings.get("temperature", 1.0)),
        top_p=settings.get("top_p"),
        top_k=settings.get("top_k") or None,
        max_new_tokens=int(most),
    )


def _endings(settings: Mapping[str, Any]) -> list[str]:
    asked = settings.get("until") or []
    return [asked] if isinstance(asked, str) else list(asked)


def bridge(answerer: Answerer) -> Any:
    """The model as lm-eval's `LM`.

    Raises:
        UnsupportedError: when lm-eval is not installed.
    """
    _require()
    from lm_eval.api.model import LM

    class DanluLM(LM):  # type: ignore[misc]
        """Hands each kind of request on."""

        def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
            return answerer.likelihoods([request.args for request in requests])

        def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
            return answerer.rolling([request.args[0] for request in requests])

        def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
            return answerer.written([request.args for request in requests])

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            if answerer.template is None:
                raise UnsupportedError("the model has no chat template", do="Give one: data.chat_template=chatml.")
            text = answerer.template.render(chat_history, add_generation_prompt=add_generation_prompt)
            last = chat_history[-1]
            if add_generation_prompt or last["role"] != "assistant":
                return text
            said = last["content"].rstrip()  # the beginning of an answer, which is to be continued
            return text[: text.rindex(said) + len(said)]

        @property
        def tokenizer_name(self) -> str:
            return answerer.model.tokenizer.fingerprint

    return DanluLM()


def run_lm_eval(
    answerer: Answerer,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    as_chat: bool = False,
    include: str | None = None,
) -> Evaluation:
    """Have lm-eval run tasks of its own.

    Args:
        answerer: what it asks.
        tasks: their names.
        limit: only the first so many samples of each.
        num_fewshot: examples in each prompt; the task's own number by default.
        as_chat: whether its prompts are put as chats.
        include: a folder with more tasks than it brings.

    Raises:
        UnsupportedError: when lm-eval is not installed.
        RecipeError: when it has no such task.
    """
    made = bridge(answerer)
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=include)
    for task in tasks:
        if not manager.match_tasks([task]):
            raise RecipeError(
                f"lm-eval has no task '{task}'", where="--lm-eval", do=did_you_mean(task, manager.all_tasks)
            )
    found = lm_eval.simple_evaluate(
        model=made,
        tasks=list(tasks),
        limit=limit,
        num_fewshot=num_fewshot,
        task_manager=manager,
        apply_chat_template=as_chat,
    )
    return Evaluation(tuple(_result(task, values, found) for task, values in found["results"].items()))


def _result(task: str, values: Mapping[str, Any], found: Mapping[str, Any]) -> Result:
    metrics = {name.removesuffix(",none"): value for name, value in values.items() if isinstance(value, int | float)}
    counts = found.get("n-samples", {}).get(task, {})
    samples = {"samples": int(counts["effective"])} if "effective" in counts else {}
    records = tuple(dict(record) for record in found.get("samples", {}).get(task, ()))
    return Result(task, metrics, samples, records)


def _require() -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise UnsupportedError(
            "lm-eval is not installed", where="--lm-eval", do="Install it: pip install 'danlu[lm-eval]'."
        )
