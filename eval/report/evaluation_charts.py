"""Draws what was scored during training: a chart for each score, with its interval and the level of guessing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from configs.common.rendering import short
from eval.in_training.record import Record
from eval.report.charts import Axes, Point, Series, line_chart
from eval.results import Result, ScoreName

_MOST_CHARTS = 24
_SHOWN_SAMPLES = 3  # steps
# Of the metrics of a kind, those that tell most.
_METRICS = {
    "perplexity": ("bits_per_byte",),
    "benchmark": ("acc", "acc_norm", "exact_match"),
    "translation": ("bleu",),
    "information": ("saved_bits", "matching_accuracy"),
    "summarization": ("rougeL",),
    "chat": ("accuracy", "stop_rate"),
    "conversations": ("nats_per_token",),
    "aggregate": ("centred_accuracy",),
}


def evaluation_facts(records: Sequence[Record]) -> dict[str, Any] | None:
    """Returns what the page shows of the evaluations during training; None without any."""
    if not records:
        return None
    last = records[-1]
    failed = [(record.step, failure) for record in records for failure in record.failures]
    unfinished = sorted({name for record in records for name in record.unfinished})
    seconds = sum(record.seconds for record in records)
    about = f"{len(records)} evaluations in {seconds:,.1f} s, the last after step {last.step:,}"
    return {
        "about": f"{about}. They score fewer items than the tables of this page.",
        "remarks": [f"After step {last.step:,}: {text}." for text in last.remarks.values()],
        "charts": evaluation_charts(records),
        "failures": [f"Step {step:,}: {failure.name}: {failure.reason}" for step, failure in failed[-5:]],
        "failed": len(failed),
        "unfinished": unfinished,
        "texts": _texts(records),
    }


def evaluation_charts(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Returns title, legend and SVG of the charts, in the order of scoring; a mean of tasks comes first."""
    found: dict[str, list[tuple[int, Result]]] = {}
    for record in records:
        for result in record.results:
            if _is_shown(result.named):
                found.setdefault(result.name, []).append((record.step, result))
    names = sorted(found, key=lambda name: not name.startswith("aggregate/"))
    programs = {
        result.named.subject: result.value for record in records for result in record.results if _is_gzip(result)
    }
    return [_chart(name, found[name], programs) for name in names[:_MOST_CHARTS]]


def _is_shown(name: ScoreName) -> bool:
    whole = not name.variant or (name.kind == "information" and "/" not in name.variant)  # of solved examples
    return name.metric in _METRICS.get(name.kind, ()) and whole


def _is_gzip(result: Result) -> bool:
    return result.named.kind == "compression" and result.named.metric == "gzip_bits_per_byte"


def _chart(name: str, points: Sequence[tuple[int, Result]], programs: dict[str, float]) -> dict[str, Any]:
    latest = points[-1][1]
    line = Series("score", [(step, one.value) for step, one in points], "series-1", markers=len(points) < 60)
    series = [line]
    ends = [(step, one.low, one.high) for step, one in points if one.low is not None and one.high is not None]
    if ends:
        lows: list[Point] = [(step, low) for step, low, _ in ends]
        highs: list[Point] = [(step, high) for step, _, high in ends]
        series += [Series("interval", part, "series-1", faint=True) for part in (lows, highs)]
    if latest.chance is not None:
        series.append(Series("guessing", [(step, latest.chance) for step, _ in points], "series-2"))
    if latest.named.kind == "perplexity" and latest.named.subject in programs:
        size = programs[latest.named.subject]
        series.append(Series("gzip -9", [(step, size) for step, _ in points], "series-2"))
    axes = Axes(x_label="step", x_format=short, y_format=_short)
    shown = [one for one in series if not one.faint]
    svg = line_chart(series, axes, title=name, height=200)
    return {
        "title": f"{name} (n = {latest.n:,})",
        "legend": shown if len(shown) > 1 else [],
        "svg": svg,
        "small": True,
    }


def _short(value: float) -> str:
    return f"{value:.3g}"


def _texts(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The first sample at the beginning, in the middle and at the end, for one to read how it changes."""
    having = [record for record in records if record.samples]
    if not having:
        return []
    chosen = sorted({0, (len(having) - 1) // 2, len(having) - 1})[:_SHOWN_SAMPLES]
    return [{"step": having[number].step, "sample": having[number].samples[0]} for number in chosen]
