"""Draws the charts of a training run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from configs.common.rendering import short
from eval.report.charts import Axes, Series, line_chart, smooth
from eval.report.history import History

# Series with more points are smoothed.
_NOISY = 60
_LINES = 6  # colours


_BOUND = " (an upper bound)"


def training_charts(history: History, bound: bool = False) -> list[dict[str, Any]]:
    """Returns title, legend and SVG of each chart with data; `bound`: the nats are those of masked diffusion."""
    loss = [("train/loss", "training"), ("val/loss", "validation")]
    size = [
        ("train/code_bits_per_byte", "training, on first sight"),
        ("val/bits_per_byte", "validation"),
    ]
    # The loss of reinforcement learning and of preferences is no number of nats per token.
    title = "Loss" if _is_scored(history) else "Loss, nats per token"
    of_bound = _BOUND if bound else ""
    charts = [
        *_objective_charts(history),
        _chart(history, f"{title}{of_bound}", loss),
        _chart(history, f"Bits per byte{of_bound}", size),
        *_source_charts(history, of_bound),
        _chart(history, "Learning rate", [("train/lr", "rate")], zero=True, small=True, y_format=_power),
        _chart(history, "Tokens per second", [("train/tokens_per_s", "tokens/s")], zero=True, small=True),
    ]
    return [chart for chart in charts if chart is not None]


def _source_charts(history: History, of_bound: str) -> list[dict[str, Any] | None]:
    """Bits per byte of each source of the validation split."""
    prefix = "val/bits_per_byte/"
    names = sorted(name for name in history.series if name.startswith(prefix))
    parts = [names[start : start + _LINES] for start in range(0, len(names), _LINES)]
    title = f"Bits per byte of each source, validation{of_bound}"
    return [_chart(history, title, [(name, name.removeprefix(prefix)) for name in part], small=True) for part in parts]


def stage_charts(history: History, bound: bool = False) -> list[dict[str, Any]]:
    """Returns the charts that tell most about a stage: those of its objective, or its loss; `bound` as above."""
    charts = [chart for chart in _objective_charts(history) if chart is not None]
    if charts:
        return charts
    title = f"Loss, nats per token{_BOUND if bound else ''}"
    loss = _chart(history, title, [("train/loss", "training"), ("val/loss", "validation")], small=True)
    return [loss] if loss is not None else []


def _is_scored(history: History) -> bool:
    return any(history.get(name) for name in ("train/reward", "train/margin"))


def _objective_charts(history: History) -> list[dict[str, Any] | None]:
    """Charts of rewards, preferences and answers, where training logs them."""
    if not _is_scored(history):
        return []

    answers = bool(history.get("train/reward"))

    def both(name: str) -> list[tuple[str, str]]:
        # Held-out prompts are answered with the likeliest tokens, so their line stands higher from the start.
        told = ("training, drawn", "held out, greedy") if answers else ("training", "held out")
        return [(f"train/{name}", told[0]), (f"val/{name}", told[1])]

    accuracy = "Share of right answers" if answers else "Share of pairs with the chosen answer ahead"
    sides = [("train/reward_chosen", "chosen"), ("train/reward_rejected", "rejected")]
    chances = [("train/log_prob_chosen", "chosen"), ("train/log_prob_rejected", "rejected")]
    return [
        _chart(history, "Reward per answer", both("reward"), small=True),
        _chart(history, accuracy, both("accuracy"), small=True, y_format=_percent),
        _chart(history, "Divergence from the start (KL), nats per token", both("kl"), small=True),
        _chart(history, "Length of answers, tokens", both("length"), small=True, zero=True),
        _chart(history, "Share of answers that end", both("stop_rate"), small=True, y_format=_percent),
        _chart(history, "Margin between chosen and rejected", both("margin"), small=True),
        _chart(history, "Rewards", sides, small=True),
        _chart(history, "Log-probability of the answers", chances, small=True),
        _chart(history, "Sampler against trainer, |Δ log p|", [("train/logp_gap", "gap")], small=True, zero=True),
    ]


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"


def _power(value: float) -> str:
    """0.0005 -> `5e-4`."""
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}" if value else "0"


def _chart(
    history: History,
    title: str,
    metrics: list[tuple[str, str]],
    zero: bool = False,
    small: bool = False,
    y_format: Callable[[float], str] = short,
) -> dict[str, Any] | None:
    series: list[Series] = []
    for number, (metric, label) in enumerate(metrics, start=1):
        points = history.get(metric)
        if not points:
            continue
        style, validation = f"series-{number}", metric.startswith("val/")
        if len(points) > _NOISY and not validation:
            series.append(Series(label, points, style, faint=True))
            points = smooth(points)
        series.append(Series(label, points, style, markers=validation and len(points) < _NOISY))
    if not series:
        return None
    shown = [line for line in series if not line.faint]
    axes = Axes(x_label="step", x_format=short, y_format=y_format, zero=zero, share=y_format is _percent)
    svg = line_chart(series, axes, title=title, height=200 if small else 280)
    return {"title": title, "legend": shown if len(shown) > 1 else [], "svg": svg, "small": small}
