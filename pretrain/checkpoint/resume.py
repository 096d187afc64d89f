"""Choosing the checkpoint to go on from, all ranks the same one, and loading it at any ranks and ZeRO stage."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.common.files import fsync_path
from configs.schema.recipe import Recipe
from pretrain.checkpoint.fragment_files import FragmentReader
from pretrain.checkpoint.manifest import (
    DIRECTORY,
    CheckpointInfo,
    DamagedCheckpoint,
    find_damage,
    point_latest_at,
    read_info,
    step_directories,
)
from pretrain.checkpoint.mirror import Mirror, OtherRun
from pretrain.parallel.ranks import Ranks

if TYPE_CHECKING:
    from pretrain.engine.engine import Engine

DAMAGED_SUFFIX = ".damaged"
Gather = Callable[[Any], list[Any]]


def newest_checkpoint(recipe: Recipe, ranks: Ranks, gather: Gather, mirror: Mirror | None) -> CheckpointInfo | None:
    """The newest undamaged checkpoint, the same on all ranks; None when the run has not saved any yet.

    Each rank hashes its share of the files. One that is damaged for any rank gets the suffix `.damaged`, aloud, and the
    one before it is looked at; when none is left, the mirror's.

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
        info, problem = _look(candidate, ranks)
        problems = [(rank, text) for rank, text in enumerate(gather(problem)) if text is not None]
        unseen = [text for _, text in problems if text.startswith(_UNSEEN)]
        if unseen and len(unseen) < ranks.count:
            raise ValueError(f"{unseen[0]}; the run directory must lie on a file system that all nodes share")
        if not problems:
            assert info is not None
            if ranks.rank == 0:
                point_latest_at(candidate)
            return info
        if ranks.rank == 0:
            set_aside(candidate, f"rank {problems[0][0]}: {problems[0][1]}" if ranks.count > 1 else problems[0][1])
        gather(None)
    if gather(sorted(parent.glob(f"step_*{DAMAGED_SUFFIX}*")) if ranks.rank == 0 else None)[0]:
        raise ValueError(
            f"{parent} holds only damaged checkpoints; put a whole one there, or remove the damaged ones to train from "
            "the start"
        )
    return None


_UNSEEN = "nothing is seen of"


def _candidate(recipe: Recipe, mirror: Mirror | None, fetched: set[str]) -> Path | OSError | ValueError | None:
    """The newest checkpoint that has not been set aside, fetched if need be; an error is for all ranks to raise."""
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
    """What is wrong when the mirror is another run's; whether it can be reached is seen when it is written to."""
    if mirror is not None:
        try:
            mirror.check(parent)
        except OtherRun as error:
            return error
        except Exception as error:  # whatever a store raises: training does not depend on it
            print(f"warning: train.checkpoint.mirror cannot be looked at now: {error}", file=sys.stderr)
    return None


def _look(directory: Path, ranks: Ranks) -> tuple[CheckpointInfo | None, str | None]:
    if not directory.is_dir():
        return None, f"{_UNSEEN} {directory} on rank {ranks.rank} ({socket.gethostname()})"
    try:
        info = read_info(directory)
    except DamagedCheckpoint as error:
        return None, str(error)
    return info, find_damage(info, hashes=True, part=slice(ranks.rank, None, ranks.count))


def set_aside(directory: Path, problem: str) -> None:
    """Renames a damaged checkpoint and says so."""
    aside = directory.with_name(directory.name + DAMAGED_SUFFIX)
    number = 1
    while aside.exists():
        number += 1
        aside = directory.with_name(f"{directory.name}{DAMAGED_SUFFIX}-{number}")
    directory.rename(aside)
    fsync_path(directory.parent)
    print(
        f"warning: {directory} is damaged ({problem}); it is now {aside.name}, remove it when you have looked at it, "
        "and the one before it is taken",
        file=sys.stderr,
    )


def load_checkpoint(engine: Engine, info: CheckpointInfo) -> None:
    """Sets weights, moments and counters on every rank; the number of ranks and the ZeRO stage may have changed."""
    weights = FragmentReader(info.directory, "weights")
    engine.set_weights(lambda name: weights.whole(name, info.shapes[name]))
    moments = FragmentReader(info.directory, "optimizer")
    for piece in engine.fragments():
        for key, values in piece.moments.items():
            values.copy_(piece.of(moments.part(f"{key}/{piece.name}", piece.offset, piece.span)))
        piece.updates.fill_(info.state["updates"])
    engine.set_loss_scale(info.state["loss_scale"])
