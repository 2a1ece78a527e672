"""Which token comes next."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from danlu.config import Config
from danlu.random import fold, token_keys, uniform

TEMPERATURE = 1.0
"""The model's own distribution."""
MAX_NEW_TOKENS = 256
"""How far a continuation goes when nothing is said."""
_PLACE = "next token"


class Sampling(Config):
    """How a continuation is drawn.

    Logits are divided by the temperature; then all but the `top_k` most likely tokens are left out, then all but the
    fewest tokens whose probabilities reach `top_p`. What is drawn is a function of (seed, sample, position) and the
    logits: a sequence's continuation does not depend on which others are in the batch, nor on when it joined them.

    References:
        Fan, Lewis and Dauphin, 2018, "Hierarchical neural story generation" (top-k), https://arxiv.org/abs/1805.04833
        Holtzman et al., 2020, "The curious case of neural text degeneration" (top-p), https://arxiv.org/abs/1904.09751
    """

    temperature: float = Field(TEMPERATURE, ge=0)
    """What logits are divided by; 0 takes the most likely token."""
    top_k: int | None = Field(None, ge=1)
    """How many of the most likely tokens may be drawn."""
    top_p: float | None = Field(None, gt=0, le=1)
    """How much probability the tokens that may be drawn reach, the most likely first."""
    max_new_tokens: int = Field(MAX_NEW_TOKENS, ge=1)
    """The longest continuation."""
    seed: int = 0
    """Of the randomness."""

    def keys(self, sample: Int[Tensor, " R"], position: Int[Tensor, " R"]) -> Int[Tensor, " R"]:
        """One random key for each token to be drawn, from its sequence's sample id and its place in the sequence."""
        return token_keys(fold(self.seed, _PLACE), sample, position)

    def probabilities(self, logits: Float[Tensor, "R V"]) -> Float[Tensor, "R V"]:
        """What tokens are drawn from, in float64; with temperature 0 all of it on the most likely token."""
        if self.temperature == 0:
            return torch.zeros_like(logits, dtype=torch.float64).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
        scores = logits.double() / self.temperature
        if self.top_k is not None and self.top_k < scores.shape[1]:
            least = scores.topk(self.top_k, dim=1).values[:, -1:]
            scores = scores.masked_fill(scores < least, -torch.inf)
        probabilities = scores.softmax(1)
        if self.top_p is None or self.top_p == 1:
            return probabilities
        ordered, tokens = probabilities.sort(dim=1, descending=True)
        before = ordered.cumsum(1) - ordered
        ordered = torch.where(before < self.top_p, ordered, 0.0)
        kept = torch.zeros_like(probabilities).scatter_(1, tokens, ordered)
        return kept / kept.sum(1, keepdim=True)

    def choose(self, logits: Float[Tensor, "R V"], keys: Int[Tensor, " R"]) -> Int[Tensor, " R"]:
        """One token a row: the one at which the cumulative distribution passes the row's uniform number."""
        if self.temperature == 0:
            return logits.argmax(1)
        cumulative = self.probabilities(logits).cumsum(1)
        high, low = uniform(keys.to(logits.device), 0, 2).double().unbind(1)
        drawn = high + (low - 0.5) * 2.0**-24  # the 24 bits of one number end where the other's begin
        found = torch.searchsorted(cumulative, drawn[:, None] * cumulative[:, -1:], right=True)
        return found.squeeze(1)
