"""What all pages share: numbers as people read them, and the style sheet."""

from __future__ import annotations

import math
import re
from pathlib import Path

from configs.safety.terminal import printable


def score(value: float | None) -> str:
    """Four significant digits, and no exponent for anything of ordinary size."""
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
    """Text as GitHub's Markdown shows it, on one line: nothing in it is markup, HTML, a link or the end of a cell."""
    line = printable(" ".join(str(text).split()))
    line = re.sub(r"[\\`*\[\]<>|~&]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", line)
    return re.sub(r"(?i):(?=//)|(?<=www)\.", r"\\\g<0>", line)


def markdown_code(text: object) -> str:
    """The same as a code span, in as many backticks as it needs."""
    line = printable(" ".join(str(text).split())).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"`{line or ' '}`"


def style_sheet() -> str:
    """The style of all pages, which are self-contained."""
    return (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
