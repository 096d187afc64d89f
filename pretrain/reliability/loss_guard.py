"""Detects loss spikes and non-finite losses before the update; records, skips, rewinds or stops.

A *skipped* step makes no update; every other step reads the batch that it would have read anyway. So what a run
computes stays a pure function of (recipe, skipped ranges, step), and the ranges are kept in the run directory and in
every checkpoint: a resumed run, or one that is made again with the same `skipped.json`, skips the same.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.common.files import read_json, write_json
from configs.common.notices import say
from configs.schema.recipe import Recipe
from pretrain.batches.trace import SpansOf
from pretrain.engine.non_finite import NonFiniteLoss
from pretrain.parallel.ranks import Ranks

SKIPPED = "skipped.json"
RECORDS = "faults"
_MAD_TO_SIGMA = 1.4826  # of a normal distribution
_LEAST_SIGMA = 0.005  # of the median: a loss that hardly moves must not make a spike of rounding
_NAMED_DOCUMENTS = 3


class LossSpike(ValueError):
    """A loss spike that the recipe lets stop the run; its update was not made."""


class Rewind(Exception):
    """Training must go on from the newest checkpoint; the steps to skip from there are in the lineage."""


def check_validation(step: int, values: dict[str, float]) -> None:
    """Raises `ValueError` when the validation loss after `step` updates is not finite.

    Every rank has the same values. A batch's loss is looked at before its update, so what the last update of a run did
    shows here alone.
    """
    loss = values.get("val/loss", 0.0)
    if not math.isfinite(loss):
        raise ValueError(
            f"the validation loss after step {step} is {loss}: training diverged, and this step is not saved. Lower "
            "train.optimizer.lr or lengthen the warm-up, and start a new run with another --out"
        )


@dataclass(frozen=True)
class Skipped:
    """A range of steps without updates, counted from 1 as in metrics.jsonl, both ends included."""

    first: int
    last: int
    action: str  # skip or rewind
    reason: str


class Lineage:
    """The skipped ranges of a run."""

    def __init__(self, run: Path, checkpoint_step: int, of_checkpoint: list[dict[str, Any]]) -> None:
        """`of_checkpoint` is the `Lineage.entries` that the checkpoint of `checkpoint_step` updates was saved with.

        Raises:
            ValueError: when that checkpoint made an update that the run directory's file says to skip.
        """
        self._file = run / SKIPPED
        trained = [Skipped(**entry) for entry in of_checkpoint]
        kept = [Skipped(**entry) for entry in read_json(self._file)] if self._file.is_file() else []
        for entry in kept:
            if entry.first <= checkpoint_step and entry not in trained:
                raise ValueError(
                    f"{self._file} skips the steps {entry.first} to {entry.last}, but the checkpoint of step "
                    f"{checkpoint_step} was trained on them; take the entry out, or start a new run with another --out"
                )
        self.all = trained + [entry for entry in kept if entry not in trained]

    def __contains__(self, step: int) -> bool:
        """Whether the step (counted from 0) makes no update."""
        return any(entry.first <= step + 1 <= entry.last for entry in self.all)

    @property
    def entries(self) -> list[dict[str, Any]]:
        """For a checkpoint's manifest."""
        return [asdict(entry) for entry in self.all]

    def add(self, entry: Skipped, write: bool) -> None:
        """Adds a range; on the main rank (`write`) durably, before training goes on."""
        self.all.append(entry)
        if write:
            write_json(self._file, self.entries)


def robust_z(loss: float, before: list[float]) -> float:
    """How many robust standard deviations `loss` lies above the median of `before` (Iglewicz and Hoaglin 1993)."""
    median = statistics.median(before)
    mad = statistics.median(abs(value - median) for value in before)
    return (loss - median) / max(_MAD_TO_SIGMA * mad, _LEAST_SIGMA * abs(median), 1e-12)


class LossHistory:
    """The last losses of updates that were made, which the next loss is compared with."""

    def __init__(self, losses: Iterable[float], length: int) -> None:
        self._losses: deque[float] = deque(losses, maxlen=length)
        self._needed = length // 2  # below it the median says little

    def __len__(self) -> int:
        return len(self._losses)

    @property
    def losses(self) -> list[float]:
        """For a checkpoint, oldest first."""
        return list(self._losses)

    def z(self, loss: float) -> float:
        """`robust_z` of a loss; 0 until half of the history is there."""
        return robust_z(loss, list(self._losses)) if len(self._losses) >= self._needed else 0.0

    def add(self, loss: float) -> None:
        """Adds the loss of an update that is made."""
        self._losses.append(loss)


class LossGuard:
    """Decides before each update whether it is made. All ranks see the same losses, so they decide the same."""

    def __init__(
        self,
        recipe: Recipe,
        checkpoint_step: int,
        state: dict[str, Any],
        ranks: Ranks,
        spans_of: SpansOf,
        watched: str | None = "loss",
    ) -> None:
        """Goes on from the checkpoint of `checkpoint_step` updates.

        Args:
            recipe: says what to do about which losses, and in which run directory to record them.
            checkpoint_step: updates made before.
            state: `LossGuard.state` of that checkpoint; empty at the start of a run.
            ranks: this process among those of the run.
            spans_of: finds what the given ranks read in a step, counted from 0.
            watched: what is compared with the steps before: `loss`, one of the objective's statistics, or nothing.
        """
        self._run, self._settings = recipe.run_directory, recipe.train.faults
        self.lineage = Lineage(self._run, checkpoint_step, state.get("skipped", []))
        self._saved_step, self._ranks, self._spans_of, self._watched = checkpoint_step, ranks, spans_of, watched
        self._history = LossHistory(state.get("losses", []), self._settings.window)

    @property
    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"losses": self._history.losses, "skipped": self.lineage.entries}

    def saved(self, step: int) -> None:
        """Notes that the newest checkpoint is now that of `step` updates: a rewind goes back to it."""
        self._saved_step = step

    def decide(self, step: int, loss: float, statistics: dict[str, float]) -> bool:
        """Whether the update of `step` (from 0) is made.

        Raises:
            LossSpike, Rewind: as the recipe says.
        """
        if self._watched is None:
            return True
        name, value = self._watched, loss if self._watched == "loss" else statistics[self._watched]
        z = self._history.z(value)
        if z > self._settings.zscore:
            reason = (
                f"{name} {value:.4g}, {z:.1f} robust standard deviations above the median of {len(self._history)} steps"
            )
            file = self._record(step, reason, {name: value, "z": z}, range(self._ranks.count))
            if self._settings.action != "record":
                self._act(step, reason, file, LossSpike)
                return False
            self._print(f"step {step + 1}: {reason}; its documents are in {file}")
        self._history.add(value)
        return True

    def handle_non_finite(self, step: int, error: NonFiniteLoss) -> None:
        """Acts on a loss or gradient that is not finite; returns when the step is skipped.

        Raises:
            NonFiniteLoss, Rewind: as the recipe says; the former names documents.
        """
        file = self._record(step, str(error), {"loss": None, "z": None}, error.ranks)
        if self._settings.action in ("record", "stop"):
            names = list(dict.fromkeys(f"{span.source} {span.id}" for span in self._spans_of(step, error.ranks)))
            shown = ", ".join(names[:_NAMED_DOCUMENTS]) + (", …" if len(names) > _NAMED_DOCUMENTS else "")
            reason = f"{error} (documents: {shown}; all of them in {file})"
            raise NonFiniteLoss(reason, error.ranks) from error
        self._act(step, str(error), file, lambda text: NonFiniteLoss(text, error.ranks))

    def _act(self, step: int, reason: str, file: Path, make_error: Callable[[str], Exception]) -> None:
        """Skips, rewinds or stops as the recipe says."""
        action, skips = self._settings.action, len(self.lineage.all)
        if action == "stop":
            raise make_error(f"step {step + 1}: {reason}; its update was not made. Its documents are in {file}")
        if skips >= self._settings.max_skips:
            raise make_error(
                f"step {step + 1}: {reason}; this run has skipped {skips} times already (train.faults.max_skips). "
                f"Look at the documents in {file}, and lower train.optimizer.lr or raise the limit"
            )
        first = step + 1
        if action == "rewind":
            first = max(self._saved_step + 1, first + 1 - (self._settings.rewind_steps or first))
        self.lineage.add(Skipped(first, step + 1, action, reason), write=self._ranks.rank == 0)
        self._print(
            f"step {step + 1}: {reason}; {action}: no updates in steps {first} to {step + 1}. Documents: {file}"
        )
        if action == "rewind":
            raise Rewind

    def _record(self, step: int, reason: str, values: dict[str, Any], ranks: Collection[int]) -> Path:
        """Writes what happened in `step`, and what these ranks read; returns the file."""
        file = self._run / RECORDS / f"step_{step + 1:08d}.json"
        if self._ranks.rank == 0:
            content = {"step": step + 1, "reason": reason, "action": self._settings.action, "ranks": list(ranks)}
            write_json(file, {**content, **values, "documents": [asdict(span) for span in self._spans_of(step, ranks)]})
        return file

    def _print(self, text: str) -> None:
        if self._ranks.rank == 0:
            say(text)
