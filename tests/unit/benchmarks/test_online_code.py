"""The benchmark of training as the compressor: its recipes load and can be coded, and its table; nothing is trained."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from configs.schema.recipe import load
from pretrain.coding.facts import refuse_recipe

ROOT = Path(__file__).resolve().parents[3]
_SPEC = importlib.util.spec_from_file_location("online_code", ROOT / "benchmarks" / "online_code.py")
assert _SPEC is not None and _SPEC.loader is not None
online_code: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(online_code)


@pytest.mark.parametrize("corpus", ["dna", "novels"])
def test_recipes_that_can_be_coded(tmp_path: Path, corpus: str) -> None:
    options = argparse.Namespace(corpus=corpus, bases=5000, characters=5000, tiny=corpus == "dna")
    recipe = load(online_code.write_recipe(tmp_path, options))
    refuse_recipe(recipe)
    assert recipe.train.epochs == 1 and recipe.train.zero.stage == 0
    assert (tmp_path / "corpus.jsonl").stat().st_size > 4900


def test_the_table() -> None:
    parts = {"header": 100, "tokenizer": 50, "stream": 850}
    record = {
        "file_bytes": 1000,
        "parts": parts,
        "symbols": {"batches": 3900, "first tokens of windows": 100},
        "bits": {"batches": 6500.0, "first tokens of windows": 200.0},
    }
    found = {
        "record": record, "text_bytes": 4000, "logged_bits": 6720.0, "xz": 1200, "zstd": 1300, "documents": 1,
        "same documents": True, "seconds": {"train and encode": 3.2},
    }  # fmt: skip
    lines = online_code.table(found).splitlines()
    assert "| file | 1,000 | 2.0000 |" in lines and "| batches | 3,900 | 6,500 | 1.6667 |" in lines
    assert "-0.298%. Stream against -log2 p: +1.4925%. 1 documents, equal to the corpus: True" in lines[-1]
