"""Order and choice as functions of a key, never of a generator's running state."""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Bool, Int64, UInt64

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def mix(values: UInt64[np.ndarray, " N"]) -> UInt64[np.ndarray, " N"]:
    """SplitMix64's finaliser: a bijection of 64-bit numbers whose values look random.

    References:
        Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014,
        https://doi.org/10.1145/2660193.2660195
    """
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values


def permutation(size: int, seed: int, epoch: int) -> Int64[np.ndarray, " N"]:
    """The order of `size` samples in an epoch.

    Example:
        >>> sorted(permutation(5, seed=0, epoch=1).tolist())
        [0, 1, 2, 3, 4]
    """
    counter = np.arange(1, size + 1, dtype=np.uint64)
    return np.argsort(mix(_key("order", seed, epoch) + counter * _GAMMA), kind="stable")


def chosen(digests: UInt64[np.ndarray, " D"], fraction: float, seed: int) -> Bool[np.ndarray, " D"]:
    """Which documents are held out: each by its own content, whatever the others are.

    Args:
        digests: a hash of each document.
        fraction: the share to hold out, in [0, 1).
        seed: another seed holds out others.
    """
    return mix(_key("split", seed) ^ digests) < np.uint64(int(fraction * 2**64))


def _key(*parts: object) -> UInt64[np.ndarray, " 1"]:
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return np.frombuffer(digest, "<u8")
