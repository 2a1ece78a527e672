"""A language model as one uses it: text in, text out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch

from danlu.adapter.adapted import Adapters
from danlu.contracts import SequenceModel
from danlu.data.tokenizer import Tokenizer
from danlu.errors import CheckpointError, RecipeError, UnsupportedError
from danlu.generate.generator import complete, evaluating, generate
from danlu.generate.sampling import MAX_NEW_TOKENS, TEMPERATURE, Sampling
from danlu.generate.text import pieces
from danlu.hub_files import ending_tokens, local_directory
from danlu.packed import NO_ADAPTER, ROOT, Packed, Targets
from danlu.parts.readout import LogProbs
from danlu.pretrained import load_pretrained, named_adapters, with_base


@dataclass(frozen=True, eq=False)
class Worn:
    """What an adapter brings beside itself.

    Attributes:
        tokenizer: its own, with the template that it was trained by, or else its base's.
        stop: the tokens that end a text of its.
    """

    tokenizer: Tokenizer
    stop: frozenset[int]


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A sequence model and the tokenizer that belongs to it.

    Attributes:
        model: the network.
        tokenizer: its tokenizer.
        stop: the tokens that end a text.
        adapters: what was put on it, by name.
    """

    model: SequenceModel
    tokenizer: Tokenizer
    stop: frozenset[int] = frozenset()
    adapters: Mapping[str, Worn] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        adapters: Mapping[str, str | Path] | Sequence[str | Path] = (),
        trust_remote_code: bool = False,
    ) -> Self:
        """Read a directory in hub format.

        A text ends with the tokenizer's last token, or with any that the checkpoint names for it.

        Args:
            path: the directory, or `hub:org/name`.
            adapters: adapters to put on it, by the names they are to have; a list has the names of their folders.
            trust_remote_code: whether Python code that comes with the checkpoint may run.

        Raises:
            CheckpointError: when a file is absent or altered, the tokenizer has tokens that the model does not, or an
                adapter belongs to another base or tokenizer.
            RecipeError: when an adapter is given twice.
            UnsupportedError: when it cannot run packed, or adapters cannot go together.
        """
        path, named = local_directory(path), named_adapters(adapters)
        model = load_pretrained(path, trust_remote_code=trust_remote_code, adapters=named)
        own = _read(path)
        if own.tokenizer.vocab_size > model.config.vocabulary:
            what = f"the tokenizer has {own.tokenizer.vocab_size} tokens, the model {model.config.vocabulary}"
            raise CheckpointError(what, where=path, do="Put the tokenizer there that the model was trained with.")
        worn = {name: _read(directory, path) for name, directory in named.items()}
        for name, one in worn.items():
            if one.tokenizer.fingerprint != own.tokenizer.fingerprint:
                what = "the adapter's tokenizer gives other tokens than its base's"
                raise CheckpointError(what, where=named[name], do="Load it by itself.")
        return cls(model.eval(), own.tokenizer, own.stop, worn)

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        adapters: Sequence[str | None] | None = None,
        temperature: float = TEMPERATURE,
        top_k: int | None = None,
        top_p: float | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        seed: int = 0,
        max_active: int | None = None,
    ) -> list[str]:
        """Each prompt's continuation, without the prompt; see `danlu.generate.sampling.Sampling` for the settings.

        With adapters, each one's continuations are those that it would write alone, given its prompts in this order.

        Args:
            prompts: what to continue.
            adapters: the name of the adapter for each prompt, None for the model without any; by default the one that
                the model wears, if it wears one.
            temperature: see `Sampling`, as what follows.
            top_k: see there.
            top_p: see there.
            max_new_tokens: see there.
            seed: see there.
            max_active: how many texts are kept in memory at once; all by default.

        Raises:
            RecipeError: for a prompt without tokens, or when there is no adapter of a name.
            UnsupportedError: when a text could become longer than the model has positions.
        """
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed)
        ids = self._encode([prompts] if isinstance(prompts, str) else prompts)
        if adapters is None and len(self.adapters) == 1:
            adapters = list(self.adapters) * len(ids)
        numbers, ends = self._numbers(adapters, len(ids)), [self._stop(name) for name in adapters or [None] * len(ids)]
        samples = None if numbers is None else _ranks(numbers)
        done = complete(self.model, ids, sampling, max_active=max_active, samples=samples, adapters=numbers, stops=ends)
        written = ([t for t in one.tokens if t not in stop] for one, stop in zip(done, ends, strict=True))
        return ["".join(pieces(self.tokenizer, prompt, new)) for prompt, new in zip(ids, written, strict=True)]

    def stream(
        self,
        prompt: str,
        *,
        temperature: float = TEMPERATURE,
        top_k: int | None = None,
        top_p: float | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        seed: int = 0,
    ) -> Iterator[str]:
        """One prompt's continuation as it is written, in pieces of whole characters; joined, what `generate` gives.

        Raises:
            RecipeError: for a prompt without tokens.
            UnsupportedError: when the text could become longer than the model has positions.
        """
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed)
        (ids,) = self._encode([prompt])
        steps = generate(self.model, [ids], sampling, stop=self.stop)
        return pieces(self.tokenizer, ids, (step.token for step in steps if step.token not in self.stop))

    def log_prob(self, texts: Sequence[str], *, adapters: Sequence[str | None] | None = None) -> list[float]:
        """The log-probability of each text in nats, all of them in one pack.

        It is of all the text's tokens given what a text begins with, or, where the tokenizer has no such token, of all
        but the first.

        Args:
            texts: what is asked about.
            adapters: the name of the adapter for each text, None for the model without any.

        Raises:
            RecipeError: for a text without tokens, or when there is no adapter of a name.
            UnsupportedError: when a text is longer than the model has positions.
        """
        ids = self._encode(texts)
        self._check(ids)
        device = next(self.model.parameters()).device
        numbers = self._numbers(adapters, len(ids))
        order = sorted(range(len(ids)), key=lambda i: 0 if numbers is None else numbers[i])  # one run for each adapter
        packed = Packed.tree(
            [ids[i] for i in order],
            parents=[ROOT] * len(ids),
            samples=order,
            adapters=None if numbers is None else [numbers[i] for i in order],
        )
        predicts = torch.ones(len(packed), dtype=torch.bool)
        predicts[packed.cu_seqlens[1:] - 1] = False
        rows = predicts.nonzero().squeeze(1)
        targets = Targets(rows, packed.tokens[rows + 1], torch.ones(len(rows)))
        with evaluating(self.model):
            (log_probs,) = self.model(packed.to(device), [LogProbs(targets.to(device))])
        totals = torch.zeros(len(ids), dtype=torch.float64)
        text = packed.sample[packed.segment_of_row[rows]]
        each: list[float] = totals.index_add_(0, text, log_probs.double().cpu()).tolist()
        return each

    @contextmanager
    def wearing(self, name: str | None) -> Iterator[LanguageModel]:
        """Within, what this gives is the model as one of its adapters has it, its tokenizer and template included.

        Args:
            name: which; None is the model without any.

        Raises:
            RecipeError: when there is none of that name, or none at all.
        """
        adapted = self._adapted()
        with adapted.off() if name is None else adapted.use(name):
            worn = self.adapters.get(name or "", Worn(self.tokenizer, self.stop))
            yield LanguageModel(self.model, worn.tokenizer, worn.stop)

    def _adapted(self) -> Adapters:
        adapted = self.model.adapted
        if not isinstance(adapted, Adapters):
            raise RecipeError("the model wears no adapter", do="Load it with adapters={NAME: DIR}.")
        return adapted

    def _numbers(self, adapters: Sequence[str | None] | None, num: int) -> list[int] | None:
        """What the pack calls each one's adapter."""
        if adapters is None:
            return None
        if len(adapters) != num:
            raise RecipeError(f"{num} texts have {len(adapters)} adapters", do="Name one for each, or None.")
        return [NO_ADAPTER if name is None else self._adapted().number(name) for name in adapters]

    def _stop(self, name: str | None) -> frozenset[int]:
        return self.stop if name is None or name not in self.adapters else self.adapters[name].stop

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        first = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        return [[*first, *ids.tolist()] for ids in self.tokenizer.encode_batch(texts)]

    def _check(self, ids: Sequence[Sequence[int]]) -> None:
        longest = self.model.longest
        for i, text in enumerate(ids):
            if not text:
                raise RecipeError(f"text {i} has no tokens", do="Leave it out.")
            if longest is not None and len(text) > longest:
                what = f"text {i} has {len(text)} tokens, the model has positions for {longest}"
                raise UnsupportedError(what, do="Shorten it.")


def _ranks(numbers: Sequence[int]) -> list[int]:
    """How many of the same come before each."""
    seen = Counter[int]()
    ranks = []
    for number in numbers:
        ranks.append(seen[number])
        seen[number] += 1
    return ranks


def _read(*directories: Path) -> Worn:
    """The tokenizer and what ends a text, from the first directory that has them, then from an adapter's base."""
    directories = (*directories[:-1], *with_base(directories[-1]))
    holding = next((directory for directory in directories if (directory / "tokenizer.json").is_file()), directories[0])
    tokenizer = Tokenizer.load(holding)
    own = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    return Worn(tokenizer, frozenset([*own, *ending_tokens(directories)]))
