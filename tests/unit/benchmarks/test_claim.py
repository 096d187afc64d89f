"""The judging part of the claim's benchmark, on numbers that can be checked by hand; nothing is trained here."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import spearmanr

ROOT = Path(__file__).resolve().parents[3]
_SPEC = importlib.util.spec_from_file_location("claim", ROOT / "benchmarks" / "claim.py")
assert _SPEC is not None and _SPEC.loader is not None
claim: Any = importlib.util.module_from_spec(_SPEC)
sys.modules["claim"] = claim  # its dataclasses look themselves up
_SPEC.loader.exec_module(claim)


def run(name: str, prequential: float, heldout: float, group: str = "same", **given: Any) -> Any:
    facts = {"coded_bytes": 1000, "last_losses": prequential - 0.1, "low": heldout - 0.01, "high": heldout + 0.01}
    return claim.Measured(name, group, "", prequential=prequential, heldout=heldout, **{**facts, **given})


def test_rho_is_scipys_and_p_counts_all_orders() -> None:
    xs, ys = [1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 3.0, 2.0, 4.0, 4.0]
    found = claim.rank_correlation(xs, ys)
    assert found.rho == pytest.approx(spearmanr(xs, ys).statistic)
    as_far = [abs(spearmanr(xs, order).statistic) >= found.rho - 1e-12 for order in itertools.permutations(ys)]
    assert found.p == pytest.approx(sum(as_far) / len(as_far))
    assert found.low <= found.rho <= found.high


def test_unrelated_numbers_have_an_interval_around_zero() -> None:
    xs = list(range(12))
    ys = [5.0, 1.0, 9.0, 3.0, 11.0, 0.0, 7.0, 10.0, 2.0, 8.0, 4.0, 6.0]
    found = claim.rank_correlation(xs, ys)
    assert found.low < 0 < found.high and found.p > 0.5


def test_runs_that_coded_other_text_are_not_compared_as_the_same() -> None:
    runs = [run("a", 2.0, 2.1), run("b", 2.2, 2.3), run("c", 2.4, 2.5, coded_bytes=900)]
    with pytest.raises(ValueError, match="900 to 1,000 bytes"):
        claim.judge(runs)


def test_groups_add_up_and_reversed_pairs_are_those_beyond_doubt() -> None:
    same = [run("a", 2.0, 2.1), run("b", 2.2, 2.3), run("c", 2.4, 2.305)]
    repeated = [run("copies", 1.0, 2.9, "repeated")]
    found = claim.judge([*same, *repeated])
    assert found.correlations["same"].rho == pytest.approx(1.0)
    assert found.correlations["same + repeated"].rho < 0
    assert "same + repeated + other" not in found.correlations, "nothing is claimed of a group without runs"
    # b and c are not told apart by the held-out text, so their order says nothing.
    assert found.reversed == [("copies", "a"), ("copies", "b"), ("copies", "c")]


def test_the_picture_is_a_file_of_its_own_with_a_dot_and_a_name_for_each_run() -> None:
    found = claim.judge([run("a", 2.0, 2.1), run("b", 2.2, 2.3), run("c & d", 2.4, 2.5, "other"), run("e", 2.3, 2.2)])
    root = ET.fromstring(claim.svg(found))
    names = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a", "b", "c & d", "e"} <= set(names)
    assert claim.markdown(found).count("| c & d | other |") == 1


def test_runs_share_their_text_unless_their_data_differs(tmp_path: Path) -> None:
    runs = claim.runs_of(400_000)
    assert len({one.name for one in runs}) == len(runs)
    recipes = {one.name: claim.recipe_of(one, tmp_path, []) for one in runs}
    shared = {name for name, recipe in recipes.items() if recipe.data.directory == recipes["base"].data.directory}
    assert shared == {one.name for one in runs if one.group == "same"} - {"letters"}
    assert len({recipe.data_directory for recipe in recipes.values()}) == len(runs) - len(shared) + 1
    assert recipes["sixteenth"].train.epochs == 16
    assert not recipes["copies"].data.dedup.exact and len(recipes["copies"].data.sources) == 4


def test_numbers_of_a_run_are_read_from_its_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two passes over 100 bytes in 50 tokens: the code length is that of the first, the last loss of the second."""
    lines = [
        {"step": 1, "tokens": 25, "train/loss": 3.0, "train/code_length_bits": 100.0, "train/code_bits_per_byte": 2.0},
        {"step": 2, "tokens": 50, "train/loss": 2.0, "train/code_length_bits": 150.0, "train/code_bits_per_byte": 1.5},
        {"step": 3, "tokens": 75, "train/loss": 1.0, "train/code_length_bits": 150.0, "train/code_bits_per_byte": 1.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    class Scores:
        def by_name(self) -> dict[str, Any]:
            return {claim.HELD_OUT: type("Score", (), {"value": 1.8, "low": 1.7, "high": 1.9})}

    monkeypatch.setattr("eval.results.load_results", lambda run: Scores())
    found = claim.measured(claim.Run("a", "repeated", "twice"), tmp_path)
    assert (found.coded_bytes, found.prequential) == (100, 1.5)
    assert found.last_losses == pytest.approx(1.0 / 0.6931471805599453 * 50 / 100)
