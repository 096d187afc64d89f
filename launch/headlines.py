"""Prints the outcome of a finished run: main scores, gates, path of the report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from configs.common.console import Console

if TYPE_CHECKING:
    from eval.comparison.many_runs import Comparison

_HEADLINES = (
    *("bits_per_byte", "gzip_bits_per_byte", "xz_bits_per_byte", "bleu", "rougeL", "lead_rougeL"),
    *("acc", "acc_norm", "exact_match", "centred_accuracy", "accuracy", "stop_rate", "longer", "less_repeated"),
)
_WIDEST = 400  # columns


def print_headlines(run: Path, title: str = "") -> None:
    """Prints the main scores, each with its interval and number of scored items, under a title if there is one.

    A stage's scores are followed by what became of them since its parent.
    """
    from configs.common.rendering import score
    from eval.results import load_results

    results = load_results(run)
    since = {change.name: change.verdict for change in results.changes}
    table = Table(box=None, pad_edge=False, header_style="dim", title=title or None, title_justify="left")
    further = [f"since {results.stage['parent']}"] if since else []
    for title in ("score", "value", "95% interval", "n", *further):
        table.add_column(title, justify="left" if title in ("score", *further) else "right")
    for result in results.results:
        if not result.named.variant and result.named.metric in _HEADLINES:
            exact = result.low is None or result.high is None or result.low == result.high  # as on the page
            interval = "" if exact else f"{score(result.low)} – {score(result.high)}"
            verdict = [since.get(result.name, "")] if since else []
            table.add_row(result.name, score(result.value), interval, f"{result.n:,}", *verdict)
    if table.row_count:
        Console(soft_wrap=True).print(table)


def print_comparison(comparison: Comparison) -> None:
    """Prints how each run differs from the reference: scores, differences with their intervals, verdicts."""
    from eval.report.chain import change_rows

    for run in comparison.runs:
        if run is comparison.reference:
            continue
        title = f"{run.label} against {comparison.reference.label}"
        table = Table(box=None, pad_edge=False, header_style="dim", title=title, title_justify="left")
        for name in ("score", "before", "after", "difference", "95% interval", "items", "p (Holm)", "verdict"):
            table.add_column(name, justify="left" if name in ("score", "verdict") else "right")
        changes = comparison.changes[run.label]
        for change, row in zip(changes, change_rows(changes, run.results), strict=True):
            p = "" if change.adjusted is None else f"{change.adjusted:.2g}"
            shown = [row[key] for key in ("name", "before", "after", "change", "interval", "n")]
            table.add_row(*shown, p, f"{row['mark']} {row['verdict']}")
        # A table that is squeezed into the width of a log would cut names and numbers.
        console = Console(soft_wrap=True, width=_WIDEST)
        console.print(table)
        for change in changes:
            if change.verdict == "incomparable":
                console.print(f"≠ {change.name}: {change.reason}")


def print_verdict(run: Path, junit: Path | None = None, baseline: Path | None = None, first: bool = False) -> int:
    """Prints each gate and the report's path; returns 1 when a gate failed.

    Args:
        run: an evaluated run directory with its report.
        junit: a file to write as JUnit XML.
        baseline: what gates may compare with.
        first: nothing to compare with exists yet, so gates that need it neither pass nor fail.
    """
    from eval.report.gates import check_gates
    from eval.report.junit import write_junit

    gates = check_gates(run, baseline)
    if junit is not None:
        write_junit(junit, run, gates, first)
    open_ones = [gate for gate in gates if first and gate.undecided]
    for gate in gates:
        outcome = "passed" if gate.passed else "not decided" if gate in open_ones else "FAILED"
        print(f"gate {outcome}: {gate}")
    page = run / "report" / "index.html"
    print(f"report: {os.path.relpath(page) if page.is_relative_to(Path.cwd()) else page}")
    return int(not all(gate.passed or gate in open_ones for gate in gates))
