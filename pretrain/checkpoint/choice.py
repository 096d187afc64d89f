"""Chooses the checkpoint of a run that is scored, sampled or exported. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from configs.common.notices import warn
from configs.schema.recipe import RESOLVED_NAME, load
from configs.schema.train import CheckpointPolicy
from pretrain.checkpoint.manifest import (
    DIRECTORY,
    MEASURED,
    CheckpointInfo,
    DamagedCheckpoint,
    all_checkpoints,
    find_damage,
    read_info,
    step_directories,
)
from pretrain.checkpoint.ranking import penalty


@dataclass(frozen=True)
class Choice:
    """Which checkpoint of a run is meant: of a step, the best by `train.checkpoint.best_by`, or else the newest."""

    step: int | None = None
    best: bool = False

    def find(self, run: Path) -> CheckpointInfo:
        """The checkpoint. Prints nothing; `choose_checkpoint` also warns of those that were passed over.

        Raises:
            ValueError: when there is none, or more than one is asked for.
        """
        if self.best and self.step is not None:
            raise ValueError("give --step or --best, not both")
        if self.best:
            return best_checkpoint(run)
        if self.step is not None:
            return checkpoint_of_step(run, self.step)
        damaged = None
        for found in all_checkpoints(run):
            if isinstance(found, CheckpointInfo):
                return found
            damaged = damaged or found
        if damaged is not None:
            raise ValueError(
                f"{run} has only damaged checkpoints ({damaged.directory.name}: {damaged}); put a whole one there"
            )
        raise ValueError(f"{run} has no checkpoint yet; train first: replica train {run / RESOLVED_NAME} --out {run}")

    def __str__(self) -> str:
        return "the best" if self.best else "the newest" if self.step is None else f"step {self.step}"


def choose_checkpoint(run: Path, choice: Choice) -> CheckpointInfo:
    """The checkpoint that a command works on; warns on standard error of damaged ones that might have been chosen.

    Raises:
        ValueError: as `Choice.find`.
    """
    chosen = choice.find(run)
    if choice.step is None:
        for found in all_checkpoints(run):
            if isinstance(found, DamagedCheckpoint):
                name = chosen.directory.name
                warn(f"{found.directory} is damaged: {found}; {name} is used")
            elif found.directory == chosen.directory and not choice.best:
                break
    return chosen


def checkpoint_of_step(run: Path, step: int) -> CheckpointInfo:
    """The checkpoint of a step.

    Raises:
        ValueError: when there is none, or it is damaged; names those that there are.
    """
    directory = run / DIRECTORY / f"step_{step:08d}"
    if directory not in step_directories(run):
        kept = ", ".join(str(int(path.name.removeprefix("step_"))) for path in reversed(step_directories(run)))
        raise ValueError(f"{run} has no checkpoint of step {step}; it has those of steps {kept or '(none)'}")
    info = read_info(directory)
    if problem := find_damage(info):
        raise ValueError(f"{directory} is damaged: {problem}; choose another step")
    return info


def best_checkpoint(run: Path) -> CheckpointInfo:
    """The undamaged checkpoint that is best by `train.checkpoint.best_by` of the run, the newest of equal ones.

    Raises:
        ValueError: when that was measured of no checkpoint.
    """
    policy = _policy(run)
    whole = [found for found in all_checkpoints(run) if isinstance(found, CheckpointInfo)]
    ranked = [(penalty(info.state, policy), -info.step, info) for info in whole]
    measured = [(least, step, info) for least, step, info in ranked if least is not None]
    if not measured:
        known = sorted({curve for info in whole for curve in info.state.get(MEASURED, {})})
        what = "a validation loss" if policy.best_by == "val/loss" else f"a value of {policy.best_by}"
        raise ValueError(
            f"{run} has no checkpoint with {what}; choose one with --step, or train with train.checkpoint.every as a "
            "multiple of the steps between its measurements"
            + (f" (measured: {', '.join(known)}; train.checkpoint.best_by chooses)" if known else "")
        )
    return min(measured, key=lambda entry: entry[:2])[2]


def _policy(run: Path) -> CheckpointPolicy:
    """What the run says about its checkpoints; the defaults for one without a recipe."""
    file = run / RESOLVED_NAME
    return load(file).train.checkpoint if file.is_file() else CheckpointPolicy()
