"""Prepares the report's table of information: bits of targets alone, behind their source, and behind another."""

from __future__ import annotations

from typing import Any

from eval.results import Result, Results

_KIND = "information"


def information_rows(results: Results) -> list[dict[str, Any]]:
    """Returns a row for each set and number of solved examples, in the order of scoring.

    Clean and touched pairs stand in the list of all scores alone.
    """
    rows: dict[tuple[str, str], dict[str, Result]] = {}
    for result in results.results:
        kind, subject, metric, variant = result.named
        if kind == _KIND and "/" not in variant:
            rows.setdefault((subject, variant), {})[metric] = result
    return [_row(subject, variant, own) for (subject, variant), own in rows.items() if "saved_bits" in own]


def _row(subject: str, variant: str, own: dict[str, Result]) -> dict[str, Any]:
    saved = own["saved_bits"]
    return {
        "name": subject,
        "examples": variant.removesuffix("-shot"),
        "pairs": saved.n,
        "note": (saved.note or "").partition("; ")[2],
        "alone": own.get("alone_bits"),
        "given": own.get("given_bits"),
        "other": own.get("other_bits"),
        "saved": saved,
        "other_saved": own.get("other_saved_bits"),
        "beyond": own.get("beyond_other_bits"),
        "share": own.get("saved_share"),
        "matching": own.get("matching_accuracy"),
    }
