"""Prepares the report's section on what people judged: strengths or grades, win rates, and who the raters were."""

from __future__ import annotations

from typing import Any

from configs.common import rendering
from eval.results import Result, Results

_KIND = "human"
_TRUST = ("ties", "both_bad", "position_effect", "self_agreement", "attention")


def people_tables(results: Results) -> list[dict[str, Any]]:
    """Returns a section for each session: models on a common scale, comparisons, trust in the votes, raters."""
    return [_section(session, results) for session in results.people]


def _section(session: dict[str, Any], results: Results) -> dict[str, Any]:
    own = [one for one in results.results if (one.named.kind, one.named.subject) == (_KIND, session["set"])]
    models = [one for one in own if one.named.metric not in (*_TRUST, "win_rate", "agreement")]
    return {
        "raters": [],
        "notes": [],
        "outdated": None,
        "question": "",
        "votes": 0,
        **session,
        "counted": sum(rater["aside"] is None for rater in session.get("raters", [])),
        "how": own[0].interval if own else "",
        "groups": _groups(models),
        "rates": [
            _row(one, one.named.variant.replace("/", " against ")) for one in own if one.named.metric == "win_rate"
        ],
        "trust": [_row(one, _words(one)) for one in own if one.named.metric in (*_TRUST, "agreement")],
    }


def _groups(scores: list[Result]) -> list[dict[str, Any]]:
    """Scores of one unit, on one scale: Elo points, or the grades of one question."""
    groups = []
    for metric in dict.fromkeys(one.named.metric for one in scores):
        found = [one for one in scores if one.named.metric == metric]
        ends = [value for one in found for value in (one.value, one.low, one.high) if value is not None]
        low, high = min(ends), max(ends)
        room = (high - low) * 0.06 or 1.0
        rows = [_placed(one, low - room, high + room) for one in sorted(found, key=lambda one: -one.value)]
        groups.append({"name": "Elo points" if metric == "elo" else metric, "unit": found[0].unit, "rows": rows})
    return groups


def _placed(score: Result, low: float, high: float) -> dict[str, Any]:
    def place(value: float) -> float:
        return 100 * (value - low) / (high - low)

    bounded = score.low is not None and score.high is not None
    return {
        **_row(score, score.named.variant),
        "place": place(score.value),
        "from": place(score.low or 0.0) if bounded else None,
        "to": place(score.high or 0.0) if bounded else None,
    }


def _row(score: Result, name: str) -> dict[str, Any]:
    bounds = (
        ""
        if score.low is None or score.high is None
        else f"{rendering.score(score.low)} to {rendering.score(score.high)}"
    )
    return {
        "name": name,
        "value": rendering.score(score.value),
        "range": bounds,
        "note": score.note or "",
        "unit": score.unit,
    }


def _words(score: Result) -> str:
    return " ".join([score.named.metric.replace("_", " "), score.named.variant]).strip()
