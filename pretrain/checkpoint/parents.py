"""Knows the checkpoints that a stage reads: its parents, each in a role. Free of torch.

A stage starts from the newest checkpoint of each parent. The checkpoints of the stage say which those were. So a stage
is stale when one of its parents was trained again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from configs.schema.objectives import Preference, ProximalPolicy, Reinforcement
from configs.schema.recipe import Recipe
from pretrain.checkpoint.manifest import CheckpointInfo, newest

PARENTS = "parents"  # in the state: `parents_now` at the first step
PARENT = "the checkpoint of"  # begins the name of a parent in a message


def roles(recipe: Recipe) -> dict[str, str]:
    """Maps each role to the stage (or `base`) whose weights play it; empty for a run that is no stage.

    policy: the weights that training starts from. reference: those that the policy is compared with. reward: those of
    the reward model. critic: those that the critic starts from.
    """
    if not recipe.parents:
        return {}
    own, objective = next(iter(recipe.parents)), recipe.train.objective
    found = {"policy": own}
    if isinstance(objective, Preference) and objective.needs_reference:
        found["reference"] = own
    if isinstance(objective, Reinforcement):
        if objective.kl.compares:
            found["reference"] = own
        if objective.rewards.model is not None:
            found["reward"] = objective.rewards.model.stage
    if isinstance(objective, ProximalPolicy):
        found["critic"] = objective.critic_from or own
    return found


def parents_now(recipe: Recipe) -> list[dict[str, Any]]:
    """Lists role, stage, directory, step and fingerprint of the newest checkpoint of each parent that has one."""
    found = []
    for role, stage in roles(recipe).items():
        info = newest(Path(recipe.parents[stage]))
        if info is not None:
            identity = {"directory": str(info.directory), "step": info.step, "fingerprint": info.fingerprint}
            found.append({"role": role, "stage": stage, **identity})
    return found


def changed_parents(info: CheckpointInfo, recipe: Recipe) -> dict[str, tuple[str, str]]:
    """Finds parents that have another checkpoint now: name -> (then, now). A parent that is gone has not changed."""
    before = {entry["role"]: entry for entry in info.state.get(PARENTS) or []}
    changed: dict[tuple[str, str, str], list[str]] = {}
    for now in parents_now(recipe):
        then = before.get(now["role"])
        if then is not None and then["fingerprint"] != now["fingerprint"]:
            changed.setdefault((now["stage"], _short(then), _short(now)), []).append(now["role"])
    return {f"{PARENT} `{stage}` ({', '.join(as_)})": (was, now) for (stage, was, now), as_ in changed.items()}


def _short(entry: dict[str, Any]) -> str:
    return f"step {entry['step']} ({entry['fingerprint'][:8]})"
