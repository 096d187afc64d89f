"""Writes the comparison of runs: one self-contained page, Markdown for a job's summary, and JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from configs.common import rendering
from configs.common.files import write_json, write_text
from configs.common.versions import own_version
from eval.comparison.many_runs import Comparison
from eval.comparison.paired import Scores, is_of_model
from eval.comparison_report.comparison_curves import comparison_charts, flops_of, read_curves
from eval.comparison_report.recipe_differences import recipe_differences
from eval.report.chain import MARKS, change_rows, shown
from eval.report.page import breakable, hover_script
from eval.results import Change, Result

_HERE = Path(__file__).parent
PAGE, MARKDOWN, DATA = "index.html", "comparison.md", "comparison.json"


def write_comparison(comparison: Comparison, directory: Path) -> Path:
    """Writes `index.html`, `comparison.md` and `comparison.json` into a directory; returns the page."""
    facts = comparison_facts(comparison)
    environment = _environment(autoescape=True)
    pictured = {**facts, "charts": _charts(comparison), "style": rendering.style_sheet(), "script": hover_script()}
    write_text(directory / PAGE, environment.get_template("comparison.html.j2").render(pictured))
    markdown = _environment(finalize=_as_markdown).get_template("comparison.md.j2")
    write_text(directory / MARKDOWN, markdown.render(facts))
    write_json(directory / DATA, as_json(comparison))
    return directory / PAGE


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Returns the comparison for programs: runs, changes against the reference, differences of the recipes."""
    return {
        "schema": 1,
        "reference": comparison.reference.label,
        "runs": [
            {"name": one.label, "checkpoint": one.results.checkpoint, "results": one.results.fingerprint}
            for one in comparison.runs
        ],
        "changes": {label: [change.as_json() for change in found] for label, found in comparison.changes.items()},
        "other_seeds": other_seeds(comparison),
        "recipes": dict(recipe_differences([one.results for one in comparison.runs])),
    }


def comparison_facts(comparison: Comparison) -> dict[str, Any]:
    """Returns what the templates show, but for charts."""
    runs, reference = comparison.runs, comparison.reference
    others = [one for one in runs if one is not reference]
    judged = [change for found in comparison.changes.values() for change in found]
    return {
        "title": ", ".join(one.label for one in others) + f" against {reference.label}",
        "reference": reference.label,
        "verdicts": [{"label": one.label, "text": _counts(comparison, one.label)} for one in others],
        "labels": [one.label for one in runs],
        "rows": _rows(comparison),
        "real": [row for one in others for row in _told(comparison, one, ("better", "worse"))],
        "undecided": [row for one in others for row in _told(comparison, one, ("incomparable",))],
        "compared": comparison.tested,
        "unpaired": sum(change.p is not None and not change.n for change in judged),
        "seeds": other_seeds(comparison),
        "runs": _runs(runs),
        "differences": recipe_differences([one.results for one in runs]),
        "without_metrics": [one.label for one in runs if _curves(one) is None],
        "replica_version": own_version(),
    }


def other_seeds(comparison: Comparison) -> list[str]:
    """Names the runs whose recipe is that of the reference but for the seed."""
    reference = comparison.reference.results
    return [
        run.label
        for run in comparison.runs
        if run is not comparison.reference
        and [path for path, _ in recipe_differences([reference, run.results])] == ["seed"]
    ]


def _by_seed(comparison: Comparison) -> dict[str, float]:
    """Maps a score to the largest difference that another seed alone makes."""
    largest: dict[str, float] = {}
    for change in (change for label in other_seeds(comparison) for change in comparison.changes[label]):
        largest[change.name] = max(largest.get(change.name, 0.0), abs(change.after - change.before))
    return largest


def _counts(comparison: Comparison, label: str) -> str:
    counted = comparison.counted(label)
    text = ", ".join(f"{counted[verdict]} {verdict}" for verdict in MARKS if counted[verdict])
    return f"{text} (the same recipe with another seed)" if label in other_seeds(comparison) else text


# --------------------------------------------------------------------------------------------------------------- table
def _rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row for each score that two runs have, one cell for each run."""
    names = dict.fromkeys(one.name for run in comparison.runs for one in run.results.results if is_of_model(one))
    rows = []
    for name in names:
        found = [run.results.by_name().get(name) for run in comparison.runs]
        if sum(one is not None for one in found) < 2:
            continue
        first = next(one for one in found if one is not None)
        cells = [_cell(comparison, run, one) for run, one in zip(comparison.runs, found, strict=True)]
        better = "higher is better" if first.higher_is_better else "lower is better"
        rows.append({"name": name, "unit": f"{first.unit}, {better}", "n": f"{first.n:,}", "cells": cells})
    return rows


def _cell(comparison: Comparison, run: Scores, result: Result | None) -> dict[str, str]:
    empty = dict.fromkeys(("verdict", "mark", "difference", "interval", "title"), "") | {"value": "–"}
    if result is None:
        return empty
    value = {**empty, "value": shown(result)}
    change = next((one for one in comparison.changes.get(run.label, ()) if one.name == result.name), None)
    if change is None:
        return value
    (row,) = change_rows([change], run.results)
    told = {"difference": row["change"], "interval": row["interval"]} if change.verdict != "incomparable" else {}
    return {
        **value,
        **told,
        "verdict": change.verdict,
        "mark": MARKS[change.verdict],
        "title": f"{change.verdict}: {row['how']}" + (f"; {change.reason}" if change.reason else ""),
    }


def _told(comparison: Comparison, run: Scores, verdicts: Sequence[str]) -> list[dict[str, Any]]:
    chosen = [change for change in comparison.changes[run.label] if change.verdict in verdicts]
    chosen.sort(key=_certainty)
    seeds, own = _by_seed(comparison), run.label in other_seeds(comparison)
    rows = []
    for change, row in zip(chosen, change_rows(chosen, run.results), strict=True):
        if own:
            row["reason"] = "; ".join(filter(None, [row["reason"], "the recipes differ in nothing but the seed"]))
        elif change.name in seeds and abs(change.after - change.before) <= seeds[change.name]:
            row["reason"] = "; ".join(filter(None, [row["reason"], "another seed alone makes as large a difference"]))
        rows.append({**row, "run": run.label})
    return rows


def _certainty(change: Change) -> float:
    return 1.0 if change.adjusted is None else change.adjusted


# ---------------------------------------------------------------------------------------------------------------- runs
def _runs(runs: Sequence[Scores]) -> list[dict[str, str]]:
    return [_facts_of(one) for one in runs]


def _facts_of(run: Scores) -> dict[str, str]:
    results, curves = run.results, _curves(run)
    known = results.checkpoint.get("tokens")
    tokens = float(known) if known is not None else (curves.history.last("tokens") if curves else None)
    seconds = max(curves.seconds.values(), default=None) if curves else None
    lineage = {row["name"]: row["fingerprint"][:12] for row in results.lineage}
    return {
        "label": run.label,
        "parameters": rendering.short(results.model["parameters"]),
        "step": f"{results.checkpoint['step']:,}",
        "tokens": rendering.short(tokens) if tokens else "–",
        "compute": f"{flops_of(results) * tokens:.2e}" if tokens else "–",
        "seconds": rendering.duration(seconds) if seconds else "–",
        "checkpoint": results.checkpoint["fingerprint"][:12],
        "data": results.data_fingerprint[:12],
        "tokenizer": lineage.get("Tokenizer", "–"),
    }


def _curves(run: Scores) -> Any:
    return read_curves(run.label, run.directory, run.results)


def _charts(comparison: Comparison) -> dict[str, Any]:
    curves = [_curves(run) for run in comparison.runs]
    tokenizers = {row["tokenizer"] for row in _runs(comparison.runs)}
    shown_charts = comparison_charts(curves, same_tokenizer=len(tokenizers) == 1)
    return {"legend": [one.label if one is not None else None for one in curves], "figures": shown_charts}


# ----------------------------------------------------------------------------------------------------------- rendering
def _environment(**escaping: Any) -> jinja2.Environment:
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, loader=jinja2.FileSystemLoader(_HERE), trim_blocks=True, **escaping
    )
    environment.filters["breakable"] = breakable
    environment.filters["code"] = lambda text: Markup(rendering.markdown_code(text))
    return environment


def _as_markdown(value: Any) -> str:
    return str(value) if isinstance(value, Markup) else rendering.markdown_text(value)
