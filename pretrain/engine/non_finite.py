"""The error of a step whose loss or gradient is NaN or infinite."""

from __future__ import annotations


class NonFiniteLoss(ValueError):
    """The loss or the gradient of a step is NaN or infinite; its update was not made, on any rank."""

    def __init__(self, message: str, ranks: list[int]) -> None:
        super().__init__(message)
        self.ranks = ranks  # that computed it


def non_finite(what: str, value: float, step: int, finite: list[bool]) -> NonFiniteLoss:
    """The error of a step (counted from 0); `finite`: for each rank whether what it computed by itself is."""
    ranks = [rank for rank, fine in enumerate(finite) if not fine]
    who = f" (not finite on rank {', '.join(map(str, ranks))})" if ranks else ""
    return NonFiniteLoss(
        f"the {what} of step {step + 1} is {value}{who}; its update was not made. Lower train.optimizer.lr, "
        f"lengthen the warm-up, or look at the batch with `replica trace RUN --step {step + 1}`",
        ranks or list(range(len(finite))),
    )
