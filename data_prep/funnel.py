"""The funnel: what became of every document and byte that was read.

Rows are `{source, stage, reason, documents, bytes, tokens}`. Per source, the row `read` is what came in (bytes of text
as it stood in the files), and the other rows divide it up exactly: `normalized` are the bytes that normalisation took
away (no documents; negative where it added some), `train` and `validation` are what is left, in tokens too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

STAGES = {
    "read": "read",
    "record_too_long": "read",
    "invalid_utf8": "read",
    "invalid_json": "read",
    "missing_text": "read",
    "normalized": "normalize",
    "empty": "quality",
    "too_short": "quality",
    "not_text": "quality",
    "duplicate": "dedup",
    "train": "shards",
    "validation": "shards",
}
LEFT = ("train", "validation")


class Funnel:
    """Adds up counts by source and reason."""

    def __init__(self, sources: Iterable[str]) -> None:
        self._counts: dict[str, dict[str, list[int]]] = {name: defaultdict(lambda: [0, 0, 0]) for name in sources}

    def add(self, source: str, reason: str, documents: int, size: int, tokens: int = 0) -> None:
        """Counts documents with their bytes and tokens."""
        assert reason in STAGES, reason
        entry = self._counts[source][reason]
        for index, value in enumerate((documents, size, tokens)):
            entry[index] += value

    def rows(self) -> list[dict[str, Any]]:
        """The table in the order of sources and stages; asserts that it adds up."""
        rows = [
            {
                "source": source,
                "stage": stage,
                "reason": reason,
                "documents": entry[0],
                "bytes": entry[1],
                "tokens": entry[2],
            }
            for source, counts in self._counts.items()
            for reason, stage in STAGES.items()
            if (entry := counts[reason] if reason in ("read", *LEFT) else counts.get(reason))
        ]
        check(rows)
        return rows


def check(rows: Iterable[dict[str, Any]]) -> None:
    """Raises `ValueError` where a source's rows do not add up to what was read."""
    left: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row in rows:
        sign = 1 if row["reason"] == "read" else -1
        left[row["source"]][0] += sign * row["documents"]
        left[row["source"]][1] += sign * row["bytes"]
    wrong = {source: rest for source, rest in left.items() if any(rest)}
    if wrong:
        raise ValueError(f"the funnel does not add up (documents, bytes left over): {wrong}")
