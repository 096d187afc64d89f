"""Mixes the bits of 64-bit hashes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Wide = npt.NDArray[np.uint64]


def mix(values: Wide) -> Wide:
    """A bijection on 64-bit numbers after which every bit depends on all (SplitMix64's finaliser)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
