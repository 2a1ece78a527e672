"""What errors are held to, and why.

Everything is computed in float32, whose roundings are of 6e-8 (2 ** -24) relative to what is rounded; bfloat16, at
4e-3, would hide what is looked for. Errors are relative, so that a tolerance knows no model: of a gradient to the
largest entry of its parameter's, of a weight to how far its parameter has moved.
"""

from __future__ import annotations

SAME_BITS = 0.0
"""For the same arithmetic in the same order."""

SAME_SUMS = 1e-5
"""For the same sums in another order: roundings of some thousand terms add up like a random walk, to a few 1e-6 of the
largest. Neighbours that leak, or a mean in place of a sum, are seen at 1e-3 and above."""

OTHER_CODE = 1e-4
"""For the same function in another library's words: it rounds elsewhere, and layers amplify what came before."""

SAME_RUNS = 1e-3
"""For weights after several updates: an optimiser divides each gradient by its size, so that rounding errors of one
that is a hundredth of the largest count a hundredfold."""

NEGLIGIBLE = 1e-2
"""A parameter whose gradient, or way, is a smaller share of the largest one's is measured by this share: of some, as
the bias of attention's keys, the true gradient is 0, and what is computed is rounding."""
