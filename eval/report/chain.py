"""Builds the report's view of a chain of stages: the tree, scores along it, and what each stage's training did."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.common.layout import REPORT, STAGES
from configs.common.rendering import score, short
from configs.schema.objectives import Reinforcement, unit_of
from configs.schema.recipe import Recipe
from configs.schema.stage import Stage
from configs.schema.stage_recipe import BASE, parent_name
from eval.report.history import read_history
from eval.report.rollout_examples import example_rollouts
from eval.report.training_charts import stage_charts
from eval.results import Change, Result, Results, Sample
from eval.stage_facts import kind_of, role_of

KINDS = {
    "sft": "supervised fine-tuning",
    "reward": "reward model",
    "dpo": "preference optimisation",
    "grpo": "reinforcement learning (GRPO)",
    "rloo": "reinforcement learning (RLOO)",
    "reinforce": "reinforcement learning (REINFORCE)",
    "ppo": "reinforcement learning (PPO)",
    "pretraining": "pretraining",
    "masked_diffusion": "masked diffusion",
    "custom": "an objective of the user",
}
MARKS = {"better": "▲", "worse": "▼", "no difference": "=", "incomparable": "≠"}
# Metrics of the table along the chain, and of the nodes of the tree.
_TABLE = ("accuracy", "stop_rate", "bits_per_byte", "nats_per_token", "acc", "acc_norm", "bleu")
_SHARES = ("accuracy", "stop_rate", "format", "longer", "less_repeated", "acc", "acc_norm", "exact_match")
_SHOWN_CHARTS = 4


@dataclass(frozen=True)
class _Link:
    """One run of the chain: the base, or a stage, with its results if it has any."""

    name: str
    kind: str
    parent: str | None
    run: Path
    results: Results | None
    stage: Stage | None = None


def chain_facts(recipe: Recipe, results: Results, stages: Mapping[str, Results | None]) -> dict[str, Any]:
    """Returns what the template shows of a chain; `chain` is None for a run without stages.

    Args:
        recipe: of the run.
        results: of the run.
        stages: results of its stages by name; None for a stage without.
    """
    if not recipe.stages:
        return {"chain": None}
    run = recipe.run_directory
    links = [_Link(BASE, kind_of(recipe.train.objective), None, run, results)]
    for number, stage in enumerate(recipe.stages):
        parent, place = parent_name(recipe.stages, number), run / STAGES / stage.name
        links.append(_Link(stage.name, kind_of(stage.objective), parent, place, stages[stage.name], stage))
    return {
        "chain": {
            "tree": _tree(links, recipe),
            "table": _table(links),
            "stages": [_section(link, run) for link in links[1:]],
        }
    }


def changes_facts(results: Results, run: Path) -> dict[str, Any]:
    """Returns what the template shows of a stage: its scores beside those of its parent, and the way to its chain."""
    top = run.parents[1] / REPORT / "index.html"
    return {
        "whole": os.path.relpath(top, run / REPORT) if results.stage else None,
        "stage": results.stage or None,
        "stage_kind": KINDS.get(results.stage.get("kind", ""), ""),
        "changes": change_rows(results.changes, results),
        "answers": share_rows(results, "chat"),
        "preferences": share_rows(results, "preference"),
    }


# ---------------------------------------------------------------------------------------------------------------- tree
def _tree(links: Sequence[_Link], recipe: Recipe) -> dict[str, Any]:
    def node(link: _Link) -> dict[str, Any]:
        children = [node(other) for other in links if other.parent == link.name]
        found = link.results
        return {
            "name": link.name,
            "kind": KINDS[link.kind],
            "link": None if link.name == BASE else _page(link.run, recipe.run_directory),
            "fingerprint": found.checkpoint["fingerprint"] if found else None,
            "detail": _detail(link),
            "scores": list(_headlines(found)) if found else [],
            "children": children,
        }

    base = links[0].results
    assert base is not None
    return {
        "name": "raw files",
        "kind": ", ".join(source.name for source in recipe.data.sources),
        "link": None,
        "fingerprint": base.data_fingerprint,
        "detail": _counted(base),
        "scores": [],
        "children": [node(links[0])],
    }


def _page(run: Path, top: Path) -> str | None:
    """Returns the relative path of a stage's own page, if there is one."""
    page = run / REPORT / "index.html"
    return os.path.relpath(page, top / REPORT) if page.is_file() else None


def _counted(results: Results) -> str:
    train = results.data.get("train") or {}
    parts = [f"{short(train[key])} {key}" for key in ("documents", "tokens") if train.get(key)]
    return ", ".join(parts)


def _detail(link: _Link) -> str:
    if link.results is None:
        return "not scored yet"
    parts = [f"step {link.results.checkpoint['step']:,}"]
    if link.stage is None:
        parts.insert(0, f"{short(link.results.model['parameters'])} parameters")
    else:
        documents = (link.results.data.get("train") or {}).get("documents")
        unit = unit_of(link.stage.objective)
        parts += [f"{short(documents // (2 if unit == 'pair' else 1))} {unit}s"] if documents else []
        objective = link.stage.objective
        if isinstance(objective, Reinforcement) and objective.rewards.model is not None:
            parts.append(f"rewarded by {objective.rewards.model.stage}")
    return ", ".join(parts)


def _headlines(results: Results) -> Iterator[str]:
    """Yields short texts of the scores that tell most about a stage."""
    wanted = {("chat", "accuracy"), ("preference", "accuracy"), ("preference", "longer")}
    known = [result for result in results.results if not result.named.variant]
    chosen = [result for result in known if (result.named.kind, result.named.metric) in wanted]
    if not chosen:
        chosen = [result for result in known if result.named.metric in ("bits_per_byte", "stop_rate")][:1]
    for result in chosen:
        named = result.named
        label = (
            named.subject
            if (named.kind, named.metric) == ("chat", "accuracy")
            else f"{named.subject}: {_label(result)}"
        )
        yield f"{label} {shown(result)}{range_text(result)}"


# --------------------------------------------------------------------------------------------------------------- table
def _table(links: Sequence[_Link]) -> dict[str, Any]:
    """Builds the scores of all models that give text, a row for each score and a column for each model."""
    texts = [
        link
        for link in links
        if link.results is not None and (not link.stage or role_of(link.stage.objective) != "reward")
    ]
    names: list[str] = []
    for link in texts:
        assert link.results is not None
        for result in link.results.results:
            named = result.named
            passes = named.metric.startswith("pass@") and named.metric != "pass@1"
            beside = named.kind == "perplexity" and named.metric != "bits_per_byte"  # the same thing in other units
            if not named.variant and not beside and (named.metric in _TABLE or passes) and result.name not in names:
                names.append(result.name)
    return {"models": [link.name for link in texts], "rows": [_row(name, texts) for name in names]}


def _row(name: str, links: Sequence[_Link]) -> dict[str, Any]:
    cells, first = [], None
    for link in links:
        assert link.results is not None
        result = link.results.by_name().get(name)
        change = next((item for item in link.results.changes if item.name == name), None)
        first = first or result
        cells.append(
            {
                "value": shown(result) if result else "–",
                "range": range_text(result) if result else "",
                "verdict": change.verdict if change else "",
                "mark": MARKS[change.verdict] if change else "",
                "title": _against(change) if change else "",
            }
        )
    assert first is not None
    return {"name": name, "n": first.n, "unit": first.unit, "cells": cells}


def _against(change: Change) -> str:
    reason = f" ({change.reason})" if change.reason else ""
    return f"{change.verdict} against {change.against}: {how(change)}{reason}"


def how(change: Change) -> str:
    """Says how a verdict was found: p, after Holm's method if that changes it, and the test."""
    if change.p is None:
        return change.method
    adjusted = f", {change.adjusted:.2g} after Holm" if change.adjusted not in (None, change.p) else ""
    return f"p = {change.p:.2g}{adjusted}: {change.method}"


def change_rows(changes: Sequence[Change], results: Results) -> list[dict[str, Any]]:
    """Returns what pages show of scores that were compared with another run's.

    Args:
        changes: the comparisons.
        results: of the run, which tell the unit of a score.
    """
    return [_change_row(change, results.by_name().get(change.name)) for change in changes]


def _change_row(change: Change, result: Result | None) -> dict[str, Any]:
    percent = result is not None and shown(result).endswith("%")

    def difference(value: float) -> str:
        if not math.isfinite(value):
            return "–" if math.isnan(value) else f"{'+' if value > 0 else ''}{score(value)}"
        return f"{100 * value:+.1f}" if percent else f"{value:+.4g}"

    ends = "" if change.low is None or change.high is None else f"[{difference(change.low)}, {difference(change.high)}]"
    return {
        "name": change.name,
        "before": f"{100 * change.before:.1f}%" if percent else score(change.before),
        "after": f"{100 * change.after:.1f}%" if percent else score(change.after),
        "change": difference(change.after - change.before),
        "interval": ends,
        "verdict": change.verdict,
        "mark": MARKS[change.verdict],
        "how": how(change),
        "n": f"{change.n:,}" if change.n else "–",
        "reason": change.reason,
    }


def shown(result: Result) -> str:
    """Formats a score: shares as percent, others with four digits, an upper bound behind a sign."""
    is_share = result.named.metric in _SHARES or result.named.metric.startswith("pass@")
    return f"{100 * result.value:.1f}%" if is_share else f"{'≤ ' if result.is_bound else ''}{score(result.value)}"


def range_text(result: Result) -> str:
    """Formats an interval in brackets, as `shown` does its score; empty for a score that is exact."""
    if result.low is None or result.high is None or result.low == result.high:
        return ""
    is_share = shown(result).endswith("%")
    low, high = (f"{100 * end:.1f}" if is_share else score(end) for end in (result.low, result.high))
    return f" [{low}, {high}]"


def _label(result: Result) -> str:
    labels = {
        "accuracy": "right answers",
        "format": "one #### in the last line",
        "stop_rate": "answers that end",
        "longer": "longer is chosen",
        "less_repeated": "fewer repetitions are chosen",
        "bits_per_byte": "bits per byte",
    }
    metric = result.named.metric
    if result.named.kind == "preference" and metric == "accuracy":
        return "reward model"
    return labels.get(metric, metric)


# -------------------------------------------------------------------------------------------------------------- stages
def share_rows(results: Results, kind: str) -> list[dict[str, Any]]:
    """Builds points of shares of one kind (`chat` or `preference`) on a scale of 0 to 100%."""
    return [
        {
            "set": result.named.subject,
            "metric": _label(result),
            "value": 100 * result.value,
            "low": None if result.low is None else 100 * result.low,
            "high": None if result.high is None else 100 * result.high,
            "chance": None if result.chance is None else 100 * result.chance,
            "detail": f"{result.n:,} {'pairs' if kind == 'preference' else 'prompts'}",
            "baseline": result.named.metric in ("longer", "less_repeated"),
        }
        for result in results.results
        if result.named.kind == kind and not result.named.variant and shown(result).endswith("%")
    ]


def _section(link: _Link, top: Path) -> dict[str, Any]:
    steps = link.results.checkpoint["step"] if link.results else None
    history = read_history(link.run) if link.run.is_dir() else None
    bound = link.kind == "masked_diffusion"
    charts = stage_charts(history.until(steps) if steps is not None else history, bound) if history else []
    return {
        "name": link.name,
        "kind": KINDS[link.kind],
        "parent": link.parent,
        "link": _page(link.run, top),
        "detail": _detail(link),
        "charts": charts[:_SHOWN_CHARTS],
        "preferences": share_rows(link.results, "preference") if link.results else [],
        "rollouts": example_rollouts(link.run, steps),
        "samples": _said(link.results) if link.results else [],
    }


def _said(results: Results) -> list[Sample]:
    """Chooses two answers, those that were checked first."""
    return sorted((item for item in results.samples if item.kind == "chat"), key=lambda item: item.reference is None)[
        :2
    ]
