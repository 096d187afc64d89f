"""Baselines that choose sentences: lead, LexRank as sumy has it, the greedy oracle, and chance."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import zstandard

from configs.schema.shipped import DIRECTORY
from eval.summaries.extraction import at_random, best, lead, lexrank, oracle
from eval.text_metrics.rouge import Rouge
from eval.text_metrics.sentences import split_text

ORDERS = Path(__file__).parents[3] / "data" / "lexrank-sumy.jsonl"


def ranked(scores: np.ndarray) -> list[int]:
    return [int(number) for number in np.argsort(-np.round(scores, 9), kind="stable")]


def test_lexrank_orders_60_passages_as_sumy_does() -> None:
    with zstandard.open(io.BytesIO((DIRECTORY / "corpus/gutenberg-heldout.jsonl.zst").read_bytes()), "rt") as lines:
        texts = [split_text(json.loads(line)["text"]) for line in lines]
    orders = [json.loads(line) for line in ORDERS.read_text().splitlines()]
    tokenize = Rouge().tokenizer.tokenize
    for one in orders:
        sentences = texts[one["row"]][one["start"] :][: one["sentences"]]
        tokens = [tokenize(sentence) for sentence in sentences]
        assert ranked(lexrank(tokens, damping=1.0, tolerance=0.1)) == one["sumy"], one
        assert ranked(lexrank(tokens)) == one["damped"], one
    assert len(orders) == 60


def test_lexrank_of_one_sentence_of_equal_ones_and_of_none_with_words() -> None:
    assert lexrank([["a"]]) == pytest.approx([1])
    assert lexrank([["a", "b"]] * 4) == pytest.approx([0.5] * 4)
    assert lexrank([[], []]) == pytest.approx([0.5**0.5] * 2)


def test_lead_and_the_best_stand_in_the_order_of_the_document() -> None:
    assert lead(5, 3) == [0, 1, 2] and lead(2, 3) == [0, 1]
    assert best([0.1, 0.4, 0.4 + 1e-12, 0.2], 1) == [1], "ties go to the earlier sentence"
    assert best([0.1, 0.4, 0.2, 0.9], 2) == [1, 3]


def test_random_sentences_are_the_same_each_time_and_differ_between_documents() -> None:
    drawn = [at_random(30, 3, number) for number in range(20)]
    assert drawn == [at_random(30, 3, number) for number in range(20)]
    assert len({tuple(one) for one in drawn}) > 15 and all(one == sorted(set(one)) for one in drawn)
    assert at_random(2, 3, 0) == [0, 1]


def test_the_oracle_finds_the_reference_and_stops_when_nothing_is_gained() -> None:
    sentences = ["Rain fell.", "The dam broke at night.", "Nobody was hurt.", "Weather stays bad."]
    reference = "The dam broke at night. Nobody was hurt."

    def score(numbers: list[int]) -> float:
        text = " ".join(sentences[number] for number in numbers)
        return float(Rouge().scores([text], [[reference]], ["rouge1"])["rouge1"][0].fmeasure)

    assert oracle(4, 3, score) == [1, 2]
    assert oracle(4, 1, score) == [1]
