"""Decides which checkpoints of a run are kept. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping

from configs.schema.train import CheckpointPolicy


def expired(scores: Mapping[int, float | None], policy: CheckpointPolicy) -> set[int]:
    """The steps whose checkpoints may be removed, because newer complete ones are kept.

    Args:
        scores: step of each complete checkpoint -> its `penalty`, if what decides it was measured there.
        policy: what the recipe keeps: the last ones, every n steps, the best ones. Of equal ones the later is better.
    """
    newest = sorted(scores, reverse=True)
    kept = set(newest[: policy.keep])
    if policy.keep_every:
        kept |= {step for step in newest if step % policy.keep_every == 0}
    measured = [(score, -step) for step, score in scores.items() if score is not None]
    kept |= {-step for _, step in sorted(measured)[: policy.keep_best]}
    return set(newest) - kept
