"""Draws the curves of several runs against training tokens, compute and seconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.common.rendering import duration, short
from configs.schema.model import Model
from eval.report.charts import Axes, Point, Series, line_chart, smooth
from eval.report.history import History, read_history
from eval.results import Results
from pretrain.sizes.flops import flops_per_token

_COLOURS = 6
_MOST_CHARTS = 8
_NAMES = {
    "val/bits_per_byte": "Validation, bits per byte",
    "val/loss": "Validation loss, nats per token",
    "train/loss": "Training loss, nats per token",
}
# A logarithmic axis, where runs differ by more than this.
_FAR_APART = 8.0


@dataclass(frozen=True)
class Curves:
    """The training of one run, up to its scored checkpoint.

    Attributes:
        tokens, seconds: step -> training tokens seen, and seconds of training without pauses.
        flops: floating-point operations of a token, forward and backward.
    """

    label: str
    history: History
    tokens: dict[float, float]
    seconds: dict[float, float]
    flops: float

    def points(self, metric: str, across: str) -> list[Point]:
        """Returns the points of a metric over `tokens`, `compute` or `seconds`; steps without these are left out."""
        places = self.seconds if across == "seconds" else self.tokens
        scale = self.flops if across == "compute" else 1.0
        found = ((places.get(step), value) for step, value in self.history.get(metric))
        return [(place * scale, value) for place, value in found if place and math.isfinite(value)]


def read_curves(label: str, directory: Path, results: Results) -> Curves | None:
    """Reads the training of a run; None for a directory without its metrics."""
    if not any(directory.glob("metrics*.jsonl")):
        return None
    history = read_history(directory).until(results.checkpoint["step"])
    return Curves(label, history, dict(history.get("tokens")), dict(history.seconds()), flops_of(results))


def flops_of(results: Results) -> float:
    """Computes the floating-point operations of a training token, as `replica plan` does; 6 N for a foreign model."""
    try:
        return flops_per_token(Model.model_validate(results.recipe["model"]), results.model["vocab_size"])
    except (KeyError, ValueError):
        return 6.0 * float(results.model["parameters"])


def comparison_charts(curves: Sequence[Curves | None], same_tokenizer: bool) -> list[dict[str, Any]]:
    """Returns title, axis and SVG of each chart: the first metric over tokens, compute and seconds, others over tokens.

    Args:
        curves: of each run in order, which gives the colour; None for a run without metrics.
        same_tokenizer: losses per token can be compared.
    """
    known = [one for one in curves if one is not None]
    metrics = _metrics(known, same_tokenizer)
    charts = []
    for number, metric in enumerate(metrics[:_MOST_CHARTS]):
        for across in ("tokens", "compute", "seconds") if number == 0 else ("tokens",):
            chart = _chart(curves, metric, across, number == 0)
            charts += [chart] if chart is not None else []
    return charts


def _metrics(curves: Sequence[Curves], same_tokenizer: bool) -> list[str]:
    """Names what was validated in training, what can be compared first; the training loss if nothing was."""
    names = list(dict.fromkeys(name for one in curves for name in one.history.series if name.startswith("val/")))
    names = [name for name in names if any(len(one.history.get(name)) > 1 for one in curves)]
    if not same_tokenizer:
        names = [name for name in names if name != "val/loss"]
    if not names:
        return ["train/loss"] if same_tokenizer else []
    return sorted(names, key=lambda name: (name != "val/bits_per_byte", name != "val/loss"))


def _chart(curves: Sequence[Curves | None], metric: str, across: str, large: bool) -> dict[str, Any] | None:
    far = across == "compute" and _far_apart(curves, metric)
    series = []
    for number, one in enumerate(curves):
        points = one.points(metric, across) if one is not None else []
        if not points:
            continue
        points = smooth(points) if metric == "train/loss" else points
        points = [(math.log10(x), y) for x, y in points] if far else points
        style = f"series-{number % _COLOURS + 1}" + (" dashed" if number >= _COLOURS else "")
        assert one is not None
        series.append(Series(one.label, points, style, markers=len(points) < 40))
    if not series:
        return None
    labels = {"tokens": "training tokens", "compute": "training compute, FLOPs", "seconds": "seconds of training"}
    formats: dict[str, Callable[[float], str]] = {"tokens": short, "compute": _power, "seconds": duration}
    ticks = None
    if far:
        low, high = (pick(x for line in series for x, _ in line.points) for pick in (min, max))
        ticks = list(range(math.ceil(low), math.floor(high) + 1)) or None
        formats["compute"] = lambda x: _power(10**x)
    axes = Axes(labels[across] + (", logarithmic" if far else ""), formats[across], lambda y: f"{y:.4g}", x_ticks=ticks)
    title = _NAMES.get(metric, metric.removeprefix("val/"))
    svg = line_chart(series, axes, title=f"{title} against {labels[across]}", height=260 if large else 220)
    return {"title": title, "across": labels[across], "svg": svg}


def _far_apart(curves: Sequence[Curves | None], metric: str) -> bool:
    ends = [points[-1][0] for one in curves if one is not None and (points := one.points(metric, "compute"))]
    return bool(ends) and max(ends) / min(ends) > _FAR_APART


def _power(value: float) -> str:
    """3e15 -> `3e15`."""
    mantissa, _, exponent = f"{value:.2g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa
