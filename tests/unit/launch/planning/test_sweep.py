"""Sweeps: the fit finds a known law, points are what was asked for, and tiny models go the whole way."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from eval.scaling_law import fit, predict
from launch.planning.sweep import Sweep, grid, sizes
from launch.planning.sweep_page import page
from tests.parts.training_run import prepare_data, write_recipe

COMPUTES = [1e15, 4e15, 2e16, 1e17, 4e17]


def test_a_known_law_is_found() -> None:
    losses = [0.6 + 20 * c**-0.1 for c in COMPUTES]
    law, said = predict(COMPUTES, losses, 3e18)
    assert (law.free, law.floor) == (3, pytest.approx(0.6, rel=0.01))
    assert law.exponent == pytest.approx(0.1, rel=0.01)
    assert said.value == pytest.approx(0.6 + 20 * 3e18**-0.1, rel=1e-4)
    assert said.low < said.value <= said.high


def test_three_runs_determine_two_parameters() -> None:
    law = fit(COMPUTES[:3], [5 * c**-0.05 for c in COMPUTES[:3]])
    assert (law.free, law.floor) == (2, 0.0)
    assert law(1e18) == pytest.approx(5 * 1e18**-0.05, rel=1e-4)
    with pytest.raises(ValueError, match="three runs of different compute"):
        fit([1e15, 1e16, 1e16], [3.0, 2.0, 2.0])


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "none.txt").touch()  # the source, of which the data is taken as prepared
    return write_recipe(tmp_path / "r.yaml", prepare_data(tmp_path / "data"))


def test_points_of_a_recipe_without_the_dial(recipe: Path, tmp_path: Path) -> None:
    points = sizes(str(recipe), ["train.tokens_per_parameter=2"], "depth", ["1", "2", "3"])
    assert [point.label for point in points] == ["depth-1", "depth-2", "depth-3", "depth-4"]
    found = [Sweep(str(recipe), [], str(tmp_path / "s")).recipe(point) for point in points]
    assert [item.model.hidden_size for item in found] == [64, 128, 192, 256]
    assert [item.train.steps for item in found] == [None] * 4
    assert sizes(str(recipe), [], "size", ["1M", "2M", "4M"])[-1].label == "size-8M"


@pytest.mark.parametrize("values", [["1", "2"], ["1", "3", "2"], ["1", "1", "2"]])
def test_too_few_or_unordered_sizes(recipe: Path, values: list[str]) -> None:
    with pytest.raises(ValueError, match="three to six values in ascending order"):
        sizes(str(recipe), [], "depth", values)


def test_a_grid() -> None:
    points = grid([], ["train.optimizer.lr=1e-3,2e-3", "model.hidden_size=32,64"])
    assert [point.label for point in points][:2] == ["lr=1e-3,hidden_size=32", "lr=1e-3,hidden_size=64"]
    assert len(points) == 4 and points[1].varied == {"train.optimizer.lr": "1e-3", "model.hidden_size": "64"}
    for axes in (["data.seed=1,2"], ["train.optimizer.lr"], ["train.a=1", "train.b=1", "train.c=1"]):
        with pytest.raises(ValueError, match="--vary"):
            grid([], axes)


def run_of(loss: float, **varied: str) -> dict[str, Any]:
    figures = dict.fromkeys(("layers", "width", "parameters", "tokens", "compute", "lr", "batch", "weight_decay"), 1)
    return {"label": "r", "varied": varied, **figures, "val_loss": loss, "bits_per_byte": loss}


def test_a_grid_is_drawn_over_its_first_number() -> None:
    runs = [run_of(3 - n / 10, family=f, lr=lr) for f in ("gpt2", "llama") for n, lr in enumerate(("4e-3", "1e-3"))]
    drawn = page({"name": "g", "runs": runs})
    lines = re.findall(r'<polyline class="line (series-\d)" points="([^"]*)"', drawn)
    assert [style for style, _ in lines] == ["series-1", "series-2"]
    heights = [float(point.split(",")[1]) for point in lines[0][1].split()]
    assert len(heights) == 2 and heights[0] > heights[1]  # from the lower rate, whose loss is lower, rightwards and up
    for text in ("family gpt2", "family llama", "lr, logarithmic", ">0.001<", ">0.004<"):
        assert text in drawn
    assert "<svg" not in page({"name": "g", "runs": [run_of(3, family="gpt2"), run_of(2, family="llama")]})


@pytest.mark.slow
def test_tiny_models_end_to_end(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.planning.sweep.data_stage", lambda recipe: recipe.data_directory)  # prepared already
    settings = ["train.steps=3", "train.global_batch_size=4", "train.optimizer.lr=3e-3"]
    sweep = Sweep(str(recipe), settings, str(tmp_path / "sweep"))
    points = sizes(str(recipe), settings, "depth", ["1", "2", "3"])
    found = sweep.law(points, check=True)
    written = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [run["layers"] for run in written["runs"]] == [1, 2, 3]
    assert written["outcome"]["layers"] == 4
    assert written["prediction"]["value"] > 0
    assert found["runs"][0]["tokens"] == 3 * 4 * 32
    assert "Predicted for depth-4" in (tmp_path / "sweep" / "sweep.md").read_text()
    assert "<svg" in (tmp_path / "sweep" / "index.html").read_text()

    # What is finished is not trained again.
    from pretrain import session

    monkeypatch.setattr(session, "run", lambda *_: pytest.fail("trained again"))
    assert sweep.law(points, check=True) == found
