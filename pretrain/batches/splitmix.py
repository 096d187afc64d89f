"""Gives uniform numbers by count: SplitMix64 (Steele, Lea and Flood, "Fast splittable generators", OOPSLA 2014).

The n-th number of the generator with state `key` is `mix(key + (n + 1) * STEP)`, so any number is found by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Counts = Sequence[int] | NDArray[np.integer]

STEP = np.uint64(0x9E3779B97F4A7C15)  # between the states of neighbours; odd, near 2**64 / golden ratio


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of 64-bit numbers in which every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def noise_keys(seed: int, name: str, slots: Counts, samples: Counts) -> NDArray[np.uint64]:
    """The key of each row (R,), from its slot (of a prompt) and its sample number (both (R,), 0 or more)."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    base = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    # One round for each count: with the sum of both, slot 1 of sample 0 could be slot 0 of sample 1.
    of_slots = mix(base + np.asarray(slots).astype(np.uint64) * STEP)
    return mix(of_slots + (np.asarray(samples).astype(np.uint64) + np.uint64(1)) * STEP)


def key_uniforms(keys: NDArray[np.uint64], positions: Counts | int) -> NDArray[np.float64]:
    """The numbers in [0, 1) at these positions of these keys, broadcast against each other."""
    counts = np.atleast_1d(positions).astype(np.uint64) + np.uint64(1)
    return (mix(keys + counts * STEP) >> np.uint64(11)).astype(np.float64) * 2.0**-53
