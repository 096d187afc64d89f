"""An arithmetic coder in exact fractions: slow, and with nothing to get wrong. For comparisons."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray


def exact_shares(logits: NDArray[Any]) -> list[Fraction]:
    """The probabilities of one row of logits (V,): fp64 weights, summed and divided exactly."""
    row = logits.astype(np.float64)
    weights = [Fraction(float(weight)) for weight in np.exp(row - row.max())]
    total = sum(weights, Fraction(0))
    return [weight / total for weight in weights]


def exact_encode(symbols: NDArray[Any], logits: NDArray[Any]) -> str:
    """Bits of `symbols` (N,) coded by `logits` (N, V); every symbol must have a probability."""
    low, width = Fraction(0), Fraction(1)
    for symbol, row in zip(symbols.tolist(), logits, strict=True):
        shares = exact_shares(row)
        low += width * sum(shares[:symbol], Fraction(0))
        width *= shares[symbol]
    bits = 0
    while Fraction(2) ** -bits > width:  # the shortest binary fraction inside [low, low + width)
        bits += 1
    number = -((-low.numerator << bits) // low.denominator)
    if Fraction(number, 1 << bits) >= low + width:
        bits += 1
        number = -((-low.numerator << bits) // low.denominator)
    return f"{number:0{bits}b}" if bits else ""


def exact_decode(code: str, logits: NDArray[Any]) -> list[int]:
    """The symbols that `exact_encode` coded by these rows."""
    value = Fraction(int(code, 2), 1 << len(code)) if code else Fraction(0)
    found = []
    for row in logits:
        shares = exact_shares(row)
        begins = [sum(shares[:symbol], Fraction(0)) for symbol in range(len(shares))]
        symbol = max(symbol for symbol, begin in enumerate(begins) if begin <= value)
        found.append(symbol)
        value = (value - begins[symbol]) / shares[symbol]
    return found
