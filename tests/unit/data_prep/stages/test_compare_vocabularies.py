"""Vocabularies measured side by side: fair, right to the byte, and printed."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from configs.schema.data import Data
from configs.schema.data import Tokenizer as Settings
from configs.schema.sources import Source
from data_prep.documents.conversion import read_documents
from data_prep.stages.compare_vocabularies import _Reading, as_json, compare, markdown, read_size, shortened
from data_prep.tokens.encode import NASTY
from data_prep.tokens.vocab_training import train_vocab
from launch.cli import main, parse

ROOT = Path(__file__).resolve().parents[4]
CORPUS = ROOT / "configs" / "corpus"
RECIPE = str(ROOT / "configs" / "zh-en-small.yaml")


@pytest.fixture(scope="module")
def data() -> Data:
    return Data.model_validate(
        {
            "sources": [
                {"name": "novels", "path": str(CORPUS / "gutenberg-heldout.jsonl.zst")},
                {"name": "genome", "path": str(CORPUS / "ecoli-k12-heldout.fa.gz")},
            ],
            "tokenizer": {"kmer": 4},
        }
    )


@pytest.mark.slow
def test_measures_are_right(data: Data, tmp_path: Path) -> None:
    train_vocab(Settings(vocab_size=280), NASTY * 3).save(tmp_path)
    measured, held_out = compare(data, [400, 1000, 90_000], ["bpe", "char", "byte", "kmer"], [str(tmp_path)], 400_000)
    assert [item.name for item in measured] == [
        *("bpe 400", "bpe 1,000", "bpe 90,000", "char", "byte", "kmer 4", str(tmp_path))
    ]
    named = {item.name: item for item in measured}
    assert "supports only" in named["bpe 90,000"].note
    byte = named["byte"]
    assert set(byte.bytes_per_token.values()) == {1.0}
    assert held_out["all"] == held_out["source/novels"] + held_out["source/genome"]
    assert 0.03 < held_out["all"] / 400_000 < 0.25
    assert held_out["language/und"] >= held_out["source/genome"]
    assert held_out["language/en"] <= held_out["source/novels"]
    assert named["kmer 4"].bytes_per_token["source/genome"] == pytest.approx(4, abs=0.01)
    assert named["kmer 4"].bytes_per_token["source/novels"] == 1
    assert named["bpe 400"].bytes_per_token["all"] < named["bpe 1,000"].bytes_per_token["all"]
    assert named["bpe 400"].tokens_per_word["source/novels"] > named["bpe 1,000"].tokens_per_word["source/novels"] > 1
    assert named["char"].unused < 0.1 and byte.unused == 0
    assert 0 <= named["bpe 400"].unused < 0.2 < named[str(tmp_path)].unused
    assert all(item.megabytes_per_second > 0 for item in measured if not item.note)
    table = markdown(measured, held_out)
    assert "| bytes per token, source genome |" in table and "bpe 90,000: " in table
    assert json.loads(json.dumps(as_json(measured, held_out)))["vocabularies"][0]["size"] == 400


def test_a_shorter_vocabulary_is_the_one_that_a_shorter_training_gives() -> None:
    texts = [document.text for document in read_documents(_novels())][:6]
    large, small = (train_vocab(Settings(vocab_size=size), texts) for size in (900, 500))
    cut = shortened(large, 500)
    assert cut.fingerprint == small.fingerprint
    assert np.array_equal(cut.token_bytes, large.token_bytes[:500])
    assert shortened(large, 900).fingerprint == large.fingerprint


def _novels() -> Source:
    return Data.model_validate(
        {"sources": [{"name": "n", "path": str(CORPUS / "gutenberg-heldout.jsonl.zst")}]}
    ).sources[0]


def test_mistakes(data: Data) -> None:
    with pytest.raises(ValueError, match="unknown kind words; kinds: bpe, char"):
        compare(data, [300], ["words"])
    with pytest.raises(ValueError, match=r"source novels: .* in \d+ passages are too few to hold a part out; raise"):
        compare(data, [300], ["byte"], sample_bytes=2000)
    assert [read_size(text) for text in ("8k", "32K", "500")] == [8192, 32768, 500]
    with pytest.raises(ValueError, match="is not a vocabulary size"):
        read_size("8m")


def test_conversations_are_compared_by_their_text() -> None:
    source = {"name": "tasks", "path": str(CORPUS / "seed-tasks.jsonl.zst"), "shape": "alpaca"}
    measured, held_out = compare(Data.model_validate({"sources": [source]}), [], ["byte"], sample_bytes=30_000)
    assert measured[0].bytes_per_token["all"] == 1.0
    assert held_out["all"] > 1000


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    assert main(
        ["tokenizer", "compare", RECIPE, "--sizes", "300,500", "--sample-bytes", "300000", "--json", str(file)]
    ) == 0  # fmt: skip
    assert "| bytes per token, language zh |" in capsys.readouterr().out
    assert [item["size"] for item in json.loads(file.read_text())["vocabularies"]] == [300, 500]


WORDS = [
    "river",
    "stone",
    "bread",
    "winter",
    "garden",
    "letter",
    "window",
    "morning",
    "silver",
    "music",
    "forest",
    "paper",
]


def corpus(directory: Path, sizes: list[int], **settings: Any) -> Data:
    """Files of words of about these sizes in bytes."""
    chance = random.Random(2)
    for number, size in enumerate(sizes):
        text = " ".join(chance.choices(WORDS, k=size // 7)) + f" {number}.\n"
        (directory / f"p{number:03d}.txt").write_text(text)
    source = {"name": "s", "path": str(directory / "*.txt"), **settings.pop("source", {})}
    return Data.model_validate({"sources": [source], "language": {"identify": True}, **settings})


def sampled(data: Data, budget: int) -> list[str]:
    return [document.text for document in _Reading(data, data.sources[0]).documents(budget)]


@pytest.mark.parametrize(
    ("sizes", "budget", "documents"),
    [
        ([1000] * 300, 10**7, 300),  # all that there is
        ([1000] * 300, 50_000, 50),
        ([1000, 1000, 1000, 200_000], 100_000, 5),  # what small files leave is asked of the large one
        ([200_000] * 20, 100_000, 8),
    ],
)
def test_the_sample_is_as_large_as_asked_for(tmp_path: Path, sizes: list[int], budget: int, documents: int) -> None:
    texts = sampled(corpus(tmp_path, sizes), budget)
    wanted = min(budget, sum(file.stat().st_size for file in tmp_path.iterdir()))
    assert wanted * 0.99 - 300 <= sum(map(len, texts)) <= wanted
    assert abs(len(texts) - documents) <= 3
    if budget == 50_000:  # from everywhere
        numbers = sorted(int(text.rsplit(" ", 1)[1].rstrip(".")) for text in texts[:-1])
        assert max(b - a for a, b in pairwise(numbers)) < 20


def test_many_small_files_are_measured(tmp_path: Path) -> None:
    data = corpus(tmp_path, [1000] * 300)
    measured, held_out = compare(data, [300], ["byte"], sample_bytes=10**7)
    assert measured[0].bytes_per_token["all"] == 1 and 15_000 < held_out["all"] < 60_000
    with pytest.raises(ValueError, match=r"bytes of text in \d+ passages are too few .*; give the source more text"):
        compare(corpus(tmp_path, [1000] * 300, source={"max_files": 2}), [300], ["byte"])
    rules = {"quality": {"min_characters": 5000}}
    with pytest.raises(ValueError, match=r"give the source more text \(p\d+\.txt:0: quality/too_short\)"):
        compare(corpus(tmp_path, [1000] * 300, **rules), [300], ["byte"])


def test_the_sample_is_what_preparation_would_make(tmp_path: Path) -> None:
    words = " ".join(random.Random(3).choices(WORDS, k=40))
    page = f"<html><body><p>Dear reader,   write to jane.doe@uni-bonn.de or do not. {words}</p></body></html>"
    for name in ("a", "b"):
        (tmp_path / f"{name}.html").write_text(page)
    (tmp_path / "c.html").write_text("<html><body><p>Too short.</p></body></html>")
    (tmp_path / "d.html").write_bytes(b"\x00\x01")
    steps = {"extract": {"html": "text"}, "privacy": {"emails": True}, "quality": {"min_characters": 100}}
    data = Data.model_validate({"sources": [{"name": "s", "path": str(tmp_path / "*.html")}], **steps})
    assert sampled(data, 10**6) == [f"Dear reader, write to email@example.com or do not. {words}"]


def test_lost_bytes_are_measured(tmp_path: Path) -> None:
    letters = Tokenizer(models.BPE({"<|endoftext|>": 0, **{letter: n for n, letter in enumerate("abcdefghi ", 1)}}, []))
    letters.add_special_tokens(["<|endoftext|>"])
    letters.save(str(tmp_path / "tokenizer.json"))
    measured, held_out = compare(corpus(tmp_path, [1000] * 300), [300], [], [str(tmp_path / "tokenizer.json")])
    assert 0.2 < measured[0].lost < 0.8
    assert f"{measured[0].lost:.2%}" in markdown(measured, held_out)


@pytest.mark.parametrize("order", ["recipe first", "options first", "files twice"])
def test_the_recipe_may_stand_anywhere(order: str, tmp_path: Path) -> None:
    arguments = {
        "recipe first": ["r.yaml", "--files", "a.json", "b.json"],
        "options first": ["--files", "a.json", "b.json", "r.yaml"],
        "files twice": ["--files", "a.json", "--files", "b.json", "r.yaml", "data.limits.attempts=2"],
    }[order]
    parsed = parse(["tokenizer", "compare", *arguments])
    assert (str(parsed.recipe), parsed.files) == ("r.yaml", ["a.json", "b.json"])


def test_a_recipe_that_is_missing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["tokenizer", "compare", "--files", "a.json", "b.json"])
    assert ended.value.code == 2 and "RECIPE" in capsys.readouterr().err
