"""What a finished run says on the terminal: the headline numbers, the gates, where the report lies."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console
from rich.table import Table

_HEADLINES = ("bits_per_byte", "gzip_bits_per_byte", "xz_bits_per_byte", "bleu", "acc", "acc_norm")


def duration(seconds: float) -> str:
    """12.3 -> `12.3 s`; 3725 -> `1 h 02 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60) if seconds >= 3600 else int(seconds // 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if seconds >= 3600 else f"{minutes} min {seconds % 60:02.0f} s"


def print_headlines(run: Path) -> None:
    """Prints the scores that say most, each with its interval and the number of units behind it."""
    from eval.results import load_results

    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("score", "value", "95% interval", "n"):
        table.add_column(title, justify="left" if title == "score" else "right")
    for result in load_results(run).results:
        if result.name.rsplit("/", 1)[-1] in _HEADLINES:
            interval = "" if result.low is None or result.high is None else f"{result.low:.3f} – {result.high:.3f}"
            table.add_row(result.name, f"{result.value:.3f}", interval, f"{result.n:,}")
    if table.row_count:
        Console(highlight=False, soft_wrap=True).print(table)


def print_verdict(run: Path) -> int:
    """Prints each gate and the report's path; returns 1 when a gate failed."""
    from eval.report.gates import check_gates

    gates = check_gates(run)
    for gate in gates:
        print(f"gate {'passed' if gate.passed else 'FAILED'}: {gate.text}   ({gate.left:.4g} against {gate.right:.4g})")
    page = run / "report" / "index.html"
    print(f"report: {os.path.relpath(page) if page.is_relative_to(Path.cwd()) else page}")
    return int(not all(gate.passed for gate in gates))
