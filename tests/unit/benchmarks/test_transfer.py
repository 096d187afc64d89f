"""What one language saves of another's code, on numbers that can be checked by hand; nothing is trained here."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import zstandard
from scipy import stats

ROOT = Path(__file__).resolve().parents[3]
_SPEC = importlib.util.spec_from_file_location("transfer", ROOT / "benchmarks" / "transfer.py")
assert _SPEC is not None and _SPEC.loader is not None
transfer: Any = importlib.util.module_from_spec(_SPEC)
sys.modules["transfer"] = transfer  # its dataclasses look themselves up
_SPEC.loader.exec_module(transfer)


def test_what_is_saved_is_paired_by_seed_with_students_interval() -> None:
    scratch = [(1000.0, 200.0, 100.0), (1100.0, 220.0, 100.0), (1300.0, 260.0, 100.0)]
    start = [(900.0, 150.0, 100.0), (980.0, 170.0, 100.0), (1190.0, 200.0, 100.0)]
    nothing, one = transfer.compare({"scratch": scratch, "fr": start})
    assert nothing.bits == [0.0, 0.0, 0.0] and nothing.low is None
    assert one.bits == [100.0, 120.0, 110.0] and one.early == [50.0, 50.0, 60.0]
    low, high = stats.t.interval(0.95, 2, loc=110, scale=10 / 3**0.5)
    assert (one.low, one.high) == (pytest.approx(low), pytest.approx(high))
    table = transfer.markdown("de", [nothing, one], {"fr": "French"}, 1100.0)
    assert "| nothing | 11.333 |" in table and "| French | 10.233 | 0.1 (0.1 to 0.1) | 10.0% | 0.1 |" in table


def test_other_texts_are_not_compared() -> None:
    with pytest.raises(ValueError, match="another text"):
        transfer.compare({"scratch": [(10.0, 1.0, 100.0)], "fr": [(9.0, 1.0, 90.0)]})


def test_the_code_of_a_run_and_of_its_first_tenth(tmp_path: Path) -> None:
    lines = [
        {"step": step, "train/code_length_bits": 80.0 * step - step, "train/code_bits_per_byte": 8 - 0.1}
        for step in range(1, 21)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    bits, early, size = transfer.code_of(tmp_path)
    assert (bits, size) == (1580.0, 200.0)
    assert early == 158.0, "the second of twenty steps"


@pytest.mark.parametrize("target", ["de", "fr"])
def test_recipes_share_their_data_over_seeds_and_start_where_they_should(tmp_path: Path, target: str) -> None:
    text, *before = transfer.texts_of(target, 5000, tmp_path / "texts")
    assert len({one.name for one in (text, *before)}) == 7
    starts = [transfer.recipe_of(one, 1, tmp_path, None, []) for one in before]
    made = transfer.recipe_of(text, 1, tmp_path, starts[0].run_directory, [])
    again = transfer.recipe_of(text, 2, tmp_path, None, [])
    assert made.train.init_from == str(tmp_path / "novels-1") and made.data_directory == again.data_directory
    assert made.run_directory.name == f"{target}-from-novels-1" and made.seed == 1 and again.seed == 2
    assert all(Path(str(recipe.data.sources[0].path)).is_file() for recipe in (*starts, made))


@pytest.mark.parametrize("kind", ["words", "letters"])
def test_a_shuffled_text_keeps_its_words_or_its_letters(tmp_path: Path, kind: str) -> None:
    found = [json.loads(line)["text"] for line in transfer.shuffled(tmp_path, 30_000, kind).open(encoding="utf-8")]
    assert 29_000 < len("".join(found).encode()) <= 30_000 and len(found) == 2
    novels = zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(
        (transfer.CORPUS / transfer.NOVELS).read_bytes()
    )
    before = [json.loads(line)["text"] for line in novels.read().splitlines()[:2]]
    before[1] = before[1].encode()[: 30_000 - len(before[0].encode())].decode(errors="ignore")
    assert [sorted(text) for text in found] == [sorted(text) for text in before]
    assert all(ours.split()[:50] != theirs.split()[:50] for ours, theirs in zip(found, before, strict=True))
    if kind == "words":  # the end of the cut passage may be part of a word, and meet another
        assert sum((Counter(found[0].split()) - Counter(before[0].split())).values()) <= 2
    common = [Counter(text.split())["the"] for text in found]
    assert min(common) > 40 if kind == "words" else max(common) < 10
    assert "of the" not in "".join(found) or kind == "words"
