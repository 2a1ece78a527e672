"""Prompt tuning: learned input embeddings in front of every sequence.

    x = [P; E(tokens)],    P: [l, D]

They go through the network as tokens do. In a pack they are one causal segment whose children are the pack's trees, so
they are computed once, whatever the number of sequences. A sequence's first token stands at position l, and a window
hides them like tokens. Nothing is predicted from them but a sequence's first token by its readouts' own rows: they have
no targets.

References:
    Lester, Al-Rfou and Constant, 2021, "The power of scale for parameter-efficient prompt tuning",
    https://arxiv.org/abs/2104.08691
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from danlu.adapter.adapted import Adapters
from danlu.adapter.contract import DEFAULT, Adapter, Attached, Entry, Rows
from danlu.adapter.prefix import SAVED, behind, check_room
from danlu.contracts import SequenceModel
from danlu.errors import RecipeError, UnsupportedError
from danlu.packed import ROOT, Packed
from danlu.random import token_keys
from danlu.registry import export

SOFT = -1
"""The sample that learned rows belong to: no other's, so that what is random for them is theirs in every pack."""


@export("adapter", "prompt", source="Lester et al., 2021, https://arxiv.org/abs/2104.08691")
class PromptTuning(Adapter):
    """Learned input embeddings in front of every sequence."""

    peft_type: ClassVar[str] = "PROMPT_TUNING"

    length: int = Field(20, ge=1)
    """l, how many there are."""
    start: Literal["vocabulary", "normal"] = "vocabulary"
    """What they begin as: embeddings of tokens drawn at random, or normal numbers."""
    text: str | None = Field(None, min_length=1)
    """They begin as the embeddings of this text's tokens instead, repeated where it has fewer than `length`."""
    tokens: tuple[int, ...] = ()
    """The same text as token ids."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.tokens) > self.length:
            what = "text" if self.text is not None else "tokens"
            raise ValueError(f"{what} has {len(self.tokens)} tokens for a length of {self.length}")
        return self

    def encoded(self, encode: Callable[[str], Iterable[int]]) -> Self:
        """See `Adapter`.

        Raises:
            RecipeError: when the text has no tokens, or more than there is room for.
        """
        if self.text is None:
            return self
        tokens = tuple(map(int, encode(self.text)))
        if not 0 < len(tokens) <= self.length:
            what = f"the text has {len(tokens)} tokens, and adapter.length is {self.length}"
            raise RecipeError(what, where="adapter.text", do="Shorten the text, or set another length.")
        return self.model_copy(update={"tokens": tokens})

    def attach(self, model: SequenceModel, *, name: str = DEFAULT, seed: int = 0) -> Prompt:
        """See `Adapter`."""
        return Prompt(self, model, name, seed)

    @classmethod
    def from_hub(cls, config: Mapping[str, Any]) -> Self:
        """See `Adapter`."""
        if config.get("num_transformer_submodules") not in (None, 1):
            what = "the prompt is for an encoder and a decoder"
            raise UnsupportedError(what, where="adapter_config.json")
        return cls(length=config["num_virtual_tokens"], also_train=tuple(config.get("modules_to_save") or ()))


class SoftTokens(nn.Module):
    """The learned embeddings, ``[l, D]``."""

    def __init__(self, first: Float[Tensor, "l D"]) -> None:
        super().__init__()
        self.weight = nn.Parameter(first)


class Prompt(Attached):
    """A prompt in a model."""

    adapter: PromptTuning
    adds_rows: ClassVar[bool] = True

    def __init__(self, adapter: PromptTuning, model: SequenceModel, name: str, seed: int) -> None:
        super().__init__(adapter, model, name, seed)
        check_room(model, adapter.length)
        self.part = "prompt" if name == DEFAULT else f"prompt_{name}"
        self.learned = SoftTokens(self._first())
        model.add_module(self.part, self.learned)
        self._adapters = Adapters.of(model)
        self._adapters.attached[name] = self
        model.embedding.register_forward_hook(self._put_in)

    @torch.no_grad()
    def _first(self) -> Float[Tensor, "l D"]:
        adapter, table = self.adapter, self.model.embedding
        generator = self.generator(self.part)
        if adapter.text is not None and not adapter.tokens:
            what = "the text was not turned into tokens"
            raise RecipeError(what, where="adapter.text", do="Ask `encoded` first, or give `tokens`.")
        if outside := [token for token in adapter.tokens if not 0 <= token < table.num_embeddings]:
            what = f"token {outside[0]} is none of the model's {table.num_embeddings}"
            raise RecipeError(what, where="adapter.tokens", do="Use the model's own tokenizer.")
        if not adapter.tokens and adapter.start == "normal":
            return torch.randn(adapter.length, table.embedding_dim, generator=generator)
        ids = torch.tensor(adapter.tokens * adapter.length)[: adapter.length]
        if not adapter.tokens:
            ids = torch.randint(table.num_embeddings, (adapter.length,), generator=generator)
        first: Tensor = table(ids.to(table.weight.device))
        return first.detach().float().cpu().clone()

    @property
    def ahead(self) -> int:
        """See `Attached`."""
        return self.adapter.length

    def enter(self, entry: Entry, rows: Rows | None) -> Entry:
        """See `Attached`: the pack with learned rows in front of sequences, and readouts of where its rows are now."""
        packed, chosen = entry.packed, _chosen(entry.packed, rows)
        if entry.memory is None:
            number = self._adapters.number(self.name)
            made = [self._rooted(part, number) if led else (part, []) for led, part in _parts(packed, chosen)]
        elif not (begun := _beginning(packed, chosen)):  # what is kept of sequences begins with rows of their own
            return replace(entry, packed=replace(packed, positions=behind(packed, rows, self.adapter.length)))
        else:
            moved = replace(packed, positions=behind(packed, rows, self.adapter.length))
            made = [self._begun(part, n in begun) for n, part in enumerate(moved.split())]
        starts = torch.tensor([0, *(len(part) for part, _ in made)]).cumsum(0).tolist()
        soft = torch.cat([torch.tensor(own, dtype=torch.int64) + a for (_, own), a in zip(made, starts, strict=False)])
        whole = Packed.join([part for part, _ in made])
        kept = torch.ones(len(whole), dtype=torch.bool)
        kept[soft] = False
        places, device = kept.nonzero().squeeze(1), packed.tokens.device
        earlier = {name: places[at.cpu()].to(device) for name, at in entry.soft.items()}
        return replace(
            entry,
            packed=replace(whole, key=packed.key),
            readouts=[readout.moved(places.to(device)) for readout in entry.readouts],
            soft={**earlier, self.name: soft.to(device)},
        )

    def _rooted(self, part: Packed, number: int) -> tuple[Packed, list[int]]:
        """Some trees as children of one segment of learned rows, and where these are."""
        length, device = self.adapter.length, part.tokens.device
        offsets = torch.arange(length)
        keys = None
        if part.keys is not None:
            if part.key is None:
                raise ValueError("a pack with random keys has to say what they follow from (`Packed.key`)")
            keys = token_keys(part.key, torch.full((length,), SOFT), offsets).to(device)
        root = replace(
            Packed.tree([[0] * length], samples=SOFT, adapters=None if part.adapter is None else [number]).to(device),
            positions=_like(offsets, part.positions),
            keys=keys,
        )
        moved = replace(part, positions=part.positions + length, key=None)
        joined = Packed.join([root, moved])
        parent = torch.where(joined.parent == ROOT, 0, joined.parent)
        parent[0] = ROOT
        return replace(joined, parent=parent), list(range(length))

    def _begun(self, part: Packed, begins: bool) -> tuple[Packed, list[int]]:
        """A sequence that is being written, with learned rows if these are its first, and where they are."""
        length = self.adapter.length
        if not begins:
            return part, []
        if not bool(part.causal.all()):
            raise UnsupportedError("a prompt that sees itself fully cannot be continued behind learned embeddings")
        longer = replace(
            part,
            tokens=torch.cat([part.tokens.new_zeros(length), part.tokens]),
            positions=torch.cat([_like(torch.arange(length), part.positions), part.positions]),
            cu_seqlens=torch.tensor([0, length + len(part)]),
        )
        return longer, list(range(length))

    def _put_in(self, _: nn.Module, __: Any, embedded: Tensor) -> Tensor | None:
        """What the model's embedding gives, with learned rows where they belong."""
        rows = self._adapters.soft.get(self.name)
        if rows is None or not len(rows):
            return None
        learned = self.learned.weight.to(embedded.dtype).repeat(len(rows) // self.adapter.length, 1)
        return embedded.flatten(0, -2).index_copy(0, rows, learned).view(embedded.shape)

    @property
    def own(self) -> Mapping[str, str]:
        """See `Attached`."""
        return {f"{self.part}.weight": SAVED}

    def to_hub(self) -> dict[str, Any]:
        """See `Attached`."""
        return {
            "num_virtual_tokens": self.adapter.length,
            "token_dim": self.learned.weight.shape[1],
            "num_transformer_submodules": 1,
            "prompt_tuning_init": "RANDOM",
        }


def _chosen(packed: Packed, rows: Rows | None) -> list[bool]:
    """For each tree, whether it is acted on.

    Raises:
        RecipeError: when only a part of a tree is.
    """
    if rows is None:
        return [True] * len(packed.trees)
    acted_on = torch.zeros(len(packed), dtype=torch.bool)
    acted_on[slice(*rows) if isinstance(rows, tuple) else rows] = True
    found = [acted_on[start:stop] for start, stop in packed.trees]
    if any(bool(tree.any()) and not bool(tree.all()) for tree in found):
        what = "only a part of a tree goes through a prompt, which stands in front of all of it"
        raise RecipeError(what, where="Packed.adapter", do="Give all segments of a tree the same adapter.")
    return [bool(tree.any()) for tree in found]


def _beginning(packed: Packed, chosen: Sequence[bool]) -> set[int]:
    """The trees that are acted on and begin here."""
    starts = torch.tensor([start for start, _ in packed.trees], device=packed.positions.device)
    first = packed.positions[starts].view(len(starts), -1)[:, 0].tolist()
    return {n for n, position in enumerate(first) if chosen[n] and position == 0}


def _parts(packed: Packed, chosen: Sequence[bool]) -> Iterator[tuple[bool, Packed]]:
    """Runs of trees that are all acted on, or all not."""
    if all(chosen) or not any(chosen):
        yield all(chosen), packed
        return
    trees, first = packed.split(), 0
    for n in range(1, len(trees) + 1):
        if n == len(trees) or chosen[n] != chosen[first]:
            yield chosen[first], Packed.join(trees[first:n])
            first = n


def _like(offsets: Int[Tensor, " l"], positions: Tensor) -> Tensor:
    """Offsets as positions, the same on every axis."""
    offsets = offsets.to(positions)
    return offsets if positions.dim() == 1 else offsets[:, None].expand(-1, positions.shape[1])
