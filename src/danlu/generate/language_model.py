"""A language model as one uses it: text in, text out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from danlu.contracts import SequenceModel
from danlu.data.tokenizer import Tokenizer
from danlu.errors import CheckpointError, RecipeError, UnsupportedError
from danlu.generate.generator import complete, evaluating, generate
from danlu.generate.sampling import MAX_NEW_TOKENS, TEMPERATURE, Sampling
from danlu.generate.text import pieces
from danlu.hub_files import local_directory
from danlu.packed import ROOT, Packed, Targets
from danlu.parts.readout import LogProbs
from danlu.pretrained import load_pretrained

_CONFIGS = ("generation_config.json", "config.json")


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A sequence model and the tokenizer that belongs to it.

    Attributes:
        model: the network.
        tokenizer: its tokenizer.
        stop: the tokens that end a text.
    """

    model: SequenceModel
    tokenizer: Tokenizer
    stop: frozenset[int] = frozenset()

    @classmethod
    def load(cls, path: str | Path, *, trust_remote_code: bool = False) -> Self:
        """Read a directory in hub format.

        A text ends with the tokenizer's last token, or with any that the checkpoint names for it.

        Raises:
            CheckpointError: when a file is absent or altered, or the tokenizer has tokens that the model does not.
            UnsupportedError: when it cannot run packed.
        """
        path = local_directory(path)
        model, tokenizer = load_pretrained(path, trust_remote_code=trust_remote_code), Tokenizer.load(path)
        if tokenizer.vocab_size > model.config.vocabulary:
            what = f"the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocabulary}"
            raise CheckpointError(what, where=path, do="Put the tokenizer there that the model was trained with.")
        own = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        return cls(model.eval(), tokenizer, frozenset([*own, *_ends(path)]))

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        temperature: float = TEMPERATURE,
        top_k: int | None = None,
        top_p: float | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        seed: int = 0,
        max_active: int | None = None,
    ) -> list[str]:
        """Each prompt's continuation, without the prompt; see `danlu.generate.sampling.Sampling` for the settings.

        Raises:
            RecipeError: for a prompt without tokens.
            UnsupportedError: when a text could become longer than the model has positions.
        """
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed)
        ids = self._encode([prompts] if isinstance(prompts, str) else prompts)
        done = complete(self.model, ids, sampling, stop=self.stop, max_active=max_active)
        written = ([t for t in one.tokens if t not in self.stop] for one in done)
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

    def log_prob(self, texts: Sequence[str]) -> list[float]:
        """The log-probability of each text in nats, all of them in one pack.

        It is of all the text's tokens given what a text begins with, or, where the tokenizer has no such token, of all
        but the first.

        Raises:
            RecipeError: for a text without tokens.
            UnsupportedError: when a text is longer than the model has positions.
        """
        ids = self._encode(texts)
        self._check(ids)
        device = next(self.model.parameters()).device
        packed = Packed.tree(ids, parents=[ROOT] * len(ids), samples=list(range(len(ids))))
        predicts = torch.ones(len(packed), dtype=torch.bool)
        predicts[packed.cu_seqlens[1:] - 1] = False
        rows = predicts.nonzero().squeeze(1)
        targets = Targets(rows, packed.tokens[rows + 1], torch.ones(len(rows)))
        with evaluating(self.model):
            (log_probs,) = self.model(packed.to(device), [LogProbs(targets.to(device))])
        totals = torch.zeros(len(ids), dtype=torch.float64)
        each: list[float] = totals.index_add_(0, packed.segment_of_row[rows], log_probs.double().cpu()).tolist()
        return each

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


def _ends(directory: Path) -> list[int]:
    """The tokens that a checkpoint says end a text."""
    for name in _CONFIGS:
        try:
            config: Any = json.loads((directory / name).read_bytes())
        except FileNotFoundError:
            continue
        except ValueError:
            raise CheckpointError("the file is not JSON", where=directory / name, do="Fetch it again.") from None
        listed = config.get("eos_token_id") if isinstance(config, dict) else None
        if listed is not None:
            return [int(token) for token in (listed if isinstance(listed, list) else [listed])]
    return []
