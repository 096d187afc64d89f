"""Mixes 64-bit numbers: the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable generators", OOPSLA 2014).

The n-th number of the generator with state `key` is `mix(key + (n + 1) * STEP)`, so any number is found by itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEP = np.uint64(0x9E3779B97F4A7C15)  # between the states of neighbours; odd, near 2**64 / golden ratio


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of 64-bit numbers in which every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
