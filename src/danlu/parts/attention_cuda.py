"""Attention on CUDA: variable-length kernels where they suffice, FlexAttention for everything else.

Runs side by side (documents, images, rows and their own keys in another forest) go through FlashAttention's
variable-length kernel. Forests, extra and cached keys, single precision, dropout, capped scores and sinks go through
FlexAttention, told who sees whom by the two integers a key that `Sight` keeps.

FlexAttention cannot drop after its softmax, so dropout is put together from two passes. With m = 0 where a probability
is dropped and 1 elsewhere,

    sum_j m_j exp(s_j) v_j / ((1 - p) sum_j exp(s_j)) = o' exp(lse' - lse) / (1 - p),

where o' and lse' come from scores set to -inf where dropped, and lse from all of them. A sink of score z, a key of
value zero, likewise leaves a share sigmoid(lse - z) of the output.

References:
    Dao, 2023, "FlashAttention-2", https://arxiv.org/abs/2307.08691
    Dong et al., 2024, "Flex Attention", https://arxiv.org/abs/2412.05496
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention
from torch.utils.weak import WeakTensorKeyDictionary

from danlu.errors import UnsupportedError
from danlu.opaque import drop_threshold
from danlu.parts.attention import Asked, AttentionDropout, attend_reference
from danlu.random import bits, mix32
from danlu.sight import ANYWHERE, Sight

BLOCK_ROWS = 128
"""Queries, and keys, of a block that FlexAttention computes or leaves out as one."""
_NARROWEST_HEAD, _WIDEST_FLASH_HEAD, _FLASH_MULTIPLE = 16, 256, 8
_FLASH_CAPABILITY = (8, 0)
_NO_LIMIT = -1

Modifier: TypeAlias = Callable[..., Tensor]


@torch.compiler.disable  # type: ignore[untyped-decorator]  # which way is data, so a compiled block breaks here
def attend_on_cuda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sight: Sight,
    asked: Asked,
) -> Tensor:
    """See `danlu.parts.attention.attention`; float64, which no kernel knows, by the definition."""
    if q.dtype == torch.float64:
        return attend_reference(q, k, v, sight, asked)
    plan, plain = _Plan.of(sight), asked.dropout is None and asked.softcap is None and asked.sinks is None
    if plain and plan.runs is not None and flash_suffices(q, plan.runs, asked.window):
        return attend_runs(q, k, v, plan.runs, window=asked.window, scale=asked.scale)
    return attend_flex(q, k, v, plan.block_mask(sight, asked.window), asked)


class Runs(NamedTuple):
    """Runs of queries side by side, each seeing a run of keys side by side.

    Attributes:
        cu_queries, cu_keys: where they begin, and the number of rows.
        longest_queries, longest_keys: the longest run.
        causal: whether each run sees itself causally, rather than all of its keys.
    """

    cu_queries: Int[Tensor, " C+1"]
    cu_keys: Int[Tensor, " C+1"]
    longest_queries: int
    longest_keys: int
    causal: bool


def runs_of(sight: Sight) -> Runs | None:
    """The sight as runs, when that is all there is to it: every query in one call, all of them causal or all full."""
    calls, sizes = sight.calls, torch.tensor([len(sight.query_offset), len(sight.first)])
    if not len(calls):
        return None
    starts, ends, causal = calls[:, 0:4:2], calls[:, 1:4:2], calls[:, 4].bool()
    bounds = torch.cat([torch.zeros_like(ends[:1]), ends])
    if not (torch.equal(starts, bounds[:-1]) and torch.equal(ends[-1], sizes)):
        return None
    if causal.any() and not (causal.all() and torch.equal(bounds[:, 0], bounds[:, 1])):
        return None
    cu_queries, cu_keys = bounds.T.to(sight.first.device, torch.int32).contiguous()
    longest_queries, longest_keys = bounds.diff(dim=0).amax(0).tolist()
    return Runs(cu_queries, cu_keys, longest_queries, longest_keys, bool(causal[0]))


def flash_suffices(q: Tensor, runs: Runs, window: int | None) -> bool:
    """Whether the variable-length kernel computes this: by precision, head width and device; windows when causal."""
    fits = q.shape[-1] <= _WIDEST_FLASH_HEAD and q.shape[-1] % _FLASH_MULTIPLE == 0
    known = q.dtype in (torch.bfloat16, torch.float16) and (window is None or runs.causal)
    return fits and known and torch.cuda.get_device_capability(q.device) >= _FLASH_CAPABILITY and _varlen() is not None


def attend_runs(q: Tensor, k: Tensor, v: Tensor, runs: Runs, *, window: int | None, scale: float) -> Tensor:
    """Through FlashAttention's variable-length kernel."""
    kernel = _varlen()
    if kernel is None:
        do = "Use a torch whose `varlen_attn` has `window_size`, or FlexAttention."
        raise UnsupportedError(f"variable-length attention of torch {torch.__version__} knows no windows", do=do)
    left = _NO_LIMIT if window is None else window - 1
    reach = (left, 0) if runs.causal else (_NO_LIMIT, _NO_LIMIT)
    out: Tensor = kernel(q, k, v, *runs[:4], scale=scale, window_size=reach)
    return out


@functools.cache
def _varlen() -> Callable[..., Any] | None:
    """Torch's variable-length attention if it knows windows; key heads are repeated where it cannot share them."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    if "window_size" not in known or "scale" not in known:
        return None
    if "enable_gqa" in known:
        return functools.partial(varlen_attn, enable_gqa=True)

    def repeat(q: Tensor, k: Tensor, v: Tensor, *runs: Any, **settings: Any) -> Any:
        group = q.shape[1] // k.shape[1]
        keys, values = (x.repeat_interleave(group, dim=1) for x in (k, v))
        return varlen_attn(q, keys, values, *runs, **settings)

    return repeat


def attend_flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask | None,
    asked: Asked,
    *,
    kernel: Callable[..., Any] | None = None,
) -> Tensor:
    """Through FlexAttention.

    Args:
        q: queries ``[Tq, H, K]``.
        k: keys ``[Tk, G, K]``.
        v: values ``[Tk, G, K]``.
        mask: who sees whom, from `block_mask`, windows included; None when there are no queries or no keys.
        asked: what else.
        kernel: called as `flex_attention`; by default that, compiled.
    """
    if mask is None:
        return q * 0
    sinks = asked.sinks
    out, lse = flex_part(q, k, v, mask, asked, with_lse=sinks is not None, kernel=kernel)
    if sinks is None:
        return out.to(q.dtype)
    return (out * (lse - sinks[:, None]).sigmoid().t()[..., None]).to(q.dtype)


def flex_part(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask,
    asked: Asked,
    *,
    with_lse: bool = True,
    kernel: Callable[..., Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """`attend_flex` without sinks, and each row's log-sum-exp ``[H, Tq]``, empty unless asked for.

    Both are differentiable. Values that were put together from several passes are not rounded to the precision of q.
    """
    kernel, short = kernel or _compiled_flex(), max(_NARROWEST_HEAD - q.shape[-1], 0)
    heads = [F.pad(x, (0, short)).transpose(0, 1)[None] for x in (q, k, v)]
    dropout, cap = asked.dropout, None if asked.softcap is None else capping(asked.softcap, q.device)
    settings = {"block_mask": mask, "scale": asked.scale, "enable_gqa": q.shape[1] != k.shape[1], "score_mod": cap}
    if dropout is None and not with_lse:
        out, lse = kernel(*heads, **settings), q.new_empty(1, 0)
    else:
        lse_too = AuxRequest(lse=True)
        out, whole = kernel(*heads, return_aux=lse_too, **settings)
        lse = whole.lse
        if dropout is not None:
            settings["score_mod"] = dropping(dropout, q.shape[1], cap)
            out, kept = kernel(*heads, return_aux=lse_too, **settings)
            left = torch.where(kept.lse.isneginf(), -math.inf, kept.lse - lse).exp()
            out = out * (left / (1 - dropout.p))[..., None]
    return out[0].transpose(0, 1)[..., : q.shape[-1]], lse[0]


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)


def capping(softcap: float, device: torch.device) -> Modifier:
    """Scores bent to c tanh(s / c)."""
    limit = torch.tensor(softcap, device=device)  # else a kernel each

    def modify(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return limit * (score / limit).tanh()

    return modify


def dropping(dropout: AttentionDropout, num_heads: int, before: Modifier | None = None) -> Modifier:
    """Scores, as modified before, set to -inf where `danlu.parts.attention.keep_scale` is 0."""
    by_head, by_key = bits(dropout.query_keys, dropout.place, num_heads), mix32(dropout.key_keys)
    threshold = drop_threshold(dropout.p, dropout.query_keys.device)

    def modify(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        score = score if before is None else before(score, batch, head, query, key)
        drawn = mix32(by_head[query, head] ^ by_key[key])
        return torch.where(drawn >= threshold, score, -math.inf)

    return modify


def seen_by_interval(sight: Sight, window: int | None) -> Modifier:
    """`Sight.mask`, element by element."""
    tensors = (sight.first, sight.end, sight.query_offset, sight.key_offset)
    first, end, query_offset, key_offset = (x.to(torch.int32) for x in tensors)
    reach = torch.tensor(window or 0, dtype=torch.int32, device=first.device)  # else a kernel each

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (first[key] <= query) & (query < end[key])

    def seen_nearby(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = (query_offset[query] - key_offset[key]).abs()
        return seen(batch, head, query, key) & ((distance < reach) | (key_offset[key] == ANYWHERE))

    return seen if window is None else seen_nearby


def visible_blocks(sight: Sight, window: int | None) -> tuple[Bool[Tensor, "Bq Bk"], Bool[Tensor, "Bq Bk"]]:
    """The blocks of which some part may be seen, and those of them that are seen as a whole.

    No mask is written out: a query block meets each key's interval, and a window meets blocks' extreme offsets, which
    may count a block as seen where no query sees a key.
    """
    num_queries, num_keys = len(sight.query_offset), len(sight.first)
    start = torch.arange(0, num_queries, BLOCK_ROWS, device=sight.first.device)[:, None]
    padding = (0, -num_keys % BLOCK_ROWS)
    first = F.pad(torch.where(sight.first < sight.end, sight.first, num_queries), padding, value=num_queries)
    end = F.pad(sight.end, padding)
    stop = (start + BLOCK_ROWS).clamp(max=num_queries)
    some = ((first < stop) & (end > start)).unflatten(1, (-1, BLOCK_ROWS)).any(2)
    whole = ((first <= start) & (end >= start + BLOCK_ROWS)).unflatten(1, (-1, BLOCK_ROWS)).all(2)
    if window is not None:
        query_low, query_high = (x[:, None] for x in _extremes(sight.query_offset))
        key_low, key_high = _extremes(sight.key_offset)
        free = F.pad(sight.key_offset == ANYWHERE, padding).unflatten(0, (-1, BLOCK_ROWS))
        some &= (torch.maximum(query_low - key_high, key_low - query_high) < window) | free.any(1)
        whole &= (torch.maximum(query_high - key_low, key_high - query_low) < window) | free.all(1)
    return some, whole


def _extremes(offsets: Int[Tensor, " T"]) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
    """The least and the greatest offset of each block."""
    rows = torch.arange(len(offsets) + -len(offsets) % BLOCK_ROWS, device=offsets.device)
    low, high = offsets[rows.clamp(max=len(offsets) - 1)].unflatten(0, (-1, BLOCK_ROWS)).aminmax(dim=1)
    return low, high


def block_mask(sight: Sight, window: int | None) -> BlockMask | None:
    """Who sees whom, as FlexAttention wants to be told; None when there are no queries or no keys."""
    sizes = (len(sight.query_offset), len(sight.first))
    if not all(sizes):
        return None
    some, whole = visible_blocks(sight, window)
    tables = (*_ordered(some & ~whole), *_ordered(whole))
    modifier = seen_by_interval(sight, window)
    return BlockMask.from_kv_blocks(*tables, BLOCK_SIZE=BLOCK_ROWS, mask_mod=modifier, seq_lengths=sizes)


def _ordered(blocks: Bool[Tensor, "Bq Bk"]) -> tuple[Int[Tensor, "1 1 Bq"], Int[Tensor, "1 1 Bq Bk"]]:
    """For each query block how many key blocks there are, and which, those first."""
    which = blocks.int().argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1, dtype=torch.int32)[None, None], which.to(torch.int32)[None, None]


def planned_mask(sight: Sight, window: int | None) -> BlockMask | None:
    """`block_mask`, made once for a sight though every layer asks."""
    return _Plan.of(sight).block_mask(sight, window)


class _Plan:
    """What follows from a sight alone; found once, though every layer asks."""

    _known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # by its calls; a plan that held them would never go

    def __init__(self, sight: Sight) -> None:
        self.runs, self.device = runs_of(sight), sight.first.device
        self._masks: dict[int | None, BlockMask | None] = {}

    @classmethod
    def of(cls, sight: Sight) -> _Plan:
        plan: _Plan | None = cls._known.get(sight.calls)
        if plan is None or plan.device != sight.first.device:
            plan = cls._known[sight.calls] = cls(sight)
        return plan

    def block_mask(self, sight: Sight, window: int | None) -> BlockMask | None:
        if window not in self._masks:
            self._masks[window] = block_mask(sight, window)
        return self._masks[window]
