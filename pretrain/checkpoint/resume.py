"""Chooses the checkpoint to go on from, the same on all ranks, and loads it at any number of ranks and ZeRO stage."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from configs.common.files import fsync_path
from configs.common.notices import warn
from configs.schema.recipe import Recipe
from pretrain.checkpoint.fragment_files import FragmentReader
from pretrain.checkpoint.latest_pointer import point_latest_at
from pretrain.checkpoint.manifest import (
    DIRECTORY,
    CheckpointInfo,
    DamagedCheckpoint,
    find_damage,
    read_info,
    step_directories,
)
from pretrain.checkpoint.mirror import Mirror, OtherRun
from pretrain.parallel.ranks import Ranks

if TYPE_CHECKING:
    from pretrain.engine.engine import Engine

DAMAGED_SUFFIX = ".damaged"
Gather = Callable[[Any], list[Any]]


@dataclass(frozen=True)
class Problem:
    """A reason why one rank cannot use a checkpoint."""

    kind: Literal["unseen", "damaged"]  # unseen: this rank finds no such directory
    text: str


def newest_checkpoint(recipe: Recipe, ranks: Ranks, gather: Gather, mirror: Mirror | None) -> CheckpointInfo | None:
    """The newest undamaged checkpoint, the same on all ranks; None when the run has not saved any yet.

    Each rank hashes its share of the files. A checkpoint that is damaged for any rank is renamed `.damaged` with a
    warning, then the previous one is tried; when none is left, the mirror's.

    Raises:
        ValueError: when all are damaged, or a rank does not see the run directory's files.
    """
    parent = recipe.run_directory / DIRECTORY
    fetched: set[str] = set()
    while True:
        candidate = gather(_candidate(recipe, mirror, fetched) if ranks.rank == 0 else None)[0]
        if isinstance(candidate, OSError | ValueError):
            raise candidate
        if candidate is None:
            break
        info, problem = _examine(candidate, ranks)
        problems: list[tuple[int, Problem]] = [(rank, one) for rank, one in enumerate(gather(problem)) if one]
        unseen = [one for _, one in problems if one.kind == "unseen"]
        if unseen and len(unseen) < ranks.count:
            raise ValueError(f"{unseen[0].text}; the run directory must lie on a file system that all nodes share")
        if not problems:
            assert info is not None
            if ranks.rank == 0:
                point_latest_at(candidate)
            return info
        if ranks.rank == 0:
            rank, first = problems[0]
            set_aside(candidate, f"rank {rank}: {first.text}" if ranks.count > 1 else first.text)
        gather(None)
    if gather(sorted(parent.glob(f"step_*{DAMAGED_SUFFIX}*")) if ranks.rank == 0 else None)[0]:
        raise ValueError(
            f"{parent} holds only damaged checkpoints; put a whole one there, or remove the damaged ones to train from "
            "the start"
        )
    return None


def _candidate(recipe: Recipe, mirror: Mirror | None, fetched: set[str]) -> Path | OSError | ValueError | None:
    """The newest checkpoint that is not set aside, from the mirror if there is none here; or an error for all ranks."""
    found = step_directories(recipe.run_directory)
    if found or mirror is None:
        return _of_this_run(mirror, recipe.run_directory / DIRECTORY) or found[0] if found else None
    try:
        directory = mirror.fetch(recipe.run_directory / DIRECTORY, fetched)
    except (OSError, ValueError) as error:
        return ValueError(
            f"no checkpoint could be fetched from train.checkpoint.mirror {recipe.train.checkpoint.mirror}: {error}; "
            "make it reachable, or drop it to train without"
        )
    fetched.update([directory.name] if directory else [])
    return directory


def _of_this_run(mirror: Mirror | None, parent: Path) -> OtherRun | None:
    """The error when the mirror belongs to another run; None also when it cannot be reached now."""
    if mirror is not None:
        try:
            mirror.check(parent)
        except OtherRun as error:
            return error
        except Exception as error:  # whatever a store raises: training does not depend on it
            warn(f"train.checkpoint.mirror cannot be looked at now: {error}")
    return None


def _examine(directory: Path, ranks: Ranks) -> tuple[CheckpointInfo | None, Problem | None]:
    """Reads the manifest of a checkpoint, and compares this rank's share of its files with it."""
    if not directory.is_dir():
        return None, Problem("unseen", f"rank {ranks.rank} ({socket.gethostname()}) does not see {directory}")
    try:
        info = read_info(directory)
    except DamagedCheckpoint as error:
        return None, Problem("damaged", str(error))
    damage = find_damage(info, hashes=True, part=slice(ranks.rank, None, ranks.count))
    return info, None if damage is None else Problem("damaged", damage)


def set_aside(directory: Path, problem: str) -> None:
    """Renames a damaged checkpoint and says so."""
    aside = directory.with_name(directory.name + DAMAGED_SUFFIX)
    number = 1
    while aside.exists():
        number += 1
        aside = directory.with_name(f"{directory.name}{DAMAGED_SUFFIX}-{number}")
    directory.rename(aside)
    fsync_path(directory.parent)
    warn(
        f"{directory} is damaged ({problem}); it is now {aside.name}, remove it when you have looked at it, "
        "and the one before it is taken"
    )


def load_checkpoint(engine: Engine, info: CheckpointInfo) -> None:
    """Sets weights, moments and counters on every rank; the number of ranks and the ZeRO stage may have changed."""
    weights = FragmentReader(info.directory, "weights")
    engine.state.set_weights(lambda name: weights.whole(name, info.shapes[name]))
    moments = FragmentReader(info.directory, "optimizer")
    for piece in engine.state.fragments():
        for key, values in piece.moments.items():
            values.copy_(piece.of(moments.part(f"{key}/{piece.name}", piece.offset, piece.span)))
        piece.updates.fill_(info.state["updates"])
    engine.state.set_loss_scale(info.state["loss_scale"])
