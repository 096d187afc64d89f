"""Renders a sweep as Markdown, and as a page with a chart."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup, escape

from configs.common.rendering import markdown_text, short, style_sheet
from eval.report.charts import Axes, Series, line_chart
from eval.scaling_law import PowerLaw

_COLUMNS = {
    "label": "run",
    "layers": "layers",
    "width": "width",
    "parameters": "parameters",
    "tokens": "tokens",
    "compute": "FLOPs",
    "lr": "lr",
    "batch": "batch",
    "weight_decay": "decay",
    "val_loss": "validation nats/token",
    "bits_per_byte": "bits/byte",
}


def _cell(key: str, value: Any) -> str:
    if key in ("parameters", "tokens"):
        return short(value)
    if key in ("val_loss", "bits_per_byte"):
        return f"{value:.4f}"
    return f"{value:.2e}" if key == "compute" else f"{value}"


def _rows(summary: dict[str, Any]) -> list[list[str]]:
    runs = [*summary["runs"], *([summary["outcome"]] if "outcome" in summary else [])]
    return [[_cell(key, run[key]) for key in _COLUMNS] for run in runs]


def sentences(summary: dict[str, Any]) -> list[str]:
    """Describes the law, its prediction and the measured outcome; for a grid, the best run."""
    if "law" not in summary:
        best = min(summary["runs"], key=lambda run: run["bits_per_byte"])
        return [f"Best: {best['label']}, {best['bits_per_byte']:.4f} bits per byte."]
    law, prediction = PowerLaw(**summary["law"]), summary["prediction"]
    lines = [
        (
            f"L(C) = {law.floor:.4f} + {law.scale:.4f} (C / {law.unit:.3g})^-{law.exponent:.3f} bits per byte: "
            f"{law.free} free parameters on {len(summary['runs'])} runs."
        ),
        (
            f"Predicted for {prediction['label']} ({prediction['compute']:.2e} FLOPs): {prediction['value']:.4f} "
            "bits per byte; fits that leave out one run, or have no floor, give "
            f"{prediction['low']:.4f} to {prediction['high']:.4f}."
        ),
    ]
    if "outcome" in summary:
        bits = summary["outcome"]["bits_per_byte"]
        lines.append(f"Measured: {bits:.4f}; the prediction was off by {prediction['value'] / bits - 1:+.2%}.")
    return lines


def markdown(summary: dict[str, Any]) -> str:
    """Renders the table of runs and the sentences."""
    table = [list(_COLUMNS.values()), ["---"] * len(_COLUMNS), *_rows(summary)]
    lines = ["| " + " | ".join(map(markdown_text, row)) + " |" for row in table]
    text = [markdown_text(line) for line in sentences(summary)]
    return "\n".join([f"# Sweep of {markdown_text(summary['name'])}", "", *lines, "", *text, ""])


def page(summary: dict[str, Any]) -> str:
    """Renders one self-contained HTML page."""
    head = Markup("").join(Markup("<th>{}</th>").format(name) for name in _COLUMNS.values())
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(Markup("").join(Markup("<td>{}</td>").format(cell) for cell in row))
        for row in _rows(summary)
    )
    paragraphs = Markup("").join(Markup('<p class="about">{}</p>').format(line) for line in sentences(summary))
    title = escape(f"Sweep of {summary['name']}")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{style_sheet()}</style></head><body><header><h1>{title}</h1></header><main>{paragraphs}{_chart(summary)}"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        "</main></body></html>"
    )


def _figure(title: str, series: list[Series], axes: Axes) -> Markup:
    legend = Markup("").join(
        Markup(' <span class="legend"><span class="key {}"></span>{}</span>').format(line.style, line.label)
        for line in (series if len(series) > 1 else [])
    )
    chart = line_chart(series, axes, title=title, width=860, height=330)
    return Markup("<figure><figcaption>{}{}</figcaption>{}</figure>").format(title, legend, chart)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _grid_chart(runs: list[dict[str, Any]]) -> Markup:
    """Draws loss over the first numeric setting, one line per value of the other setting."""
    values = {key: list(dict.fromkeys(run["varied"][key] for run in runs)) for key in runs[0]["varied"]}
    numeric = [key for key, texts in values.items() if len(texts) > 1 and None not in map(_number, texts)]
    if not numeric:
        return Markup("")
    across = numeric[0]
    other = next((key for key in values if key != across), None)
    numbers = sorted(float(text) for text in values[across])
    place = math.log10 if numbers[0] > 0 else float
    series = []
    for index, text in enumerate(values[other] if other else [""]):
        chosen = [run for run in runs if other is None or run["varied"][other] == text]
        points = sorted((place(float(run["varied"][across])), run["val_loss"]) for run in chosen)
        label = f"{other.rpartition('.')[2]} {text}" if other else "loss"
        series.append(Series(label, points, f"series-{index % 6 + 1}", markers=True))
    shown = dict(zip(map(place, numbers), numbers, strict=True))
    return _figure(
        "Validation loss, nats per token",
        series,
        Axes(
            x_label=across + (", logarithmic" if place is math.log10 else ""),
            x_format=lambda x: f"{shown[x]:g}",
            y_format=lambda y: f"{y:.2f}",
            x_ticks=list(shown),
        ),
    )


def _chart(summary: dict[str, Any]) -> Markup:
    if "law" not in summary:
        return _grid_chart(summary["runs"])
    law, prediction = PowerLaw(**summary["law"]), summary["prediction"]
    measured = [(math.log10(run["compute"]), run["bits_per_byte"]) for run in summary["runs"]]
    low, high = measured[0][0], math.log10(prediction["compute"])
    curve = [(x, law(10**x)) for x in (low + (high - low) * step / 60 for step in range(61))]
    series = [Series("law", curve, "series-6"), Series("measured", measured, "series-1", markers=True, joined=False)]
    series.append(Series("predicted", [(high, prediction["value"])], "series-2"))
    if "outcome" in summary:
        series.append(Series("outcome", [(high, summary["outcome"]["bits_per_byte"])], "series-3"))
    powers = range(math.ceil(low), math.floor(high) + 1)
    return _figure(
        "Bits per byte against compute",
        series,
        Axes(
            x_label="FLOPs, logarithmic",
            x_format=lambda x: f"{10**x:.2g}",
            y_format=lambda y: f"{y:.2f}",
            x_ticks=powers if len(powers) > 1 else None,
        ),
    )
