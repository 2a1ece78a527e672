"""Any causal model that `transformers` can load, over packed forests.

The model stays as it is, parameters and code; only its attention is ours, through the interface that `transformers`
has for that, so windows, shared key heads, sinks and capped scores are what they are there, and shared prompts work.
Its head is not called: hidden states go to the readouts, and no logits of all rows exist.

- What a model draws from torch's generator while training (dropout of hidden states, dropped layers, noise in routers)
  is off, and `notes` says so; dropout of attention's probabilities is on, and keyed.
- Nothing is added to the loss: no auxiliary loss for the balance of experts.
- What cannot be packed is refused (`danlu.architecture.bridge_checks`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from danlu.architecture.bridge_attention import KEYED_DROPOUT, OBSERVED, PACKED, Layer, register
from danlu.architecture.bridge_checks import check_config, check_files, check_isolation, check_layers, probe
from danlu.architecture.bridge_library import first_line, quiet_transformers, refusing
from danlu.architecture.bridge_reading import (
    BridgedConfig,
    active_parameters,
    blocks_of,
    body_of,
    head_of,
    logit_rule,
    notes_on,
    special_tokens,
    text_config,
)
from danlu.architecture.hub import model_directory, num_labels_of
from danlu.contracts import Memory, SequenceModel
from danlu.errors import CheckpointError, UnsupportedError
from danlu.hub_files import read_json
from danlu.packed import Packed
from danlu.parts.block import Pass
from danlu.parts.linear import Dropout
from danlu.parts.readout import Head, Logits, Readout, Values

_GENERATION = "generation_config.json"


class Bridged(SequenceModel):
    """A causal model of `transformers`.

    Args:
        inner: the model, as `AutoModelForCausalLM` gives it; or, to score sequences, with one label, as
            `AutoModelForSequenceClassification` does.

    Attributes:
        inner: the model.
        layers: what each layer asks of attention.
        notes: what a person should know of it before training.

    Raises:
        UnsupportedError: when it cannot be packed.
    """

    config: BridgedConfig  # type: ignore[assignment]  # it is built by `transformers`, from a config of its own

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner.eval()
        kind = inner.config.model_type
        check_config(inner.config.to_dict(), kind)
        if body_of(inner) is None or not isinstance(self._head, nn.Linear):
            raise UnsupportedError(f"a model of type '{kind}' has no linear head over its hidden states")
        self.layers = self._observe(kind)
        for layer in self.layers:
            if layer.dropout > 0:
                layer.module.add_module(KEYED_DROPOUT, Dropout(layer.dropout).eval())
        self.config = BridgedConfig.of(inner, self.layers)
        self._hub_names = {name: name.removeprefix("inner.") for name, _ in self.named_parameters()}
        self._active, (self._scale, self._softcap) = active_parameters(inner), logit_rule(inner)
        self.notes = tuple(notes_on(inner, self.layers))
        with refusing(kind):
            check_isolation(self._probe(), self._logits, self._own_logits)

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """See `SequenceModel`."""
        return blocks_of(self.inner, self.layers)

    @property
    def embedding(self) -> nn.Embedding:
        """See `SequenceModel`."""
        table: nn.Embedding = self.inner.get_input_embeddings()
        return table

    def hub_names(self) -> Mapping[str, str]:
        """See `SequenceModel`: what the model within calls them."""
        return self._hub_names

    def hub_transposed(self) -> frozenset[str]:
        """See `SequenceModel`: none, its files hold what it holds."""
        return frozenset()

    @property
    def _head(self) -> Any:
        return head_of(self.inner)

    def train(self, mode: bool = True) -> Bridged:
        """Say whether it is trained; the model within computes the same either way."""
        super().train(mode)
        self.inner.eval()
        return self

    def forward(self, packed: Packed, readouts: Sequence[Readout], memory: Memory | None = None) -> tuple[Any, ...]:
        """See `SequenceModel`."""
        if len(packed):
            hidden = self._hidden(packed, memory)
        else:  # its layers cannot reshape nothing, and its parameters are to have gradients all the same
            hidden = self._hidden(Packed.tree([[0]]).to(packed.tokens.device), None)[:0]
        scores = self.config.scores
        own = self._head
        head = Head(own.weight, scores=True) if scores else Head(own.weight, own.bias, self._scale, self._softcap)
        return tuple(readout.read(hidden, head) for readout in readouts)

    def _hidden(self, packed: Packed, memory: Memory | None) -> Float[Tensor, "T D"]:
        if packed.positions.dim() != 1:
            raise UnsupportedError("a model of transformers takes one position a token")
        mixed = self.compute_dtype != self._head.weight.dtype
        with torch.autocast(packed.tokens.device.type, self.compute_dtype) if mixed else nullcontext():
            hidden = self._base(packed, danlu=Pass.of(packed, memory), danlu_memory=memory)
        return hidden.to(self.compute_dtype)

    def _base(self, packed: Packed, **handed_on: Any) -> Float[Tensor, "T D"]:
        rows = {"input_ids": packed.tokens[None], "position_ids": packed.positions[None]}
        hidden: Tensor = body_of(self.inner)(**rows, use_cache=False, **handed_on).last_hidden_state
        return hidden[0]

    def flops(self, packed: Packed, num_targets: int) -> int:
        """See `SequenceModel`; of a mixture's experts those that a token goes to."""
        pairs = {window: packed.visible_pairs(window) for window in {layer.window for layer in self.layers}}
        attention = sum(x.heads * (x.key_width + x.value_width) * pairs[x.window] for x in self.layers)
        return 2 * (len(packed) * self._active + attention + num_targets * self._head.weight.numel())

    def _observe(self, kind: str) -> tuple[Layer, ...]:
        """Pass a few tokens, once as they are and once as if training, and note what each layer asks for."""
        with quiet_transformers() as transformers, torch.random.fork_rng(devices=[]):
            register(transformers)
            self.inner.set_attn_implementation(OBSERVED)
            layers = self._observed(kind)
            check_layers(kind, layers, text_config(self.inner).num_hidden_layers, self.inner)
            for layer in layers:
                layer.module.training = True  # itself, not what is within it: it says another fraction of dropout
            dropouts = {layer.number: layer.dropout for layer in self._observed(kind)}
            for layer in layers:
                layer.module.training = False
            self.inner.set_attn_implementation(PACKED)
        named = (layer._replace(dropout=dropouts[layer.number]) for layer in layers)
        return tuple(sorted(named, key=lambda layer: layer.number))

    @torch.no_grad()
    def _observed(self, kind: str) -> list[Layer]:
        packed, layers = self._probe().split()[-1], list[Layer]()
        with refusing(kind):
            self._base(packed, danlu=Pass.of(packed, None), danlu_layers=layers)
        return layers

    def _probe(self) -> Packed:
        vocabulary = self.inner.get_input_embeddings().num_embeddings
        return probe(vocabulary, special_tokens(self.inner.config.to_dict())).to(self._head.weight.device)

    @torch.no_grad()
    def _logits(self, packed: Packed) -> Float[Tensor, "T V"]:
        before, self.compute_dtype = self.compute_dtype, self._head.weight.dtype
        rows = torch.arange(len(packed), device=packed.tokens.device)
        (found,) = self(packed, [Values(rows) if self.config.scores else Logits(rows)])
        self.compute_dtype = before
        return found.view(len(packed), -1)

    @torch.no_grad()
    def _own_logits(self, tokens: Int[Tensor, " L"]) -> Float[Tensor, "L V"]:
        """By the model's own forward, with the attention it defines itself."""
        with quiet_transformers():
            self.inner.set_attn_implementation("eager")
            logits: Tensor = self.inner(input_ids=tokens[None], use_cache=False).logits.view(
                -1, self._head.out_features
            )
            if self.config.scores:  # of a sequence's last row alone; of the others by its parts
                body = body_of(self.inner)(input_ids=tokens[None], use_cache=False)
                logits = torch.cat([self._head(body.last_hidden_state[0, :-1]), logits])
            self.inner.set_attn_implementation(PACKED)
        return logits


def load_bridged(directory: str | Path, *, trust_remote_code: bool = False) -> Bridged:
    """A model of `transformers` from a directory in hub format, its weights in float32.

    Args:
        directory: where.
        trust_remote_code: whether code that comes with the checkpoint may run.

    Raises:
        CheckpointError: when a file is absent, cut short or altered, or weights are missing or misshapen.
        UnsupportedError: when the model cannot be packed, or `transformers` is not installed or does not know it.
    """
    directory = model_directory(directory)
    with quiet_transformers() as transformers:
        check_files(directory, transformers, trust_remote_code=trust_remote_code)
        scores = num_labels_of(read_json(directory / "config.json")) is not None
        kind = transformers.AutoModelForSequenceClassification if scores else transformers.AutoModelForCausalLM
        try:
            inner, told = kind.from_pretrained(
                directory,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
        except Exception as error:
            raise CheckpointError(f"transformers cannot load it: {first_line(error)}", where=directory) from error
    if missing := sorted(told["missing_keys"]):
        raise CheckpointError(f"{len(missing)} weights are missing, '{missing[0]}' first", where=directory)
    model = Bridged(inner)
    if placeless := sorted(told["unexpected_keys"]):
        model.notes += (
            f"{len(placeless)} weights have no place in the model and are left out, '{placeless[0]}' first",
        )
    return model


def _state(model: Bridged, weights: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
    """What `transformers` is to write, where the model does not hold all of it."""
    if weights is None:
        return None
    own = {name.removeprefix("inner."): weight.cpu() for name, weight in weights.items()}
    buffers = {name: buffer for name, buffer in model.inner.named_buffers() if name in model.inner.state_dict()}
    return {**buffers, **own}


def save_bridged(
    model: Bridged,
    directory: str | Path,
    *,
    weights: Mapping[str, Tensor] | None = None,
    like: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write a model in hub format, so that `transformers` loads it.

    Args:
        model: what to write.
        directory: where; made when absent.
        weights: its parameters by name, where the model itself does not hold all of them.
        like: the checkpoint it was started from, whose settings for generation are kept as they are.
        settings: more entries of `config.json`, as the ids of the first and last token.
    """
    directory, inner = Path(directory), model.inner
    kept = None if like is None or model.config.scores else Path(like) / _GENERATION
    with quiet_transformers() as transformers, _generating(inner, transformers, kept):
        inner.save_pretrained(directory, state_dict=_state(model, weights))
    if kept is not None and kept.exists():
        shutil.copyfile(kept, directory / _GENERATION)
    file = directory / "config.json"
    file.write_text(json.dumps({**read_json(file), **(settings or {})}, indent=2) + "\n")


@contextmanager
def _generating(inner: Any, transformers: Any, kept: Path | None) -> Iterator[None]:
    """Within, no settings of its own where a file's are kept: as those have them, they may be too odd to be written."""
    if kept is None or not kept.exists():
        yield
        return
    before, inner.generation_config = inner.generation_config, transformers.GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = before
