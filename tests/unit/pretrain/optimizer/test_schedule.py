"""Learning rates by hand and against torch's schedulers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, LRScheduler, SequentialLR

from configs.schema.train import Schedule
from pretrain.optimizer.schedule import learning_rate

PEAK = 3e-3


def ours(total: int, steps: int | None = None, **settings: Any) -> list[float]:
    return [learning_rate(Schedule(**settings), PEAK, step, total) for step in range(steps or total)]


def theirs(steps: int, make: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    scheduler: LRScheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def warmed(optimizer: Any, warmup: int, after: Any) -> SequentialLR:
    """Steps 0 … warmup-1 rise from peak/(warmup+1); step `warmup` is the first of `after`."""
    rise = LinearLR(optimizer, start_factor=1 / (warmup + 1), end_factor=1.0, total_iters=warmup)
    return SequentialLR(optimizer, [rise, after(optimizer)], milestones=[warmup])


# torch's cosine is recursive and gathers rounding; its other two agree to the last bits.
@pytest.mark.parametrize(("warmup", "total", "ratio"), [(10, 100, 0.1), (1, 37, 0.0), (25, 60, 0.5)])
def test_equals_torch(warmup: int, total: int, ratio: float) -> None:
    span = total - 1 - warmup
    cosine = theirs(total, lambda o: warmed(o, warmup, lambda o: CosineAnnealingLR(o, span, eta_min=PEAK * ratio)))
    settings: dict[str, Any] = {"warmup_steps": warmup, "min_lr_ratio": ratio}
    assert ours(total, kind="cosine", **settings) == pytest.approx(cosine, rel=1e-9, abs=1e-15)
    linear = theirs(total, lambda o: warmed(o, warmup, lambda o: LinearLR(o, 1.0, ratio, total_iters=span)))
    assert ours(total, kind="linear", **settings) == pytest.approx(linear, rel=1e-9, abs=1e-15)
    constant = theirs(total, lambda o: LambdaLR(o, lambda s: min(1.0, (s + 1) / (warmup + 1))))
    assert ours(total, kind="constant", **settings) == pytest.approx(constant, rel=1e-12)
    decay = round(0.2 * total)
    wsd = theirs(
        total,
        lambda o: LambdaLR(
            o, lambda s: min((s + 1) / (warmup + 1), 1.0, 1 - (1 - ratio) * max(0, s + 1 - (total - decay)) / decay)
        ),
    )
    assert ours(total, kind="wsd", decay_fraction=0.2, **settings) == pytest.approx(wsd, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("kind", ["cosine", "wsd", "linear"])
def test_ends_exactly_and_stays(kind: str) -> None:
    rates = ours(50, 60, kind=kind, warmup_steps=5, min_lr_ratio=0.1)
    assert rates[49] == pytest.approx(PEAK * 0.1, rel=1e-12) and rates[48] > rates[49]
    assert rates[49:] == [rates[49]] * 11
    assert rates[5] == max(rates) == PEAK
    assert rates[0] > 0 and rates[:6] == sorted(rates[:6])
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_wsd_is_flat_between() -> None:
    rates = ours(100, kind="wsd", warmup_steps=10, decay_fraction=0.3, min_lr_ratio=0.0)
    assert set(rates[10:70]) == {PEAK} and rates[70] < PEAK and rates[99] == 0


@pytest.mark.parametrize("kind", ["cosine", "wsd", "linear", "constant"])
def test_short_runs(kind: str) -> None:
    assert ours(1, kind=kind) == [PEAK]
    assert ours(3, kind=kind, warmup_steps=9) == pytest.approx([PEAK * f for f in (0.1, 0.2, 0.3)])
    assert ours(4, kind=kind, warmup_steps=3)[3] == PEAK
