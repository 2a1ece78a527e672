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


def permutation(size: int, seed: int, epoch: int, pool: int = 0) -> Int64[np.ndarray, " N"]:
    """The order of `size` samples in one pool of an epoch.

    Example:
        >>> sorted(permutation(5, seed=0, epoch=1).tolist())
        [0, 1, 2, 3, 4]
    """
    return ordered(size, "order", seed, epoch, *([pool] if pool else []))


def pools(
    sizes: Int64[np.ndarray, " C"], pool_bytes: int, seed: int, epoch: int, shuffle: bool = True
) -> list[Int64[np.ndarray, " _"]]:
    """The chunks that are mixed with one another, one pool after the other, all chunks being drawn once an epoch.

    Args:
        sizes: bytes of each chunk.
        pool_bytes: bytes that a pool has at most, but for the last chunk that comes into it.
        seed: another seed gives other pools.
        epoch: and so does another epoch.
        shuffle: false keeps the chunks in their order.

    Returns:
        The numbers of each pool's chunks, rising.

    Example:
        >>> [pool.tolist() for pool in pools(np.array([3, 3, 3, 3]), 6, seed=0, epoch=0, shuffle=False)]
        [[0, 1], [2, 3]]
    """
    order = ordered(len(sizes), "chunks", seed, epoch) if shuffle else np.arange(len(sizes))
    drawn = sizes[order]
    total = int(drawn.sum())
    count = max(1, -(-total // pool_bytes))
    middle = np.cumsum(drawn) - drawn / 2
    number = (middle * count / max(total, 1)).astype(np.int64)
    return [np.sort(pool) for pool in np.split(order, np.flatnonzero(np.diff(number)) + 1)]


def chosen(digests: UInt64[np.ndarray, " D"], fraction: float, seed: int) -> Bool[np.ndarray, " D"]:
    """Which documents are held out: each by its own content, whatever the others are.

    Args:
        digests: a hash of each document.
        fraction: the share to hold out, in [0, 1).
        seed: another seed holds out others.
    """
    return mix(key("split", seed) ^ digests) < np.uint64(int(fraction * 2**64))


def uniform(number: int, *parts: object) -> float:
    """A number in [0, 1): the `number`-th of the stream that the parts name.

    Example:
        >>> uniform(3, "mixture", 0) == uniform(3, "mixture", 0) != uniform(4, "mixture", 0)
        True
    """
    counter = np.array([number + 1], np.uint64)
    return int(mix(key(*parts) + counter * _GAMMA)[0] >> np.uint64(11)) / 2**53


def ordered(size: int, *parts: object) -> Int64[np.ndarray, " N"]:
    """An order of ``range(size)`` that the parts name.

    Example:
        >>> sorted(ordered(3, "any", 7).tolist())
        [0, 1, 2]
    """
    counter = np.arange(1, size + 1, dtype=np.uint64)
    return np.argsort(mix(key(*parts) + counter * _GAMMA), kind="stable")


def key(*parts: object) -> UInt64[np.ndarray, " 1"]:
    """64 bits that the parts name."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return np.frombuffer(digest, "<u8")
