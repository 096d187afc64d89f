"""The selection experiment: its texts do not overlap, its recipes load, its intervals are right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import selection
from benchmarks.selection import Experiment, Measured, compare, markdown, pieces


def test_pieces_keep_the_text() -> None:
    text = "\n\n".join(f"paragraph {number} " + "x" * (7 * number % 90) for number in range(40))
    cut = pieces(text, 100)
    assert "\n\n".join(cut) == text and 5 < len(cut) < 40
    assert pieces("no empty line " * 100, 100) == ["no empty line " * 100] and pieces("\n\n\n\n") == []


def test_no_text_has_two_roles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = [{"id": f"t{number}", "text": f"target {number} " * 20} for number in range(60)]
    pool = [{"id": f"p{number}", "text": f"pool {number} " * 20} for number in range(60)]
    for name, records in (("target", target), ("pool", pool)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.setattr(Experiment, "references", lambda self: None)
    measured = {"low": 2.0, "random": 2.2, "moore-lewis": 1.98}
    monkeypatch.setattr(
        Experiment, "arm", lambda self, arm, seed: Measured(arm, seed, measured[arm] + seed, 3.0, 0.1, 0.5)
    )
    out = tmp_path / "out"
    paths = [str(tmp_path / f"{name}.jsonl") for name in ("target", "pool")]
    selection.main(
        ["--out", str(out), "--target", paths[0], "--pool", paths[1], "--arms", "moore-lewis", "--seeds", "2"]
    )
    texts = {
        name: {json.loads(line)["text"] for line in (out / "corpus" / f"{name}.jsonl").read_text().splitlines()}
        for name in ("reference", "pool-target", "pool-general", "target", "other")
    }
    assert sum(map(len, texts.values())) == len(set().union(*texts.values())) == 120
    assert len(texts["reference"] | texts["pool-target"] | texts["target"]) == 60
    (random, *_), moore_lewis = (
        [one for one in json.loads((out / "selection.json").read_text())["compared"] if one["arm"] == arm]
        for arm in ("random", "moore-lewis")
    )
    assert random["change"] == 0 and moore_lewis[0]["change"] == pytest.approx(50 * (1.98 / 2.2 + 2.98 / 3.2) - 100)


def test_intervals_are_students_over_seeds() -> None:
    """By hand: changes of -10, -20 and -30 percent; t of 2 degrees of freedom is 4.303."""
    runs = [Measured("random", seed, 2.0, 3.0, 0.1, 0.5) for seed in range(3)]
    runs += [Measured("low", seed, 2.0 - 0.2 * (seed + 1), 3.0, 0.1, 0.5) for seed in range(3)]
    found = next(one for one in compare(runs) if (one.arm, one.held_out) == ("low", "target"))
    assert (found.bits, found.change) == (pytest.approx(1.6), pytest.approx(-20))
    assert found.low == pytest.approx(-20 - 4.3027 * 10 / 3**0.5, abs=1e-3)
    table = markdown(runs, compare(runs), 0.3)
    assert "| low | 10.0% | 0.50 | 1.600 | -20.0% (-44.8 to +4.8) |" in table


def test_the_recipes_of_all_runs_load(tmp_path: Path) -> None:
    experiment = Experiment(tmp_path, 0.3, 1000, selection.TINY)
    select = {"rule": "low", "keep": 0.3, "scores": [str(tmp_path / "a.parquet")]}
    recipe = experiment.pooled("low-0", seed=1, **{"data.select": select, **experiment.tokenizer()})
    assert recipe.data.select is not None and recipe.data.select.scores == [str(tmp_path / "a.parquet")]
    assert recipe.run_directory == tmp_path / "low-0"
