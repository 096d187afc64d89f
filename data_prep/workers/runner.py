"""Hands a stage's units of work to the cluster and shows their progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from data_prep.workers.cluster import Cluster
from data_prep.workers.stage import Stage, Unit
from data_prep.workers.stage_progress import report_progress

Task = TypeVar("Task")


@dataclass(frozen=True)
class Runner:
    """Runs the tasks of a recipe's stages on one cluster."""

    cluster: Cluster

    def map(
        self,
        stage: Stage,
        label: str,
        function: Callable[[Task], Any],
        tasks: Sequence[Task],
        size: Callable[[str], float],
        total: float | None,
    ) -> Iterator[tuple[Task, Any]]:
        """Yields each task with its result when it is done.

        Args:
            stage: whose units the tasks commit.
            label: shown beside the progress bar.
            function: what is run.
            tasks: what it is run on.
            size: bytes of text behind a unit, by its name.
            total: bytes of text in all; None: unknown.
        """
        if tasks:
            with report_progress(label, stage, size, total, tasks) as reporter:
                yield from self.cluster.map(function, tasks, reporter.tick)

    def of(self, stage: Stage) -> StageRunner:
        """Returns what runs the units of this stage."""
        return StageRunner(self, stage)


@dataclass(frozen=True)
class StageRunner:
    """Runs the missing units of one stage; a `data_prep.workers.stage.Run`."""

    runner: Runner
    stage: Stage

    def __call__(self, label: str, function: Callable[[Unit], object], tasks: Sequence[Unit]) -> None:
        """Runs the function on every task whose unit is not committed yet."""
        sizes = {task.name: task.bytes for task in tasks}
        missing = self.stage.missing(tasks)
        results = self.runner.map(
            self.stage, label, function, missing, lambda name: sizes.get(name, 0.0), sum(sizes.values())
        )
        for _ in results:  # the units' files hold what matters
            pass
