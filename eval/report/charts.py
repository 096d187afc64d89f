"""Draws line charts as inline SVG, without scripts. The page's style sheet gives the colours (light and dark)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup, escape

Point = tuple[float, float]

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 14, 34
_MOST_POINTS = 400
_LEAST_SHARE = 0.1


@dataclass(frozen=True)
class Series:
    """One line of a chart. `style` is its CSS class (`series-1`, …). A `faint` line is drawn behind the others.

    A series that is not `joined` has markers only. `labels` name its points, in their order.
    """

    label: str
    points: Sequence[Point]
    style: str
    faint: bool = False
    markers: bool = False
    joined: bool = True
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Axes:
    """Labels of a chart's axes.

    Attributes:
        zero: start the vertical axis at zero.
        share: values are shares: the vertical axis ends at 1, and shows a tenth or more, so that a blip looks small.
        x_ticks: positions of labels on the horizontal axis; None: chosen automatically.
    """

    x_label: str
    x_format: Callable[[float], str]
    y_format: Callable[[float], str]
    zero: bool = False
    share: bool = False
    x_ticks: Sequence[float] | None = None
    y_label: str = ""


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Returns about `count` round numbers (1, 2, 2.5 or 5 times a power of ten) within [low, high]."""
    if high <= low:
        return [low]
    raw = (high - low) / max(1, count)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def thin(points: Sequence[Point], most: int = _MOST_POINTS) -> list[Point]:
    """Reduces to at most `most` points by means over equal stretches, so that single spikes do not dominate."""
    size = -(-len(points) // most)
    if size <= 1:
        return list(points)
    runs = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def smooth(points: Sequence[Point], share: float = 0.03) -> list[Point]:
    """Computes the running mean over a centred window of this share of all points."""
    radius = max(1, int(len(points) * share / 2))
    out = []
    for index, (x, _) in enumerate(points):
        near = points[max(0, index - radius) : index + radius + 1]
        out.append((x, sum(y for _, y in near) / len(near)))
    return out


def _bounds(series: Sequence[Series], zero: bool, share: bool = False) -> tuple[float, float, float, float]:
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points]
    low, high = min(ys), max(ys)
    # The losses of the first steps are so high that the rest of the curve would look flat.
    ordered = sorted(ys)
    if not zero and len(ys) > 20:
        high = min(high, ordered[-1 - len(ys) // 50])
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    # What is never negative, such as a share, has no axis below zero.
    floor = max(0.0, low - margin) if low >= 0 else low - margin
    if share:
        high = min(1.0, max(high + margin, floor + _LEAST_SHARE))
        return min(xs), max(xs), 0.0 if zero else max(0.0, min(floor, high - _LEAST_SHARE)), high
    return min(xs), max(xs), 0.0 if zero else floor, high + margin


def _names(points: Sequence[tuple[str, float, float]], width: int) -> list[str]:
    """Writes names beside points, right or left of them, above or below, where they cover no other point or name."""
    taken = [(x - 3, y - 3, x + 3, y + 3) for _, x, y in points]
    out = []
    for name, x, y in sorted(points, key=lambda point: point[1]):
        length = 7.0 * len(name)
        boxes = [
            (left, top, left + length, top + 11)
            for top in (y - 6, y - 17, y + 5, y - 28, y + 16)
            for left in (x + 6, x - 6 - length)
            if left >= _LEFT and left + length <= width
        ] or [(x + 6, y - 6, x + 6 + length, y + 5)]
        box = next((one for one in boxes if not any(_overlap(one, other) for other in taken)), boxes[0])
        taken.append(box)
        out.append(f'<text class="label" x="{box[0]:.1f}" y="{box[1] + 10:.1f}">{escape(name)}</text>')
    return out


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    """Tells whether two boxes (left, top, right, bottom) cover a common area."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def line_chart(series: Sequence[Series], axes: Axes, *, title: str, width: int = 560, height: int = 260) -> Markup:
    """Renders lines over a shared pair of axes; `title` describes the chart for screen readers."""
    series = [replace(line, points=thin(line.points)) for line in series if line.points]
    x_low, x_high, y_low, y_high = _bounds(series, axes.zero, axes.share)
    inner_width, inner_height = width - _LEFT - _RIGHT, height - _TOP - _BOTTOM

    def across(x: float) -> float:
        return _LEFT + (x - x_low) / ((x_high - x_low) or 1) * inner_width

    def down(y: float) -> float:
        return _TOP + (1 - (min(max(y, y_low), y_high) - y_low) / (y_high - y_low)) * inner_height

    parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">']
    for tick in nice_ticks(y_low, y_high, 4):
        y = down(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{axes.y_format(tick)}</text>'
        )
    for tick in nice_ticks(x_low, x_high, 5) if axes.x_ticks is None else axes.x_ticks:
        anchor = "end" if across(tick) > width - 40 else "middle"
        place = f'x="{across(tick):.1f}" y="{height - 16}" text-anchor="{anchor}"'
        parts.append(f'<text class="tick" {place}>{axes.x_format(tick)}</text>')
    parts.append(
        f'<line class="axis" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{down(y_low):.1f}" y2="{down(y_low):.1f}"/>'
    )
    parts.append(
        f'<text class="label" x="{width - _RIGHT}" y="{height - 2}" text-anchor="end">{escape(axes.x_label)}</text>'
    )
    if axes.y_label:
        parts.append(f'<text class="label" x="{_LEFT + 6}" y="{_TOP + 14}">{escape(axes.y_label)}</text>')
    named: list[tuple[str, float, float]] = []
    for line in sorted(series, key=lambda item: not item.faint):
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in line.points)
        if line.joined:
            parts.append(f'<polyline class="line {line.style}{" faint" if line.faint else ""}" points="{path}"/>')
        if line.markers or len(line.points) == 1:
            parts += [
                f'<circle class="dot {line.style}" cx="{across(x):.1f}" cy="{down(y):.1f}" r="3"/>'
                for x, y in line.points
            ]
        named += [(name, across(x), down(y)) for name, (x, y) in zip(line.labels, line.points, strict=False)]
    parts += _names(named, width)
    hover = [
        {
            "label": line.label,
            "style": line.style,
            "points": [
                [round(across(x), 1), round(down(y), 1), f"{axes.x_label} {axes.x_format(x)}", axes.y_format(y)]
                for x, y in line.points
            ],
        }
        for line in series
        if not line.faint
    ]
    parts.append(f"<desc>{escape(json.dumps(hover))}</desc></svg>")
    return Markup("".join(parts))
