"""Packed attention: one function, a back-end for each device.

A query row attends to the keys its `Sight` lets it see, and to nothing else. What a row sees may come in several calls
(its own segment, its ancestors, learned or cached keys); their results are merged by log-sum-exp, so no key is ever
copied for a second child and no mask is built.

References:
    Dao, 2023, "FlashAttention-2", https://arxiv.org/abs/2307.08691
    Ainslie et al., 2023, "GQA: training generalized multi-query transformer models", https://arxiv.org/abs/2305.13245
    Gemma team, 2024, "Gemma 2" (capped scores), https://arxiv.org/abs/2408.00118
    OpenAI, 2025, "gpt-oss-120b & gpt-oss-20b model card" (sinks), https://arxiv.org/abs/2508.10925
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from danlu.opaque import drop_threshold
from danlu.random import bits, mix32
from danlu.sight import Sight


@dataclass(frozen=True)
class AttentionDropout:
    """Dropout of attention's probabilities, keyed by the query's row, the key's row and the head.

    Attributes:
        p: the fraction dropped.
        query_keys: one random key a query row (int32).
        key_keys: one random key a key row (int32).
        place: the place in the network (int32).
    """

    p: float
    query_keys: Int[Tensor, " Tq"]
    key_keys: Int[Tensor, " Tk"]
    place: Int[Tensor, ""]

    def scale(self, queries: slice, keys: slice, num_heads: int) -> Float[Tensor, "H q k"]:
        """What the probabilities are multiplied by: 0 or 1 / (1 - p)."""
        return keep_scale(self.query_keys[queries], self.key_keys[keys], self.place, num_heads, self.p)


def keep_scale(
    query_keys: Int[Tensor, " q"], key_keys: Int[Tensor, " k"], place: Int[Tensor, ""], num_heads: int, p: float
) -> Float[Tensor, "H q k"]:
    """0 where a probability is dropped, 1 / (1 - p) elsewhere."""
    by_head = bits(query_keys, place, num_heads).T  # [H, q]
    drawn = mix32(by_head[:, :, None] ^ mix32(key_keys))
    return (drawn >= drop_threshold(p, query_keys.device)).float() / (1 - p)


class Asked(NamedTuple):
    """What a layer asks of attention beside who sees whom; see `attention`.

    Attributes:
        window: how far along its path a query sees, itself included; None is without limit.
        scale: of the scores.
        dropout: of the probabilities.
        softcap: of the scores.
        sinks: for each head the score of one more key.
    """

    window: int | None
    scale: float
    dropout: AttentionDropout | None = None
    softcap: float | None = None
    sinks: Float[Tensor, " H"] | None = None


class Backend(Protocol):
    """How a device attends."""

    def __call__(
        self,
        q: Float[Tensor, "Tq H K"],
        k: Float[Tensor, "Tk G K"],
        v: Float[Tensor, "Tk G K"],
        sight: Sight,
        asked: Asked,
    ) -> Float[Tensor, "Tq H K"]:
        """Attend."""
        ...


def attention(
    q: Float[Tensor, "Tq H K"],
    k: Float[Tensor, "Tk G K"],
    v: Float[Tensor, "Tk G K"],
    sight: Sight,
    *,
    window: int | None = None,
    scale: float | None = None,
    dropout: AttentionDropout | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    backend: Backend | None = None,
) -> Float[Tensor, "Tq H K"]:
    """softmax(q k^T scale) v over the keys each query sees; zero where it sees none.

    Args:
        q: queries, H heads.
        k: keys, G heads; G divides H and query head h reads key head ``h // (H / G)``.
        v: values.
        sight: who sees whom.
        window: how far along its path a query sees, itself included; None is without limit.
        scale: of the scores; ``K ** -0.5`` by default.
        dropout: of the probabilities.
        softcap: c, where scores s are bent to ``c tanh(s / c)``.
        sinks: for each head the score of one more key, seen by every query, whose value is zero.
        backend: how; chosen by device when None.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    attend = backend or backend_for(q.device)
    return attend(q, k, v, sight, Asked(window, scale, dropout, softcap, sinks))


def backend_for(device: torch.device) -> Backend:
    """The back-end of a device; one that has none of its own computes the definition."""
    if device.type == "cpu":
        from danlu.parts.attention_cpu import attend_on_cpu

        return attend_on_cpu
    if device.type == "cuda":
        from danlu.parts.attention_cuda import attend_on_cuda

        return attend_on_cuda
    return attend_reference


def attend_reference(
    q: Float[Tensor, "Tq H K"],
    k: Float[Tensor, "Tk G K"],
    v: Float[Tensor, "Tk G K"],
    sight: Sight,
    asked: Asked,
) -> Float[Tensor, "Tq H K"]:
    """The definition, with the whole mask and all scores written out; what the other back-ends are compared with."""
    window, scale, dropout, softcap, sinks = asked
    group = q.shape[1] // k.shape[1]
    keys, values = (t.repeat_interleave(group, dim=1) for t in (k, v))
    seen = sight.mask(window)
    scores = torch.einsum("qhd,khd->hqk", q, keys) * scale
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    scores = scores.masked_fill(~seen, float("-inf")).masked_fill(~seen.any(1)[:, None], 0.0)
    if sinks is not None:
        sink = sinks.to(scores.dtype)[:, None, None].expand(-1, len(q), -1)
        scores = torch.cat([scores, sink], dim=-1)
    probabilities = scores.softmax(-1)[..., : len(keys)] * seen
    if dropout is not None:
        everything = slice(None)
        probabilities = probabilities * dropout.scale(everything, everything, q.shape[1])
    return torch.einsum("hqk,khd->qhd", probabilities.to(v.dtype), values)
