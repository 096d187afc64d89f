"""Solves the batch equation and the number of steps: the one place where both are computed."""

from __future__ import annotations

from pydantic import BaseModel

from configs.schema.objectives import unit_of
from configs.schema.recipe import Recipe
from configs.schema.train import Train

MOST_AUTOMATIC_MICRO_BATCH = 16  # sequences; larger ones fill a GPU no better, and may not fit


class BatchPlan(BaseModel):
    """A solution of: global batch = micro-batch x accumulation x ranks / ranks that share a row, in sequences."""

    global_batch: int
    micro_batch: int
    accumulation: int
    ranks: int
    problems: list[str] = []  # what does not divide; the plan is rounded down then


def plan_batch(train: Train, ranks: int) -> BatchPlan:
    """Solves the batch equation, or comes close to a solution and lists the numbers that do not divide.

    Raises:
        ValueError: when the ranks cannot share rows, or there are more of them than rows.
    """
    total, sharing = train.global_batch_size, train.parallel.sharing
    if ranks % sharing:
        name = "tensor" if train.parallel.tensor > 1 else "sequence"
        raise ValueError(
            f"train.parallel.{name} {sharing} does not divide {ranks} ranks; change it or the number of ranks"
        )
    groups, problems = ranks // sharing, list[str]()
    per_rank, rest = divmod(total, groups)
    if not per_rank:
        raise ValueError(f"train.global_batch_size {total} is less than {groups} ranks; raise it, or use fewer ranks")
    if rest:
        problems.append(
            f"train.global_batch_size {total} cannot be divided over {groups} ranks; make it a multiple of {groups}"
        )
    together = 2 if unit_of(train.objective) == "pair" else 1  # both rows of a pair are compared with each other
    if not rest and per_rank % together:
        problems.append(
            f"train.global_batch_size {total} over {groups} ranks is {per_rank} sequences per rank, and a pair is two; "
            f"make it a multiple of {2 * groups}"
        )
        together = 1
    micro, problem = _micro_batch(train, per_rank, together)
    if problem:
        problems.append(
            f"train.global_batch_size {total} over {groups} ranks is {per_rank} sequences per rank, {problem}"
        )
    micro = min(micro, per_rank)
    sizes = {"micro_batch": micro, "accumulation": per_rank // micro}
    return BatchPlan(global_batch=total, **sizes, ranks=ranks, problems=problems)


def _micro_batch(train: Train, per_rank: int, together: int) -> tuple[int, str]:
    """The rows of a micro-batch, a multiple of `together`, and what is wrong with the recipe's."""
    micro = train.micro_batch_size
    if micro is None:
        most = min(per_rank, MOST_AUTOMATIC_MICRO_BATCH)
        return max((size for size in range(together, most + 1, together) if per_rank % size == 0), default=1), ""
    if micro % together:
        return micro, f"and train.micro_batch_size {micro} would part a pair, which is two; make it even"
    return micro, f"not a multiple of train.micro_batch_size {micro}; change one of them" if per_rank % micro else ""


def solve_batch(train: Train, ranks: int) -> BatchPlan:
    """Returns the exact solution of the batch equation.

    Raises:
        ValueError: when the global batch cannot be divided over these ranks and micro-batches.
    """
    plan = plan_batch(train, ranks)
    if plan.problems:
        raise ValueError(plan.problems[0])
    return plan


def total_steps(recipe: Recipe, train_windows: int) -> int:
    """Computes the optimizer steps of the run.

    `train_windows`: rows that an epoch of the training split gives, used for epochs: windows, or the rows of its units.
    """
    train = recipe.train
    if train.steps is not None:
        return train.steps
    if train.tokens is not None:
        return -(-train.tokens // (train.global_batch_size * recipe.model.context_length))
    assert train.epochs is not None
    return max(1, -(-int(train.epochs * train_windows) // train.global_batch_size))
