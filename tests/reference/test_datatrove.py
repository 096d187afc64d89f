"""Quality rules against datatrove, English words against spaCy; what they said is shipped (tests/data/quality.md)."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from configs.schema.quality_rules import C4Rules, FineWebRules, GopherQualityRules, GopherRepetitionRules
from data_prep.quality import Drop, TextFacts, build_rules
from data_prep.quality.text_facts import sentence_count

DATA = Path(__file__).parents[1] / "data"


def read(name: str) -> list[dict[str, Any]]:
    with gzip.open(DATA / name, "rt", encoding="utf-8", newline="\n") as stream:
        return [json.loads(line) for line in stream]


def test_words_and_sentences_are_spacys() -> None:
    for case in read("english-words.jsonl.gz"):
        assert TextFacts(case["line"]).words == case["words"], case["line"]
        assert sentence_count(case["line"], 1000) == case["sentences"], case["line"]


def verdict(rule: Any, text: str) -> tuple[str, str | None]:
    """Keep or reason, and the text that is left."""
    result = rule(TextFacts(text))
    return (result.reason, None) if isinstance(result, Drop) else ("keep", result)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gopher_repetition", GopherRepetitionRules(rule="gopher_repetition")),
        ("gopher_quality", GopherQualityRules(rule="gopher_quality")),
        ("fineweb", FineWebRules(rule="fineweb")),
        ("c4", C4Rules(rule="c4")),
        ("c4_fineweb", C4Rules(rule="c4", terminal_punctuation=False)),
    ],
)
def test_decisions_are_datatroves(name: str, settings: Any) -> None:
    (rule,) = build_rules([settings])
    after = build_rules([FineWebRules(rule="fineweb")])[0]
    reasons: Counter[str] = Counter()
    for number, case in enumerate(read("quality-datatrove.jsonl.gz")):
        expected = case[name].split()
        reason, left = verdict(rule, case["text"])
        assert reason == expected[0], (number, case["text"][:80])
        reasons[reason] += 1
        if left is not None and len(expected) > 1:
            assert hashlib.blake2b(left.encode(), digest_size=6).hexdigest() == expected[1], case["text"][:80]
        if name == "c4_fineweb" and left is not None:
            assert verdict(after, left)[0] == case["fineweb_after_c4"]
    assert len(reasons) >= {"gopher_repetition": 12, "gopher_quality": 8, "fineweb": 5}.get(name, 4), reasons
