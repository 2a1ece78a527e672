"""Continuations of many prompts at once, without padding and without waiting for each other.

Every pass is one pack of all active sequences' new tokens, end to end: all of a new prompt's beside one each of the
others. When a sequence ends, the next prompt takes its place in the very next pass.

References:
    Yu et al., 2022, "Orca: a distributed serving system for transformer-based generative models",
    https://www.usenix.org/conference/osdi22/presentation/yu
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from danlu.contracts import SequenceModel
from danlu.errors import RecipeError, UnsupportedError
from danlu.generate.cache import Cache
from danlu.generate.sampling import Sampling
from danlu.packed import NO_ADAPTER, ROOT, Packed
from danlu.parts.compiled import compilation
from danlu.parts.readout import SCORES, Logits

Ending: TypeAlias = Literal["stop", "length"]
"""Why a continuation ended: with a stop token, or because it became as long as allowed."""


@dataclass(frozen=True)
class Step:
    """One token of one continuation.

    Attributes:
        prompt: which prompt it continues.
        token: the token.
        ended: why it is the last one, or None when it is not.
    """

    prompt: int
    token: int
    ended: Ending | None


@dataclass(frozen=True)
class Continuation:
    """What a model wrote.

    Attributes:
        tokens: all of it, a stop token at the end included.
        ended: why it ended.
    """

    tokens: tuple[int, ...]
    ended: Ending


@dataclass
class _Active:
    """A sequence that is being written."""

    prompt: int
    sample: int
    feed: Sequence[int]
    stop: frozenset[int]
    adapter: int | None
    num_kept: int = 0
    num_new: int = 0


Agree: TypeAlias = Callable[[list[int]], list[int]]
"""What several ranks that write together take for the tokens drawn."""


def generate(
    model: SequenceModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    stop: Collection[int] = (),
    max_active: int | None = None,
    samples: Sequence[int] | None = None,
    adapters: Sequence[int] | None = None,
    stops: Sequence[Collection[int]] | None = None,
    agree: Agree = list,
) -> Iterator[Step]:
    """Continue prompts, token by token as they are drawn.

    Between tokens the model is as it was: in training or not, and with gradients on or not.

    Args:
        model: what writes.
        prompts: token ids, with whatever a sequence begins with.
        sampling: how tokens are drawn.
        stop: tokens that end a continuation.
        max_active: how many sequences are kept in memory at once; all by default.
        samples: each prompt's sample id, all different for an adapter: what its randomness is keyed by; its index by
            default.
        adapters: the number of the adapter that each prompt goes through (`Packed.adapter`); by default what the model
            wears acts on all.
        stops: for each prompt, further tokens that end its continuation.
        agree: gives all ranks the tokens of one, where several write the same together.

    Raises:
        RecipeError: for a prompt without tokens or with tokens that the model does not have.
        UnsupportedError: when a prompt and its continuation could become longer than the model has positions, or the
            model scores sequences.
    """
    ids = range(len(prompts)) if samples is None else samples
    through = [None] * len(prompts) if adapters is None else list(adapters)
    _check(model, prompts, sampling, max_active, ids, through)
    ends = [frozenset(stop)] * len(prompts) if stops is None else [frozenset([*stop, *own]) for own in stops]
    each = zip(ids, prompts, ends, through, strict=True)
    waiting = deque(_Active(i, *given) for i, given in enumerate(each))
    return _steps(model, waiting, sampling, max_active or len(prompts), agree)


def complete(
    model: SequenceModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    stop: Collection[int] = (),
    max_active: int | None = None,
    samples: Sequence[int] | None = None,
    adapters: Sequence[int] | None = None,
    stops: Sequence[Collection[int]] | None = None,
    agree: Agree = list,
) -> list[Continuation]:
    """Each prompt's whole continuation, in order; see `generate`."""
    tokens: list[list[int]] = [[] for _ in prompts]
    endings: dict[int, Ending] = {}
    steps = generate(
        model,
        prompts,
        sampling,
        stop=stop,
        max_active=max_active,
        samples=samples,
        adapters=adapters,
        stops=stops,
        agree=agree,
    )
    for step in steps:
        tokens[step.prompt].append(step.token)
        if step.ended is not None:
            endings[step.prompt] = step.ended
    return [Continuation(tuple(written), endings[i]) for i, written in enumerate(tokens)]


def _check(
    model: SequenceModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    max_active: int | None,
    samples: Sequence[int],
    adapters: Sequence[int | None],
) -> None:
    vocabulary, longest = model.config.vocabulary, model.longest
    if len(prompts) and model.config.scores:
        raise UnsupportedError(SCORES, do="Generate with the language model that it was made of.")
    if max_active is not None and max_active < 1:
        raise RecipeError(f"with max_active {max_active} nothing is ever written", do="Set it to 1 or more.")
    if len(adapters) != len(prompts):
        raise RecipeError(f"{len(prompts)} prompts have {len(adapters)} adapters", do="Name one for each.")
    if len(samples) != len(prompts) or len(set(zip(samples, adapters, strict=True))) < len(samples):
        raise RecipeError("every prompt needs a sample id of its own", do="Give each a different one, or none at all.")
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            do = "Begin it with a token that sequences begin with."
            raise RecipeError(f"prompt {i} has no tokens, so nothing predicts the first", do=do)
        outside = next((token for token in prompt if not 0 <= token < vocabulary), None)
        if outside is not None:
            do = "Use the tokenizer that belongs to the model."
            raise RecipeError(f"prompt {i} has token {outside}, the model has {vocabulary} tokens", do=do)
        length = len(prompt) + sampling.max_new_tokens
        if longest is not None and length > longest:
            what = f"prompt {i} ({len(prompt)} tokens) and max_new_tokens ({sampling.max_new_tokens}) come to {length}"
            do = "Shorten the prompt or lower max_new_tokens."
            raise UnsupportedError(f"{what}, the model has positions for {longest}", do=do)


def _steps(
    model: SequenceModel,
    waiting: deque[_Active],
    sampling: Sampling,
    max_active: int,
    agree: Agree,
) -> Iterator[Step]:
    cache = Cache()
    active: list[_Active] = []
    while waiting or active:
        while waiting and len(active) < max_active:
            active.append(waiting.popleft())
        active.sort(key=_adapter)  # each one's rows are one run
        tokens = agree(_draw(model, cache, active, sampling))
        steps, going_on = [], []
        for sequence, token in zip(active, tokens, strict=True):
            sequence.num_kept += len(sequence.feed)
            sequence.feed, sequence.num_new = [token], sequence.num_new + 1
            ended = _ending(sequence, token, sampling)
            steps.append(Step(sequence.prompt, token, ended))
            if ended is None:
                going_on.append(sequence)
            else:
                cache.release(sequence.prompt)
        active = going_on
        yield from steps


def _ending(sequence: _Active, token: int, sampling: Sampling) -> Ending | None:
    if token in sequence.stop:
        return "stop"
    return "length" if sequence.num_new == sampling.max_new_tokens else None


def _adapter(sequence: _Active) -> int:
    return NO_ADAPTER if sequence.adapter is None else sequence.adapter


def _draw(model: SequenceModel, cache: Cache, active: Sequence[_Active], sampling: Sampling) -> list[int]:
    """The next token of every active sequence, from one pass over what is new in each."""
    ids = [sequence.prompt for sequence in active]
    starts = [sequence.num_kept for sequence in active]
    stops = [start + len(sequence.feed) for start, sequence in zip(starts, active, strict=True)]
    positions = torch.cat([torch.arange(a, b) for a, b in zip(starts, stops, strict=True)])
    packed = Packed.tree(
        [sequence.feed for sequence in active],
        parents=[ROOT] * len(active),
        samples=ids,
        positions=positions,
        adapters=None if active[0].adapter is None else [_adapter(sequence) for sequence in active],
    ).to(next(model.parameters()).device)
    last = (packed.cu_seqlens[1:] - 1).to(packed.tokens.device)
    samples = torch.tensor([sequence.sample for sequence in active])
    with evaluating(model):
        (logits,) = model(packed, [Logits(last)], cache)
        tokens = sampling.choose(logits, sampling.keys(samples, torch.tensor(stops)))
    drawn: list[int] = tokens.tolist()
    return drawn


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Within, nothing is trained, differentiated or compiled; each module is left as it was."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad(), compilation(False), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module in training:
            module.training = True
