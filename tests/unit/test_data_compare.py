"""Vocabularies measured side by side: fair, right to the byte, and printed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from configs.data_sections import Data, Source
from configs.data_sections import Tokenizer as Settings
from data_prep.compare import as_json, compare, markdown, read_size, shortened
from data_prep.documents import read_documents
from data_prep.encode import NASTY
from data_prep.vocab import train_vocab
from launch.cli import main

ROOT = Path(__file__).resolve().parents[2]
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
    with pytest.raises(ValueError, match=r"source novels: its sample of \d+ passages is too small"):
        compare(data, [300], ["byte"], sample_bytes=2000)
    assert [read_size(text) for text in ("8k", "32K", "500")] == [8192, 32768, 500]
    with pytest.raises(ValueError, match="is no vocabulary size"):
        read_size("8m")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    assert main(
        ["tokenizer", "compare", RECIPE, "--sizes", "300,500", "--sample-bytes", "300000", "--json", str(file)]
    ) == 0  # fmt: skip
    assert "| bytes per token, language zh |" in capsys.readouterr().out
    assert [item["size"] for item in json.loads(file.read_text())["vocabularies"]] == [300, 500]
