"""The data funnel as rows of the report: what became of all that was read."""

from __future__ import annotations

from typing import Any

from data_prep.funnel import LEFT, STAGES, check
from eval.report.numbers import size

_COUNTS = ("documents", "bytes", "tokens")
_LABELS = {
    "read": "read",
    "normalized": "taken away by normalisation",
    "train": "kept, for training",
    "validation": "kept, for validation",
}


def funnel_rows(funnel: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the table: all sources together, then each by itself where there are several.

    Raises:
        ValueError: the counts do not add up.
    """
    check(funnel)
    sources = list(dict.fromkeys(row["source"] for row in funnel))
    if len(sources) == 1:
        return _rows(funnel, sources[0])
    rows = _rows(_total(funnel), f"all {len(sources)} sources") if sources else []
    for source in sources:
        rows += _rows([row for row in funnel if row["source"] == source], source)
    return rows


def _total(funnel: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The sum over sources, reason by reason, in the order of the stages."""
    present = {row["reason"] for row in funnel}
    return [
        {
            "stage": stage,
            "reason": reason,
            **{key: sum(row[key] for row in funnel if row["reason"] == reason) for key in _COUNTS},
        }
        for reason, stage in STAGES.items()
        if reason in present
    ]


def _rows(funnel: list[dict[str, Any]], source: str) -> list[dict[str, Any]]:
    whole = next(row for row in funnel if row["reason"] == "read")["bytes"] or 1
    rows = []
    for row in funnel:
        reason, share = row["reason"], row["bytes"] / whole
        kind = "total" if reason == "read" else "kept" if reason in LEFT else "dropped"
        rows.append(
            {
                "source": source if kind == "total" else "",
                "kind": kind,
                "what": _LABELS.get(reason, f"dropped: {reason.replace('_', ' ')}"),
                "documents": f"{row['documents']:,}" if reason != "normalized" else "",
                "bytes": size(row["bytes"]),
                "tokens": f"{row['tokens']:,}" if kind == "kept" else "",
                "share": 100 * share,
                "percent": f"{share:.1%}" if not 0 < share < 0.001 else "< 0.1%",
            }
        )
    return rows
