"""Writes checkpoints: each rank its own pieces, beside training; all are committed together.

A save copies this rank's pieces to host memory, which is all that training waits for. A thread then writes, hashes and
flushes them; when all ranks have done so, the main one writes the manifest, renames the directory and moves `latest`,
and only when all ranks know of that the checkpoint counts. There is one copy at a time: the next save waits for the
thread. The threads talk over a group of processes of their own. No rank ever holds more than its own pieces.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from configs.common.files import (
    TEMPORARY_SUFFIX,
    copy_directory,
    fingerprint,
    fsync_path,
    remove_leftovers,
    sha256_file,
    temporary_beside,
    write_json,
)
from configs.common.notices import warn
from configs.schema.recipe import Recipe, save_published
from data_prep.tokens.shards import DataManifest
from pretrain.checkpoint.fragment_files import HostCopy, write_pieces
from pretrain.checkpoint.latest_pointer import point_latest_at
from pretrain.checkpoint.manifest import (
    DIRECTORY,
    MANIFEST,
    TOKENIZER,
    CheckpointInfo,
    all_checkpoints,
    manifest_content,
)
from pretrain.checkpoint.mirror import Mirror
from pretrain.checkpoint.ranking import penalty
from pretrain.checkpoint.retention import expired
from pretrain.parallel.collectives import background_group, gather
from pretrain.parallel.ranks import Ranks

if TYPE_CHECKING:
    from pretrain.engine.engine import Engine


@dataclass(frozen=True)
class Snapshot:
    """The state after one step that becomes a checkpoint: all of it but the recipe and the data."""

    step: int
    train_windows: int
    state: dict[str, Any]
    shapes: dict[str, list[int]]
    tensors: dict[str, dict[str, Tensor]]  # as `HostCopy` gives them

    @classmethod
    def of_model(cls, model: nn.Module) -> Snapshot:
        """The weights of a whole model in one process, at step 0 and without an optimizer."""
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        shapes = {name: list(value.shape) for name, value in weights.items()}
        pieces = {f"{name}@0": value.flatten() for name, value in weights.items()}
        return cls(0, 0, {}, shapes, {"weights": pieces, "optimizer": {}})


class Saver:
    """Saves the checkpoints of one training session. Every rank makes one, and all call it at the same steps."""

    def __init__(self, engine: Engine, recipe: Recipe, data: DataManifest, windows: int, mirror: Mirror | None) -> None:
        """Takes the windows of the training split, and the main rank's mirror, which is closed with the saver."""
        self._engine, self._recipe, self._data, self._windows = engine, recipe, data, windows
        self._policy = recipe.train.checkpoint
        self._mirror = mirror if engine.is_main else None
        self._copy = HostCopy()
        self._thread: threading.Thread | None = None
        self._failure: tuple[int, BaseException] | None = None
        self._open = ExitStack()
        group = self._open.enter_context(background_group())
        self._gather: Callable[[Any], list[Any]] = lambda value: gather(value, group)
        if self._policy.asynchronous:  # the first touch of the buffers is slow, and is done before training starts
            self._copy.take(engine.state.own_fragments())

    def save(self, step: int, state: dict[str, Any], last: bool) -> None:
        """Saves the state after `step` updates; returns once it is copied, or, if it is the `last`, committed.

        Raises:
            OSError: when the last one could not be written; before that it is a warning, and training
                goes on to the next save.
        """
        self.wait()
        engine = self._engine
        # The sums in `state` go on changing while the thread writes.
        tensors = self._copy.take(engine.state.own_fragments())
        snapshot = Snapshot(step, self._windows, deepcopy(state), engine.state.shapes(), tensors)
        if self._policy.asynchronous and not last:
            self._thread = threading.Thread(target=self._write, args=(snapshot,), name="checkpoint", daemon=True)
            self._thread.start()
            return
        self._write(snapshot)
        self._surface(last)

    def poll(self) -> None:
        """Warns of, or raises, what went wrong with a save that has ended since. Call it between steps."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Waits until the save under way counts on all ranks, or has failed on all."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._surface(last=False)

    def close(self) -> None:
        """Waits for the save and the upload under way; raises nothing of theirs."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            self._warn(*self._failure, "training has ended")
        if self._mirror is not None:
            self._mirror.close()
        self._open.close()

    def _write(self, snapshot: Snapshot) -> None:
        try:
            directory = commit_checkpoint(snapshot, self._recipe, self._data, self._engine.ranks, self._gather)
        except Exception as error:
            self._failure = (snapshot.step, error)  # raised where training looks next
            return
        if self._engine.is_main:
            self._tidy(directory)

    def _tidy(self, newest: Path) -> None:
        """Removes what the recipe does not keep, now that a newer one is complete; hands the newest to the mirror."""
        try:
            remove_expired(self._recipe, spare=self._mirror.sending if self._mirror else None)
        except OSError as error:
            warn(f"an old checkpoint could not be removed: {error}")
        if self._mirror is not None:
            self._mirror.send(newest)

    def _surface(self, last: bool) -> None:
        if self._failure is None:
            return
        (step, error), self._failure = self._failure, None
        if last or not isinstance(error, OSError):
            raise error
        self._warn(step, error, f"training goes on and tries again after {self._policy.every:,} steps")

    def _warn(self, step: int, error: BaseException, then: str) -> None:
        if self._engine.is_main:
            parent = self._recipe.run_directory / DIRECTORY
            free = shutil.disk_usage(self._recipe.run_directory).free / 1e6
            warn(
                f"the checkpoint of step {step:,} could not be written to {parent} ({free:,.0f} MB free): "
                f"{error}; older checkpoints are untouched, {then}"
            )


def commit_checkpoint(
    snapshot: Snapshot, recipe: Recipe, data: DataManifest, ranks: Ranks, gather: Callable[[Any], list[Any]]
) -> Path:
    """Makes a checkpoint of all ranks' snapshots; returns its directory when every rank knows that it is complete.

    Args:
        snapshot: this rank's.
        recipe: says in which run directory.
        data: whose fingerprint and tokenizer the checkpoint keeps.
        ranks: this process among those that write.
        gather: the values of all ranks, in their order; with one process `lambda value: [value]`.

    Raises:
        OSError: on every rank, when one of them could not write; nothing half-written stays behind.
    """
    parent = recipe.run_directory / DIRECTORY
    target = parent / f"step_{snapshot.step:08d}"
    partial = parent / f".{target.name}{TEMPORARY_SUFFIX}"

    def prepare() -> None:
        parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(parent)
        partial.mkdir()

    def finish() -> None:
        save_published(recipe, partial)
        copy_directory(data.tokenizer, partial / TOKENIZER)
        for file in partial.rglob("*"):
            fsync_path(file)
            name = str(file.relative_to(partial))
            if file.is_file() and name not in files:  # the ranks hashed their own while they wrote them
                files[name] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
        content = {
            "step": snapshot.step,
            "train_windows": snapshot.train_windows,
            "fingerprint": fingerprint(files),
            "data_fingerprint": data.fingerprint,
            "tokenizer_fingerprint": data.tokenizer_fingerprint,
            "state": snapshot.state,
            "shapes": snapshot.shapes,
            "files": files,
        }
        write_json(partial / MANIFEST, manifest_content(content))
        _replace(partial, target)
        point_latest_at(target)

    main = ranks.rank == 0
    try:
        _together(gather, prepare if main else None)
        parts = _together(gather, lambda: write_pieces(snapshot.tensors, partial, ranks))
        files = {name: identity for part in parts for name, identity in part.items()}
        _together(gather, finish if main else None)
    except BaseException:
        if main:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return target


def _replace(partial: Path, target: Path) -> None:
    """Gives the directory its final name, after removing one that has it."""
    fsync_path(partial)
    if target.exists():
        remove_directory(target)
    partial.rename(target)
    fsync_path(target.parent)


def remove_directory(directory: Path) -> None:
    """Removes a checkpoint under another name, so that a kill in between leaves no half of one."""
    aside = temporary_beside(directory)
    directory.rename(aside)
    shutil.rmtree(aside)


def remove_expired(recipe: Recipe, spare: str | None = None) -> None:
    """Removes the checkpoints that the recipe does not keep; `spare`: the name of one that is being read."""
    found: dict[int, Path] = {}
    policy = recipe.train.checkpoint
    scores: dict[int, float | None] = {}
    for info in all_checkpoints(recipe.run_directory):
        if isinstance(info, CheckpointInfo):  # a damaged one is set aside when training starts again
            found[info.step], scores[info.step] = info.directory, penalty(info.state, policy)
    for step in expired(scores, policy):
        if found[step].name != spare:
            remove_directory(found[step])


def _together(gather: Callable[[Any], list[Any]], work: Callable[[], Any] | None) -> list[Any]:
    """Does this rank's work and waits for all; an error of one rank is raised on all."""
    result, error = None, None
    try:
        result = work() if work is not None else None
    except Exception as problem:
        error = problem
    outcomes = gather((result, error))
    for _, error in outcomes:
        if error is not None:
            raise error
    return [result for result, _ in outcomes]
