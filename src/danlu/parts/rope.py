"""Rotary position embedding.

Every pair of features (i, i + K/2) of a head turns by an angle ``position * inv_freq[i]``, so that a score depends on
positions only through their difference.

References:
    Su et al., 2021, "RoFormer", https://arxiv.org/abs/2104.09864
    Peng et al., 2023, "YaRN", https://arxiv.org/abs/2309.00071
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from danlu.errors import UnsupportedError


class Rotary(nn.Module):
    """Angles for positions.

    Args:
        head_width: K, even.
        theta: the base of the frequencies.
        scaling: the hub's `rope_scaling` or `rope_parameters`: of type default, linear, llama3 or yarn.

    Raises:
        UnsupportedError: for a scaling whose frequencies depend on the longest position in the pack ('dynamic',
            'longrope'): neighbours in a pack would change each other.
    """

    inv_freq: Tensor

    def __init__(self, head_width: int, theta: float, scaling: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        inv_freq, self.factor = frequencies(head_width, theta, scaling or {})
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, positions: Int[Tensor, " T"]) -> tuple[Float[Tensor, "T R"], Float[Tensor, "T R"]]:
        """Cosine and sine of each position's angles."""
        angles = positions[:, None].float() * self.inv_freq.float()
        return angles.cos() * self.factor, angles.sin() * self.factor


def rotate(x: Float[Tensor, "T H K"], cos: Float[Tensor, "T R"], sin: Float[Tensor, "T R"]) -> Float[Tensor, "T H K"]:
    """Turn each pair (i, i + K/2) of x by its row's angle."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def frequencies(head_width: int, theta: float, scaling: Mapping[str, Any]) -> tuple[Float[Tensor, " R"], float]:
    """The angular frequency of each pair, and what cosine and sine are multiplied by.

    To the last bit what `transformers` computes: an angle at position 100,000 has five digits fewer than its frequency.
    """
    if scaling.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedError("only a part of each head is rotated", do="Use a checkpoint that rotates whole heads.")
    periods = theta ** (torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)
    base = 1.0 / periods
    match scaling.get("rope_type", scaling.get("type", "default")):
        case "default":
            return base, 1.0
        case "linear":
            return base / scaling["factor"], 1.0
        case "llama3":
            return _llama3(base, scaling), 1.0
        case "yarn":
            return _yarn(periods, theta, head_width, scaling)
        case other:
            raise UnsupportedError(
                f"rotary scaling '{other}' takes its frequencies from the longest sequence of a pack, "
                "so neighbours would change each other's result",
                do="Use a checkpoint with default, linear, llama3 or yarn scaling.",
            )


def _llama3(base: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Slow frequencies divided by the factor, fast ones kept, a linear blend between."""
    original = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelength = 2 * math.pi / base
    kept = ((original / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * base / scaling["factor"] + kept * base


def _yarn(periods: Tensor, theta: float, head_width: int, scaling: Mapping[str, Any]) -> tuple[Tensor, float]:
    """Interpolate pairs that turn less than beta_slow times over the original context; keep those past beta_fast."""
    factor, original = scaling["factor"], scaling["original_max_position_embeddings"]

    def pair(turns: float) -> float:
        return head_width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(scaling.get("beta_fast") or 32.0), pair(scaling.get("beta_slow") or 1.0)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_width - 1)
    pairs = torch.arange(head_width // 2, dtype=torch.float32)
    kept = 1 - ((pairs - low) / (high - low if high != low else 0.001)).clamp(0, 1)
    attention = scaling.get("attention_factor")
    if attention is None:
        scale, scale_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
        attention = _sharpness(factor, 1.0)
        if scale and scale_all:
            attention = _sharpness(factor, scale) / _sharpness(factor, scale_all)
    return 1.0 / (factor * periods) * (1 - kept) + 1.0 / periods * kept, attention


def _sharpness(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
