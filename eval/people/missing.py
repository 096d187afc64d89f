"""Tells why a score of people is not among the results; for gates, which need nothing else of this room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

KIND = "human"  # first part of the scores' names


def why_missing(people: Sequence[dict[str, Any]], metric: str) -> str:
    """Tells why a score of people is not among the results."""
    name = metric.split("/")[1] if "/" in metric else ""
    for session in people:
        if session["set"] == name:
            return str(session.get("outdated") or f"the votes on `{name}` give no `{metric}`")
    return f"nobody has judged `{name}`; ask people with `replica judge`"
