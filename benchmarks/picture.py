"""Makes a picture that is a file of its own from a chart of the report."""

from __future__ import annotations

from collections.abc import Sequence

_STYLE = (
    "svg{background:#fff} text{font:12px system-ui,sans-serif;fill:#555} .grid{stroke:#e5e5e5} .axis{stroke:#999} "
    ".line{fill:none;stroke-width:1} .faint{opacity:.4} .dot{stroke:#fff;stroke-width:1} .series-1{fill:#2563a8} "
    ".series-2{fill:#c2571a} .series-3{fill:#2e7d4f} .line.series-4{fill:none;stroke:#777} .label{fill:#222} "
    ".line.series-1{fill:none;stroke:#2563a8} .line.series-2{fill:none;stroke:#c2571a}"
)


def standalone(drawn: str, labels: Sequence[str]) -> str:
    """The SVG with its colours and a legend; `labels`: of its first series, in order."""
    legend = "".join(
        f'<circle class="dot series-{number}" cx="{70 + 170 * (number - 1)}" cy="8" r="4"/>'
        f'<text x="{78 + 170 * (number - 1)}" y="12">{label}</text>'
        for number, label in enumerate(labels, start=1)
    )
    head, tail = drawn.split(">", 1)
    head = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return f"{head}><style>{_STYLE}</style>{legend}{tail}\n"
