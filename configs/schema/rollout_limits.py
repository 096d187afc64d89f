"""Checks that the sizes of a rollout fit the rest of `train`."""

from __future__ import annotations

from configs.schema.objectives import GroupPolicy, ProximalPolicy
from configs.schema.train import Train


def check_rollouts(train: Train) -> None:
    """Raises `ValueError` when the sizes or settings of a recipe do not fit its rollouts; others pass."""
    objective = train.objective
    if not isinstance(objective, GroupPolicy | ProximalPolicy):
        return
    rollout, rows = objective.rollout, objective.rollout.rows_per_step
    if train.global_batch_size != rows:
        raise ValueError(
            f"a rollout of {rollout.prompts} prompts x {rollout.samples} samples x {rollout.passes} passes over "
            f"{rollout.updates} updates gives {rows} sequences per step, but train.global_batch_size is "
            f"{train.global_batch_size}; make it {rows}"
        )
    if train.checkpoint.every % rollout.updates:
        raise ValueError(
            f"training is saved between rollouts, and a rollout feeds {rollout.updates} steps; make "
            f"train.checkpoint.every {train.checkpoint.every} a multiple of {rollout.updates}"
        )
