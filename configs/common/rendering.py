"""Formats numbers and text for pages, and reads the style sheet that all pages share."""

from __future__ import annotations

import math
import re
from pathlib import Path

from configs.safety.terminal import printable


def score(value: float | None) -> str:
    """Formats a score with four significant digits, without an exponent from 1e-4 to 1e7."""
    if value is None:
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.3g}"
    digits = 3 - math.floor(math.log10(abs(value))) if value else 3
    return f"{value:,.{max(0, min(4, digits))}f}"


def short(value: float) -> str:
    """1234567 -> `1.23M`."""
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.4g}"


def size(value: float) -> str:
    """Bytes: 1234567 -> `1.23 MB`."""
    text = short(value)
    suffix = {"k": "kB", "M": "MB", "B": "GB", "T": "TB"}.get(text[-1])
    return f"{text[:-1]} {suffix}" if suffix else f"{text} bytes"


def duration(seconds: float) -> str:
    """3725 -> `1 h 2 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def markdown_text(text: object) -> str:
    """Escapes text for one line of GitHub's Markdown, so that it contains no markup, HTML, link or cell border."""
    line = printable(" ".join(str(text).split()))
    line = re.sub(r"[\\`*\[\]<>|~&]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", line)
    return re.sub(r"(?i):(?=//)|(?<=www)\.", r"\\\g<0>", line)


def markdown_code(text: object) -> str:
    """Formats text as a code span, with as many backticks as it needs."""
    line = printable(" ".join(str(text).split())).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"`{line or ' '}`"


def style_sheet() -> str:
    """Reads the style sheet, which is embedded in every page."""
    return (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
