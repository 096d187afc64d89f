"""Scores during training on real ranks: the same curves wherever they are made, and weights that do not notice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from eval.in_training.record import read_records
from pretrain.checkpoint.manifest import read_info, step_directories
from tests.distributed.groups import RankGroups
from tests.parts.training_run import SENTENCES, metric_lines, prepare_data, write_recipe

pytestmark = pytest.mark.slow
PLACES = [(1, 0), (2, 0), (2, 1), (2, 2), (2, 3)]  # ranks, ZeRO stage
BITS = "eval/perplexity/held/bits_per_byte"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, rank_groups: RankGroups) -> Path:
    """A directory with a run for each place, and one without scores."""
    directory = tmp_path_factory.mktemp("evaluated")
    data = prepare_data(directory / "data")
    documents = [{"text": "".join(SENTENCES[number : number + 9])} for number in range(0, 81, 9)]
    (directory / "held.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
    waiting: dict[int, list[Path]] = {1: [], 2: []}
    for name, (ranks, stage), parts in [*[(f"{p}", p, ["*"]) for p in PLACES], ("plain", (2, 3), [])]:
        home = directory / name
        home.mkdir()
        seconds = 1e-6 if (ranks, stage) == (2, 2) else 60.0
        evaluation = {"every": 3, "parts": parts, "max_items": 5, "max_seconds": seconds}
        file = write_recipe(home / "recipe.yaml", data, steps=6, global_batch_size=4, zero={"stage": stage})
        content = yaml.safe_load(file.read_text())
        content["train"]["validation"]["evaluation"] = evaluation
        content["evaluation"] = {
            "perplexity": [{"name": "held", "path": str(directory / "held.jsonl")}],
            "samples": {"prompts": ["The old cat"], "max_new_tokens": 5},
        }
        file.write_text(yaml.safe_dump(content))
        waiting[ranks].append(file)
    for ranks, files in waiting.items():
        rank_groups.run(ranks, files)
    return directory


@pytest.mark.parametrize("place", [place for place in PLACES if place != (2, 2)], ids=str)
def test_curves_do_not_depend_on_where_they_are_made(runs: Path, place: tuple[int, int]) -> None:
    here, there = (metric_lines(runs / str(one) / "run", BITS) for one in (place, PLACES[0]))
    assert sorted(here) == [3, 6] and here == pytest.approx(there, abs=1e-5)
    texts = [[one.samples[0].text for one in read_records(runs / str(where) / "run")] for where in (place, PLACES[0])]
    assert texts[0] == texts[1] and len(texts[0]) == 2
    assert set(metric_lines(runs / str(place) / "run", "eval/failed_parts").values()) == {0.0}


def test_ranks_that_run_out_of_time_go_on_together(runs: Path) -> None:
    records = list(read_records(runs / "(2, 2)" / "run"))
    assert [one.step for one in records] == [3, 6] and not records[0].results
    assert "perplexity/held" in records[0].unfinished


def test_training_does_not_notice(runs: Path) -> None:
    """At ZeRO stage 3, where weights are gathered to be read."""
    one, other = (read_info(step_directories(runs / name / "run")[0]).files for name in ("(2, 3)", "plain"))
    assert {file: found for file, found in one.items() if file.endswith(".safetensors")} == {
        file: found for file, found in other.items() if file.endswith(".safetensors")
    }
