"""Prepares the report's table of coded files, and the code length of the training text."""

from __future__ import annotations

from typing import Any

from eval.results import Result, Results

_CODED, _WITH_MODEL, _PREQUENTIAL = "codec_bits_per_byte", "with_model_bits_per_byte", "prequential_bits_per_byte"


def size_rows(results: Results) -> list[dict[str, Any]]:
    """Returns a row for each coded set, then one for the training text, in the order of scoring."""
    scores = results.by_name()
    rows = []
    for result in results.results:
        kind, subject, metric, variant = result.named
        if (kind, metric, variant) == ("compression", _CODED, ""):
            beside = (
                scores.get(f"compression/{subject}/{_WITH_MODEL}"),
                scores.get(f"compression/{subject}/xz_bits_per_byte"),
            )
            rows.append(_row(f"{subject}, coded to a file", result, *beside))
        elif (kind, metric) == ("compression", _PREQUENTIAL):
            rows.append(_row("training text, coded while it was learnt", result))
    return rows


def _row(name: str, result: Result, with_model: Result | None = None, xz: Result | None = None) -> dict[str, Any]:
    return {"name": name, "score": result, "with_model": with_model, "xz": xz, "note": result.note}
