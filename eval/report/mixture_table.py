"""Builds the report's mixture table: the asked, planned and realised share of each source."""

from __future__ import annotations

from typing import Any

from configs.common.rendering import short


def mixture_rows(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Formats the rows of `pretrain.batches.mixture.mixture_table`; none for a single source in a single phase."""
    if len(table) < 2:
        return []
    rows, before = [], None
    for row in table:
        phase, first = row["phase"], row["first_step"] + 1
        label = f"Phase {phase}: steps {first:,} to {first + row['steps'] - 1:,}" if phase else "Whole run"
        realised = row["realised"]
        rows.append(
            {
                "phase": label if phase != before else "",
                "source": row["source"],
                "asked": f"{row['asked']:.2%}",
                "planned": f"{row['planned']:.2%}",
                "realised": "–" if realised is None else f"{realised:.2%}",
                "share": 100 * (realised or 0),
                "tokens": short(row["realised_tokens"]),
                "epochs": f"{row['realised_epochs']:.2f}",
            }
        )
        before = phase
    return rows
