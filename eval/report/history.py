"""Reads `metrics.jsonl` of a run as series over training steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pretrain.metrics.metrics_file import read_metrics


@dataclass
class History:
    """Logged metrics of training: metric name -> [(step, value)], in order of steps."""

    series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def get(self, name: str) -> list[tuple[float, float]]:
        """Returns the points of a metric; empty if it was not logged."""
        return self.series.get(name, [])

    def last(self, name: str) -> float | None:
        """Returns the newest value of a metric."""
        points = self.get(name)
        return points[-1][1] if points else None

    def seconds(self) -> list[tuple[float, float]]:
        """Returns the time of training up to each logged step: tokens / throughput of each interval, without pauses."""
        speed, before, total = dict(self.get("train/tokens_per_s")), 0.0, 0.0
        points = []
        for step, seen in self.get("tokens"):
            if speed.get(step):
                total += (seen - before) / speed[step]
                before = seen
                points.append((step, total))
        return points

    def until(self, step: float) -> History:
        """Returns the history up to this step."""
        return History({name: [point for point in points if point[0] <= step] for name, points in self.series.items()})

    @property
    def steps(self) -> float:
        """The newest step of all metrics."""
        return max((points[-1][0] for points in self.series.values() if points), default=0.0)


def read_history(run: Path) -> History:
    """Reads the metrics of a run. If a resumed run logged a step twice, the last value is used.

    Raises:
        ValueError: when a line other than an unfinished last one is not JSON.
    """
    values: dict[str, dict[float, float]] = {}
    for record in read_metrics(run):
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                values.setdefault(name, {})[float(record["step"])] = float(value)
    return History({name: sorted(points.items()) for name, points in values.items()})
