"""The error of a step whose loss or gradient is NaN or infinite."""

from __future__ import annotations


class NonFiniteLoss(ValueError):
    """The loss or the gradient of a step is not a number; its update was not made, on any rank."""

    def __init__(self, message: str, ranks: list[int]) -> None:
        super().__init__(message)
        self.ranks = ranks  # that computed it
