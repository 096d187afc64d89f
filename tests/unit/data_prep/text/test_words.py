"""The table of word hashes that deduplication and decontamination share."""

from __future__ import annotations

import random

import numpy as np
import pytest

from data_prep.dedup.shingles import normal_words
from data_prep.text.ngrams import word_table, words_of
from data_prep.text.words import WordTable, word_hash


@pytest.mark.parametrize("limit", [1, 20, 2_000_000])
def test_hashes_are_those_of_the_words_one_by_one(limit: int) -> None:
    """A table that starts anew in between gives the same."""
    chance = random.Random(limit)
    pieces = ["Ein", "don't", "中文b", "...", "x" * 60, "ß_a", "…"]
    table = WordTable(str.split, normal_words, limit=limit)
    for _ in range(5):
        texts = [" ".join(chance.choices(pieces, k=chance.randrange(9))) for _ in range(6)]
        hashes, counts = table.hashes(texts)
        expected = [[word_hash(word) for word in normal_words(text)] for text in texts]
        assert counts.tolist() == [len(words) for words in expected]
        assert hashes.tolist() == [value for words in expected for value in words]


def test_no_texts_and_texts_without_words() -> None:
    for texts in ([], [""], ["...", " "]):
        hashes, counts = WordTable(str.split, normal_words).hashes(texts)
        assert len(hashes) == 0 and counts.tolist() == [0] * len(texts)


def test_the_lowest_bit_tells_characters_of_scripts_without_spaces() -> None:
    texts = ["Don't 我爱NLP2 stop", "plain ascii TEXT."]
    hashes, counts = word_table().hashes(texts)
    words = [word for text in texts for word in words_of(text)]
    assert counts.tolist() == [5, 3] and (hashes & np.uint64(1)).tolist() == [word in "我爱" for word in words]
