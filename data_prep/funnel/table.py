"""Turns the data funnel into rows of the report."""

from __future__ import annotations

from typing import Any

from configs.common.rendering import size
from data_prep.funnel.tally import LEFT, STAGES, check

_COUNTS = ("documents", "bytes", "tokens")
_LABELS = {
    "read": "read",
    "markup": "taken away with the markup",
    "normalized": "taken away by normalisation",
    "redacted": "taken away with private data",
    "train": "kept, for training",
    "validation": "kept, for validation",
    "kept": "kept",
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
    keys = dict.fromkeys((row["stage"], row["reason"]) for row in funnel)
    ordered = sorted(keys, key=lambda key: STAGES.index(key[0]) if key[0] in STAGES else len(STAGES))
    return [
        {
            "stage": stage,
            "reason": reason,
            **{
                count: sum(row[count] for row in funnel if (row["stage"], row["reason"]) == (stage, reason))
                for count in _COUNTS
            },
        }
        for stage, reason in ordered
    ]


def _rows(funnel: list[dict[str, Any]], source: str) -> list[dict[str, Any]]:
    whole = next(row for row in funnel if row["reason"] == "read")["bytes"] or 1
    rows = []
    for row in sorted(funnel, key=place):
        reason, share = row["reason"], row["bytes"] / whole
        if reason in LEFT and not row["documents"] and reason != "train":
            continue
        kind = "total" if reason == "read" else "kept" if reason in LEFT else "dropped"
        rows.append(
            {
                "source": source if kind == "total" else "",
                "kind": kind,
                "what": label(row),
                "documents": f"{row['documents']:,}" if row["documents"] or kind != "dropped" else "",
                "bytes": size(row["bytes"]),
                "tokens": f"{row['tokens']:,}" if row["tokens"] else "",
                "share": 100 * share,
                "percent": f"{share:.1%}" if not 0 < share < 0.001 else "< 0.1%",
            }
        )
    return rows


def place(row: dict[str, Any]) -> tuple[Any, ...]:
    """In the order of the stages; in a stage the reason with most documents, then bytes, first."""
    place = STAGES.index(row["stage"]) if row["stage"] in STAGES else len(STAGES)
    return place, row["reason"] != "read", row["reason"] in LEFT, -row["documents"], -row["bytes"]


def label(row: dict[str, Any]) -> str:
    """Describes a row of the funnel in words."""
    if row["reason"] in _LABELS:
        return _LABELS[row["reason"]]
    what = "dropped" if row["documents"] else "taken away"
    where = "language " if row["stage"] == "language" else ""
    return f"{what}: {where}{row['reason'].replace('_', ' ')}"
