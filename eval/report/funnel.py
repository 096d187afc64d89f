"""The data funnel as rows of the report."""

from __future__ import annotations

from typing import Any


def funnel_rows(funnel: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the table."""
    return []
