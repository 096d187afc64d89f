"""Computes the learning rate as a pure function of the step, so that nothing has to be saved."""

from __future__ import annotations

import math

from configs.schema.train import Schedule


def learning_rate(schedule: Schedule, peak: float, step: int, total_steps: int) -> float:
    """The learning rate of the update number `step`, counted from 0, of `total_steps`.

    Warm-up of W steps: step s < W uses peak (s + 1) / (W + 1), so that no update is spent at zero, and step W is the
    first at the peak. From there (`wsd`: from the last stable step on) the curve falls to `min_lr_ratio` x peak, which
    the last step, total_steps - 1, uses exactly; later steps stay there. A run not longer than its warm-up only rises.

    Sources: cosine, arXiv:1608.03983; warm-up, stable, decay (wsd), arXiv:2404.06395 and arXiv:2405.18392.
    """
    assert step >= 0 and total_steps >= 1, (step, total_steps)
    warmup, last = schedule.warmup_steps, total_steps - 1
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    start = warmup  # the last step at the peak
    if schedule.kind == "wsd":
        start = max(start, last - max(1, round(schedule.decay_fraction * total_steps)))
    if schedule.kind == "constant" or step <= start:
        return peak
    progress = min(1.0, (step - start) / max(1, last - start))
    fall = (1 + math.cos(math.pi * progress)) / 2 if schedule.kind == "cosine" else 1 - progress
    low = peak * schedule.min_lr_ratio
    return low + (peak - low) * fall
