"""Prepares the report's tables of translations and summaries."""

from __future__ import annotations

from typing import Any

from eval.results import Result, Results
from eval.summaries.summary_names import BASELINES, INFORMATION, kept_name
from eval.text_metrics.bleu import BLEU_AND_CHRF
from eval.text_metrics.rouge import ROUGE

_METRICS = (*BLEU_AND_CHRF, *ROUGE)
_SUMMARIES = {
    "": "the model",
    f"{INFORMATION}_": "chosen by code length",
    **{f"{name}_": f"{name}, no model" for name in BASELINES},
}
_NAMES = {"bleu": "BLEU", "chrf": "chrF", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
_NAMES |= {"rougeLsum": "ROUGE-Lsum"}


def translation_tables(results: Results) -> list[dict[str, Any]]:
    """Returns a table for each set: translations of the model, and the source itself."""
    return _tables(results, "translation", {"": "the model", "copy_": "the source itself"})


def summary_tables(results: Results) -> list[dict[str, Any]]:
    """Returns a table for each set: summaries of the model, and sentences chosen without generating."""
    return _tables(results, "summarization", _SUMMARIES)


def _tables(results: Results, kind: str, rows: dict[str, str]) -> list[dict[str, Any]]:
    scores = results.by_name()
    subjects = dict.fromkeys(one.named.subject for one in results.results if one.named.kind == kind)
    return [_table(scores, f"{kind}/{subject}/", subject, rows) for subject in subjects]


def _table(scores: dict[str, Result], place: str, subject: str, rows: dict[str, str]) -> dict[str, Any]:
    metrics = [metric for metric in _METRICS if f"{place}{metric}" in scores]
    kept = any(f"{place}{kept_name(name)}" in scores for name in (INFORMATION, *BASELINES))
    shown = []
    for prefix, title in rows.items():
        cells = [scores.get(f"{place}{prefix}{metric}") for metric in metrics]
        first = next((cell for cell in cells if cell is not None), None)
        if first is not None:
            told = scores.get(place + kept_name(prefix.removesuffix("_"))) if prefix else None
            shown.append({"title": title, "note": first.note, "n": first.n, "cells": cells, "kept": told})
    return {
        "name": subject,
        "metrics": [_NAMES[metric] for metric in metrics],
        "kept": kept,
        "rows": shown,
        "signatures": dict.fromkeys(
            scores[f"{place}{metric}"].signature for metric in metrics if scores[f"{place}{metric}"].signature
        ),
    }
