"""Prepares the cards at the top of the report: what the model reaches, how large it is, how long it was trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from configs.common import rendering
from eval.report.chain import range_text, shown
from eval.report.history import History
from eval.results import Result, Results

# Scores that stand at the top where no text is scored by itself, by kind and metric; the first ones that are there.
_MAIN = {
    ("summarization", "rougeL"): "ROUGE-L",
    ("translation", "bleu"): "BLEU",
    ("chat", "accuracy"): "Right answers",
    ("preference", "accuracy"): "Pairs ordered right",
    ("benchmark", "acc"): "Accuracy",
    ("benchmark", "exact_match"): "Exact matches",
}
_BESIDE = {"rougeL": ("lead_rougeL", "lead"), "bleu": ("copy_bleu", "the source itself")}
_MOST = 2


def headline_cards(results: Results, history: History, compression: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Returns name, value, unit and detail of each card; `compression`: the bars of the page, by set."""
    cards = _of_text(results, compression) or _of_other_scores(results)
    for result in results.results:
        if not result.named.variant and result.named.kind == result.named.metric == "perplexity":
            cards.append(_card("Perplexity", shown(result), f"per token, on {result.named.subject}"))
            break
    model = results.model
    cards.append(
        _card(
            "Parameters",
            rendering.short(model["parameters"]),
            f"{model['layers']} layers, width {model['width']}, context {model['context_length']}",
        )
    )
    if tokens := trained_tokens(results, history):
        cards.append(_card("Tokens trained on", rendering.short(tokens), f"{results.checkpoint['step']:,} steps"))
    if seconds := training_seconds(history):
        tokens = trained_tokens(results, history) or 0
        value, unit = (seconds / 60, "min") if seconds < 6000 else (seconds / 3600, "h")
        cards.append(_card("Training time", f"{value:.1f}", f"{rendering.short(tokens / seconds)} tokens/s", unit))
    return cards


def trained_tokens(results: Results, history: History) -> float | None:
    """Returns the number of training tokens of the scored checkpoint."""
    known = results.checkpoint.get("tokens")
    return history.last("tokens") if known is None else float(known)


def training_seconds(history: History) -> float | None:
    """Returns the time of training steps, without pauses."""
    points = history.seconds()
    return points[-1][1] if points else None


def _of_text(results: Results, compression: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    if not compression:
        return []
    first = compression[0]
    cards = [_card("Bits per byte", f"{first['ours']:.3f}", first["range_text"])]
    if first["versus_xz"]:
        sign = "−" if first["xz_change"] < 0 else "+"
        cards.append(_card("Against xz -9e", f"{sign}{abs(first['xz_change']):.0%}", "size of the same text"))
    return cards


def _of_other_scores(results: Results) -> list[dict[str, str]]:
    """Cards of the first scores of tasks: one of each kind."""
    found: dict[tuple[str, str], Result] = {}
    for result in results.results:
        if not result.named.variant and (key := (result.named.kind, result.named.metric)) in _MAIN:
            found.setdefault(key, result)
    scores = results.by_name()
    return [_of_score(_MAIN[key], found[key], scores) for key in _MAIN if key in found][:_MOST]


def _of_score(name: str, result: Result, scores: dict[str, Result]) -> dict[str, str]:
    kind, subject, metric, _ = result.named
    detail = f"{subject}{range_text(result)}"
    key, label = _BESIDE.get(metric, ("", ""))
    if (other := scores.get(f"{kind}/{subject}/{key}")) is not None:
        detail += f"; {label} {shown(other)}"
    return _card(name, shown(result), detail)


def _card(name: str, value: str, detail: str = "", unit: str = "") -> dict[str, str]:
    return {"name": name, "value": value, "detail": detail, "unit": unit}
