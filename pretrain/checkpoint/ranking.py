"""Compares checkpoints of a run by what was measured of them in training. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from configs.schema.train import CheckpointPolicy
from pretrain.checkpoint.manifest import MEASURED, VALIDATION_LOSS


def measured_value(state: Mapping[str, Any], curve: str) -> tuple[float, bool] | None:
    """A curve's value at a checkpoint, and whether more of it is better; None where it was not measured.

    Args:
        state: `CheckpointInfo.state`.
        curve: such as `val/loss` or `eval/benchmark/piqa/acc`.
    """
    found = state.get(MEASURED, {}).get(curve)
    if found is None and curve == "val/loss":  # all that checkpoints of earlier versions keep
        found = [state.get(VALIDATION_LOSS), False]
    if found is None or found[0] is None or not math.isfinite(found[0]):
        return None
    return float(found[0]), bool(found[1])


def penalty(state: Mapping[str, Any], policy: CheckpointPolicy) -> float | None:
    """What orders checkpoints by `policy.best_by`, the least being the best; None where it was not measured."""
    found = measured_value(state, policy.best_by)
    return None if found is None else -found[0] if found[1] else found[0]
