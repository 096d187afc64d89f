"""Items of a made-up evaluation, stored as `score_parts` stores them, for tests of what shows items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from eval.items.item import Item, hash_of
from eval.parts import DIRECTORY, Part, Scored, score_parts
from eval.results import Result, load_results
from tests.parts.fake_run import write_fake_run

COPA = "benchmark/replica_copa"
HELDOUT = "perplexity/heldout"
ZH = "translation/classical-zh"


def question(number: int, right: bool, sure: float = 0.5) -> Item:
    """A question with two choices, the first of them right; `sure`: nats between the two."""
    choices = (f" the first end of {number}", f" the second end of {number}")
    nats = (-1.0, -1.0 - sure) if right else (-1.0 - sure, -1.0)
    asked = f"What was the cause of event {number}? " + "It is a long story. " * (number % 7)
    return Item(
        str(number),
        hash_of(asked, choices[0]),
        asked,
        "replica_copa",
        reference=choices[0],
        answer=choices[0 if right else 1],
        choices=choices,
        log_likelihoods=nats,
        bytes=40,
        seconds=0.01,
        measures={"acc": (float(right), 1.0)},
    )


def document(number: int, bits: float) -> Item:
    text = f"Document {number}. " + "It was the best of times. " * (1 + number % 9)
    size = len(text)
    measures = {"bits_per_byte": (bits * size, float(size)), "nats_per_token": (bits * size * 0.7, size / 3)}
    return Item(
        str(number + 1), hash_of(text), text, log_likelihoods=(-bits * size * 0.7,), bytes=size, measures=measures
    )


def pair(number: int, answer: str) -> Item:
    from eval.text_metrics.bleu import corpus_statistics

    reference = f"the translation of sentence {number}"
    statistics = {name: rows[0] for name, rows in corpus_statistics([answer], [[reference]], "zh").items()}
    asked = f"第{number}句"
    return Item(
        str(number + 1), hash_of(asked, reference), asked, reference=reference, answer=answer, bytes=len(answer),
        statistics=statistics,
    )  # fmt: skip


def fake_items(shift: int = 0, questions: int = 40) -> dict[str, list[Item]]:
    """Items of three parts; `shift` chooses which are right, and how well documents and sentences are predicted."""
    return {
        COPA: [question(n, (n + shift) % 3 > 0, 0.1 + n % 5) for n in range(questions)],
        HELDOUT: [document(n, 2 + ((n + shift) % 7) / 10) for n in range(28)],
        ZH: [pair(n, f"the translation of sentence {n if (n + shift) % 2 else 'nothing'}") for n in range(12)],
    }


def store_items(run: Path, items: dict[str, list[Item]], results: Sequence[Result] | None = None) -> Path:
    """Stores items beside the scores of a run whose `results.json` is there, and names them in it."""
    known = load_results(run)
    parts = [Part(name, len(own), lambda own=own: Scored(items=own)) for name, own in items.items()]  # type: ignore[misc]
    stored = score_parts(parts, run / DIRECTORY, again=True).items
    replace(known, items=stored, results=known.results if results is None else list(results)).save(run)
    return run


def run_with_items(directory: Path, shift: int = 0, questions: int = 40) -> Path:
    return store_items(write_fake_run(directory), fake_items(shift, questions))
