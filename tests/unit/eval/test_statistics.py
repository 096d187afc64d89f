"""Intervals, compressors and the results file."""

from __future__ import annotations

import gzip
import json
import lzma
import math
import random
from pathlib import Path

import numpy as np
import pytest
import zstandard

from configs.common.files import write_json
from configs.common.rendering import score
from eval.likelihood.compressors import compression_results
from eval.likelihood.perplexity import SetScores, perplexity_results
from eval.results import Result, load_results
from eval.statistics import bootstrap, bootstrap_difference, bootstrap_ratio, no_interval, wilson
from tests.parts.fake_run import fake_results


def test_wilson_against_published_values() -> None:
    """Newcombe 1998, table I: 81/263, 15/148, 0/20 and 1/29 by Wilson's score method without continuity correction."""
    for successes, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(0, 12)[0] == 0.0 and wilson(12, 12)[1] == 1.0


def test_bootstrap_ratio_covers_the_truth() -> None:
    """Of 200 sets drawn from a known population, about 95% of the intervals hold the true ratio."""
    generator = np.random.default_rng(7)
    hits = 0
    for _ in range(200):
        sizes = generator.integers(50, 500, 60).astype(float)
        nats = sizes * generator.normal(2.0, 0.4, 60)
        low, high = bootstrap_ratio(nats, sizes, 300) or (math.nan, math.nan)
        hits += low <= 2.0 <= high
    assert 178 <= hits <= 198


def test_bootstrap_is_repeatable_and_needs_two() -> None:
    values = np.arange(10.0)
    assert bootstrap_ratio(values, values + 1, 200) == bootstrap_ratio(values, values + 1, 200)
    assert bootstrap_ratio(values[:1], values[:1], 200) is None
    assert bootstrap([1.0], sum, 200) is None
    outcome = bootstrap([(1, 2), (3, 4)], lambda items: sum(a for a, _ in items), 1000)
    assert outcome is not None and outcome[1] == 100  # aggregates of anything but numbers are slow


def test_an_interval_of_differences_that_are_not_numbers_is_none(recwarn: pytest.WarningsRecorder) -> None:
    """e to the power of two large ratios is infinite twice, and so their difference is none."""
    nats, sizes = np.linspace(800, 900, 8), np.ones(8)
    with np.errstate(over="ignore"):
        assert bootstrap_difference((nats, sizes), (nats + 1, sizes), 50, np.exp) is None
    assert not [one for one in recwarn if "invalid" in str(one.message)]


def test_interval_is_drawn_over_windows_when_documents_are_few() -> None:
    def intervals(documents: int) -> tuple[str, int]:
        scores = SetScores(np.arange(40) * documents // 40, np.linspace(1, 2, 40), np.full(40, 5.0), np.full(40, 9.0))
        result = perplexity_results("s", scores, 4, 100)[0]
        assert result.low is not None and result.high is not None and result.low < result.value < result.high
        return result.interval, result.n

    assert intervals(2) == ("bootstrap over 40 windows of 2 documents", 2)
    assert intervals(20) == ("bootstrap over 20 documents", 20)
    single = perplexity_results("s", SetScores(*(np.array([v]) for v in (0, 6.0, 3.0, 9.0))), 4, 100)  # type: ignore[arg-type]
    assert single[0].low is None and single[0].interval == "none: a single unit"
    assert single[0].value == pytest.approx(6 / math.log(2) / 9)


def test_perplexity_beyond_any_number_is_infinite() -> None:
    """The other scores of the set are finite, and kept."""
    scores = SetScores(np.arange(3), np.array([900.0, 1026.0, 1100.0]), np.ones(3), np.full(3, 9.0))
    bits, perplexity, nats = perplexity_results("s", scores, 4, 100)
    assert bits.value == pytest.approx(3026 / 27 / math.log(2)) and nats.value == pytest.approx(3026 / 3)
    assert perplexity.value == math.inf and perplexity.high == math.inf
    assert "e to the power of 1,009" in (perplexity.note or "") and "power" not in (nats.note or "")
    near = SetScores(np.arange(3), np.array([600.0, 700.0, 800.0]), np.ones(3), np.full(3, 9.0))
    perplexity = perplexity_results("s", near, 4, 100)[1]
    assert perplexity.value == pytest.approx(math.exp(700)) and perplexity.high == math.inf
    assert perplexity.low is not None and math.isfinite(perplexity.low)
    assert score(math.inf) == "∞"


def test_units_that_are_all_alike_have_no_interval() -> None:
    """An interval without width would claim certainty."""
    assert bootstrap_ratio(np.ones(40), np.ones(40), 100) is None
    assert bootstrap([0.5] * 40, np.mean, 100) is None
    same = SetScores(np.arange(30), np.full(30, 2.0), np.ones(30), np.ones(30))
    assert perplexity_results("s", same, 4, 100)[0].interval == "none: every resample of the 30 units scores the same"
    assert no_interval(1, "pair") == "none: a single pair"
    assert bootstrap([(0.0,), (math.inf,)], lambda items: sum(a for (a,) in items), 100) == ((0.0, math.inf), 100)


def test_compressors_are_those_of_the_command_line() -> None:
    words = random.Random(0)
    texts = ["The quick brown fox. " * 40, "三国志" * 30, " ".join(f"{words.randrange(3000):b}" for _ in range(3000))]
    data = "".join(texts).encode()
    expected = {
        "gzip": len(gzip.compress(data, compresslevel=9)),
        "xz": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
        "zstd": len(zstandard.compress(data, 19)),
    }
    assert expected["gzip"] < len(gzip.compress(data, compresslevel=6)), "this text tells the levels apart"
    for result in compression_results("s", texts):
        program = result.name.split("/")[2].removesuffix("_bits_per_byte")
        assert result.value == 8 * expected[program] / len(data)


def test_results_round_trip(tmp_path: Path) -> None:
    results = fake_results()
    results.save(tmp_path)
    assert load_results(tmp_path) == results
    raw = json.loads((tmp_path / "results.json").read_text())
    assert (
        raw["schema"] == 2
        and {"checkpoint", "recipe_fingerprint", "data_fingerprint", "samples", "funnel"} <= raw.keys()
    )
    assert {"name", "value", "low", "high", "n", "unit", "higher_is_better"} <= raw["results"][0].keys()


def test_results_that_are_absent_or_foreign(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="replica eval"):
        load_results(tmp_path)
    write_json(tmp_path / "results.json", {"schema": 0})
    with pytest.raises(ValueError, match="another version"):
        load_results(tmp_path)


def test_a_diverged_model_is_named() -> None:
    with pytest.raises(ValueError, match=r"perplexity/x is nan.*diverge"):
        Result("perplexity/x", math.nan, None, None, 1, "nats", False, "none")
