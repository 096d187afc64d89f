"""Keeps what each evaluation during training found, with intervals, texts and failures: `RUN/evaluations.jsonl`.

It is to the curves of `metrics.jsonl` what `results.json` is to a table: the report is made from it. A resumed run cuts
off what comes after its checkpoint, so that each step stands once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from eval.results import Failure, Result, Sample, as_json, from_json
from pretrain.metrics.metrics_file import JsonLines, read_metrics

NAME = "evaluations"


@dataclass(frozen=True)
class Record:
    """One evaluation during training.

    Attributes:
        step: updates made.
        seconds: time of the evaluation.
        unfinished: parts that `max_seconds` left no time for.
        remarks: findings in words, by key; see `eval.remarks`.
    """

    step: int
    seconds: float
    results: list[Result] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    remarks: dict[str, str] = field(default_factory=dict)


class Recorder:
    """Appends to a run's record."""

    def __init__(self, run: Path, start_step: int) -> None:
        """Cuts off what comes after `start_step`."""
        self._lines = JsonLines(run, start_step, name=NAME)

    def add(self, record: Record) -> None:
        """Writes one line."""
        values: dict[str, Any] = {
            "seconds": round(record.seconds, 3),
            "results": [as_json(one) for one in record.results],
            "samples": [asdict(one) for one in record.samples],
            "failures": [asdict(one) for one in record.failures],
            "unfinished": record.unfinished,
            "remarks": record.remarks,
        }
        self._lines.log(record.step, values)

    def close(self) -> None:
        """Flushes and closes."""
        self._lines.close()


def read_records(run: Path) -> Iterator[Record]:
    """Yields the evaluations of a run in the order of their steps; none where nothing was scored during training.

    Raises:
        ValueError: a whole line is damaged.
    """
    for line in read_metrics(run, NAME):
        try:
            yield Record(
                int(line["step"]),
                float(line["seconds"]),
                [from_json(one) for one in line["results"]],
                [Sample(**one) for one in line["samples"]],
                [Failure(**one) for one in line["failures"]],
                list(line["unfinished"]),
                dict(line["remarks"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{run / NAME}.jsonl: step {line.get('step')} is damaged ({error}); remove it") from error
