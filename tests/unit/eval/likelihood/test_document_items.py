"""What each document adds to the scores of a perplexity set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eval.likelihood.document_items import document_items
from eval.likelihood.perplexity import FEW_DOCUMENTS, SetScores, perplexity_results
from eval.parts import Scored
from tests.parts.items_check import without_items


def scores(documents: int, windows: int = 3) -> SetScores:
    generator = np.random.default_rng(5)
    count = documents * windows
    nats, tokens = generator.uniform(1, 9, count), generator.integers(1, 9, count).astype(np.float64)
    return SetScores(np.repeat(np.arange(documents), windows), nats, tokens, 2 * tokens)


@pytest.mark.parametrize("documents", [1, 3, FEW_DOCUMENTS, 50])
def test_documents_give_the_scores_of_their_set(documents: int, tmp_path: Path) -> None:
    own = scores(documents)
    texts = [f"text {number}" for number in range(documents)]
    parts = {"clean": np.arange(documents) % 2 == 0}
    items = document_items(texts, own, 6.0, parts)
    results = perplexity_results("heldout", own, 8, 50)
    assert without_items(Scored(results, items=items), "perplexity/heldout", tmp_path) == set()
    assert sum(item.seconds or 0 for item in items) == pytest.approx(6)
    assert [item.tags for item in items] == [("clean",) if number % 2 == 0 else () for number in range(documents)]
    assert items[0].log_likelihoods == pytest.approx((-own.nats[:3].sum(),))


def test_windows_in_any_order_belong_to_their_documents() -> None:
    """And documents without a scored token are no items."""
    own = scores(30)
    texts = [f"text {number}" for number in range(31)]
    shuffled = np.random.default_rng(1).permutation(90)
    mixed = SetScores(own.document[shuffled], own.nats[shuffled], own.tokens[shuffled], own.bytes[shuffled])
    for one, other in zip(document_items(texts, own), document_items(texts, mixed), strict=True):
        assert one.measures["bits_per_byte"] == pytest.approx(other.measures["bits_per_byte"]) and one.id == other.id
    assert len(document_items(texts, own)) == 30


def test_few_documents_have_their_windows() -> None:
    """As the interval is computed: over windows of fewer than 20 documents, else over documents."""
    own = scores(2)
    first, second = document_items(["a", "b"], own)
    assert np.reshape(second.units["bits_per_byte"], (-1, 2))[:, 1].tolist() == own.bytes[3:].tolist()
    assert sum(first.units["nats_per_token"][::2]) == pytest.approx(own.nats[:3].sum())
    assert document_items(["a"] * FEW_DOCUMENTS, scores(FEW_DOCUMENTS))[0].units == {}
