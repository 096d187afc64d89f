"""Reduces the dimensions of vectors by principal components, which can be kept and used again for other documents."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Projection:
    """An affine map of D dimensions to d: what is left of a vector after `mean`, along `components`.

    Attributes:
        mean: (D,) of the vectors that it was made of.
        components: (d, D) directions of largest variance, of length 1, the largest first. The largest entry of each is
            positive, so that the signs do not depend on the machine.
        explained: (d,) share of all variance along each.
    """

    mean: Floats
    components: Floats
    explained: Floats

    @classmethod
    def of(cls, vectors: Floats, dims: int) -> Projection:
        """Computes the principal components of vectors (n, D) by a singular value decomposition.

        Raises:
            ValueError: for more dimensions than n vectors of D dimensions can span.
        """
        n, width = vectors.shape
        most = min(n - 1, width)
        if dims > most:
            raise ValueError(
                f"--dims {dims}: {n:,} documents with vectors of {width:,} dimensions span at most {most:,}; lower it, "
                "give more documents, or leave it out"
            )
        mean = vectors.mean(axis=0)
        _, scales, directions = np.linalg.svd(vectors - mean, full_matrices=False)
        components = directions[:dims]
        largest = components[np.arange(dims), np.abs(components).argmax(axis=1)]
        variance = scales**2
        return cls(mean, components * np.sign(largest)[:, None], variance[:dims] / max(float(variance.sum()), 1e-300))

    def apply(self, vectors: Floats) -> Floats:
        """Projects vectors (n, D) to (n, d)."""
        projected: Floats = (vectors - self.mean) @ self.components.T
        return projected

    def as_json(self) -> dict[str, Any]:
        """Converts it to JSON without loss: arrays as base64 of little-endian float64."""
        return {name: _packed(getattr(self, name)) for name in ("mean", "components", "explained")}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Projection:
        """The inverse of `as_json`."""
        return cls(*(_unpacked(values[name]) for name in ("mean", "components", "explained")))


def _packed(array: Floats) -> dict[str, Any]:
    return {"shape": list(array.shape), "data": base64.b64encode(array.astype("<f8").tobytes()).decode("ascii")}


def _unpacked(values: dict[str, Any]) -> Floats:
    flat = np.frombuffer(base64.b64decode(values["data"]), dtype="<f8")
    return flat.reshape(values["shape"]).astype(np.float64)
