"""Every checkpoint at every number of ranks and every ZeRO stage: 12 x 12 ways to go on, for each optimizer.

Behind `make chaos`; `test_ranks.py` has a selection. Set REPLICA_MATRIX to a directory to have the largest deviations
written there as tables.
"""

from __future__ import annotations

import os
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.groups import RankGroups, Runs, differences
from tests.distributed.test_ranks import MUON_SETTINGS, STAGES, WHOLE

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(3600)]
Matrix = dict[tuple[str, str], list[float]]
PLACES = list(product(WHOLE, STAGES))
SAVED, STEPS = 10, 30


def place_name(ranks: int, stage: int) -> str:
    return f"{ranks} x stage {stage}"


@pytest.fixture(scope="module", params=["adamw", "muon"])
def matrix(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, rank_groups: RankGroups
) -> dict[tuple[str, str], list[float]]:
    """(saved at, went on at) -> what each of the next 20 losses differs by from those of the run that saved."""
    runs = Runs(tmp_path_factory.mktemp("matrix"), rank_groups)
    settings: dict[str, Any] = {"global_batch_size": 4, "steps": STEPS}
    if request.param == "muon":
        settings["optimizer"] = MUON_SETTINGS
    for ranks, stage in PLACES:
        runs.add(place_name(ranks, stage), ranks, stage, checkpoint={"every": SAVED, "keep": 3}, **settings)
    runs.launch(seconds=900)
    for saved, place in product(PLACES, PLACES):
        run = runs.add(f"{place_name(*saved)} to {place_name(*place)}", *place, **settings)
        checkpoint = runs.checkpoint(place_name(*saved), SAVED)
        shutil.copytree(checkpoint, run / "checkpoints" / checkpoint.name)
    runs.launch(seconds=2000)
    found = {}
    names = [place_name(*place) for place in PLACES]
    for saved, place in product(names, names):
        resumed, unbroken = runs.values(f"{saved} to {place}"), runs.values(saved)
        assert sorted(resumed) == list(range(SAVED + 1, STEPS + 1))
        found[saved, place] = differences(resumed, unbroken, range(SAVED + 1, STEPS + 1))
    if target := os.environ.get("REPLICA_MATRIX"):
        _write_table(Path(target) / f"{request.param}.md", found)
    return found


def _write_table(file: Path, found: Matrix) -> None:
    names = [place_name(*place) for place in PLACES]
    lines = ["| saved at | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {saved} | " + " | ".join(f"{max(found[saved, at]):.1e}" for at in names) + " |" for saved in names]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_the_next_20_losses(matrix: Matrix) -> None:
    """fp32: equal to 1e-5; the same ranks and stage: to the bit."""
    assert len(matrix) == len(PLACES) ** 2
    strayed = {key: max(values) for key, values in matrix.items() if max(values) >= 1e-5}
    assert not strayed
    assert not {key: values for key, values in matrix.items() if key[0] == key[1] and any(values)}
