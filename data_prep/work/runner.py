"""Hands a stage's units of work to the cluster and shows how far they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from data_prep.work.cluster import Cluster
from data_prep.work.stage import Stage
from data_prep.work.stage_progress import watch
from data_prep.work.verdicts import Run

Task = TypeVar("Task")


@dataclass(frozen=True)
class Runner:
    """Runs units of work of a recipe's stages."""

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
        """Yields each task with its result as they are done; `size` gives the bytes of text behind a unit's name."""
        if tasks:
            with watch(label, stage, size, total, tasks) as watcher:
                yield from self.cluster.map(function, tasks, watcher.tick)

    def of(self, stage: Stage) -> Run:
        """`map` for one stage, without results."""

        def run(
            label: str,
            function: Callable[[Any], Any],
            tasks: Sequence[Any],
            size: Callable[[str], float],
            total: float,
        ) -> None:
            for _ in self.map(stage, label, function, tasks, size, total):
                pass

        return run
