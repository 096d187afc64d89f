"""Holds scores against the items that they are said to be made of."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from eval.items.store import read_items, write_items
from eval.items.table import ItemTable
from eval.parts import Scored
from eval.text_metrics.bleu import metrics_of

_EXPONENTIAL = {
    "perplexity": "nats_per_token",
    "word_perplexity": "nats_per_word",
    "byte_perplexity": "nats_per_byte",
}


def without_items(scored: Scored, part: str, run: Path) -> set[str]:
    """Stores the items, reads them again, and checks that they give each score; returns the names of scores without.

    Scores of the whole corpus are computed from the sums of their statistics.
    """
    write_items(run / "scores", part, "f" * 32, scored.items)
    table = read_items(run, part)
    assert [item.id for item in table.items()] == [item.id for item in scored.items]
    assert list(table.items()) == list(scored.items)
    assert all(len(item.hash) == 16 and item.asked for item in scored.items)
    return {result.name for result in scored.results if not _given(table, result.name, result.value, result.n)}


def _given(table: ItemTable, name: str, value: float, n: int) -> bool:
    _, subject, rest = name.split("/", 2)
    before, _, tag = rest.rpartition("/")
    for metric, chosen in ((rest, None), (before, tag)):
        convert = math.exp if metric in _EXPONENTIAL else float
        units = table.measure(_EXPONENTIAL.get(metric, metric), subject, chosen)
        if units is not None:
            assert convert(units.numerators.sum() / units.denominators.sum()) == pytest.approx(value, rel=1e-9), name
            assert len({own.partition("#")[0] for own in units.ids}) == n, name
            return True
        if (kept := table.statistics(metric, subject, chosen)) is not None and metric in ("bleu", "chrf"):
            score = metrics_of("13a")[metric]._compute_score_from_stats(kept[2].sum(axis=0).tolist())
            assert score.score == pytest.approx(value, rel=1e-9) and len(kept[0]) == n, name
            return True
    return False
