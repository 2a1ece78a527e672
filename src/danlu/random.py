"""Keyed randomness: what is drawn depends on who asks, never on what was drawn before.

Every random number is a function of (seed, step, sample, position, place in the network, column). So results do not
depend on packing, micro-batches, ranks or resuming, and there is no generator's state to save.

Two hashes do it. On the host `fold` mixes integers into one 64-bit key (SplitMix64's finaliser). On the device `bits`
spreads one 32-bit key a row over columns (a full-avalanche 32-bit finaliser): a few integer operations an element,
which a compiled block fuses into its neighbours.

References:
    Steele, Lea and Flood, 2014, "Fast splittable pseudorandom number generators",
    https://doi.org/10.1145/2714064.2660195 Wellons, 2018, "Prospecting for hash functions",
    https://nullprogram.com/blog/2018/07/31/
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from danlu.opaque import drop_threshold, golden_multiples

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ALL = 2**64 - 1


def _mix64(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def fold(*parts: int | str) -> int:
    """One 64-bit key from integers and names, in order.

    Example:
        >>> fold(1, 2) == fold(2, 1)
        False
        >>> 0 <= fold(7, "dropout") < 2**64
        True
    """
    key = 0  # in Python's own integers, which are ten times as fast as an array of one
    for part in parts:
        number = zlib.crc32(part.encode()) if isinstance(part, str) else part
        x = ((key ^ (number & _ALL)) + int(_GOLDEN)) & _ALL
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _ALL
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _ALL
        key = x ^ (x >> 31)
    return key


def token_keys(key: int, sample: Int[Tensor, " T"], offset: Int[Tensor, " T"]) -> Int[Tensor, " T"]:
    """One 32-bit key a row, from the key of this update, the row's sample and its place on its path.

    Args:
        key: of (seed, step), from `fold`.
        sample: sample ids.
        offset: tokens before the row on its path.

    Returns:
        int32, uniform over all 2**32 values, on the host.
    """
    with np.errstate(over="ignore"):
        hashed = _mix64((sample.numpy().astype(np.uint64) ^ np.uint64(key)) + _GOLDEN)
        hashed = _mix64((hashed ^ offset.numpy().astype(np.uint64)) + _GOLDEN)
    return torch.from_numpy((hashed >> np.uint64(32)).astype(np.uint32).view(np.int32))


def place_key(name: str) -> int:
    """The key of a place in the network, from its module's name; an int32."""
    return int(np.uint32(fold(name) >> 32).view(np.int32))


def mix32(x: Int[Tensor, ...]) -> Int[Tensor, ...]:
    """Scatter int32 values so that every input bit moves every output bit; wraps around as unsigned arithmetic does."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * 0x7FEB352D
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * -0x7B935975  # 0x846ca68b
    return x ^ ((x >> 16) & 0xFFFF)


def bits(keys: Int[Tensor, ...], place: Int[Tensor, ""] | int, num: int) -> Int[Tensor, "... num"]:
    """`num` int32 values a key, uniform over all 2**32, for one place in the network."""
    column = golden_multiples(num, keys.device)
    return mix32(mix32(keys ^ place)[..., None] + column)


def uniform(keys: Int[Tensor, ...], place: Int[Tensor, ""] | int, num: int) -> Float[Tensor, "... num"]:
    """`num` float32 values a key, uniform in (0, 1)."""
    if keys.device.type == "cpu" and isinstance(place, int) and not torch.compiler.is_compiling():
        return _uniform_on_host(keys, place, num)
    return (((bits(keys, place, num) >> 9) & 0x7FFFFF).float() + 0.5) * 2.0**-23  # one bit more would round up to 1


def _uniform_on_host(keys: Tensor, place: int, num: int) -> Tensor:
    """The same numbers to the bit: for few of them numpy's operations cost a fraction of torch's calls."""
    x = keys.numpy().view(np.uint32)[..., None] ^ np.uint32(place & 0xFFFFFFFF)
    _scatter(x)
    x = x + np.arange(num, dtype=np.uint32) * np.uint32(0x9E3779B9)
    _scatter(x)
    x >>= np.uint32(9)
    u = x.astype(np.float32)
    u += np.float32(0.5)
    u *= np.float32(2.0**-23)
    return torch.from_numpy(u)


def _scatter(x: np.ndarray) -> None:
    """`mix32` in place, of values without a sign."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    x ^= x >> np.uint32(16)


def normal(keys: Int[Tensor, ...], place: Int[Tensor, ""] | int, num: int) -> Float[Tensor, "... num"]:
    """`num` float32 values a key, standard normal (Box and Muller, 1958, https://doi.org/10.1214/aoms/1177706645)."""
    u = uniform(keys, place, 2 * num)
    return (-2 * u[..., :num].log()).sqrt() * (2 * torch.pi * u[..., num:]).cos()


def dropout(
    x: Float[Tensor, "T D"], keys: Int[Tensor, " T"], place: Int[Tensor, ""] | int, p: float
) -> Float[Tensor, "T D"]:
    """Zero a fraction `p` of x, scale the rest by 1 / (1 - p); the same elements for the same keys and place."""
    kept = bits(keys, place, x.shape[-1]) >= drop_threshold(p, x.device)
    return torch.where(kept, x * (1 / (1 - p)), 0)


def permutation(size: int, *parts: int | str) -> np.ndarray:
    """A permutation of ``range(size)`` that depends on the parts alone."""
    return np.random.Generator(np.random.Philox(key=fold(*parts))).permutation(size)
