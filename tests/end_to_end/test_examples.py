"""The programs of `examples/` do what they say."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))


@pytest.fixture(scope="module")
def example() -> Iterator[Callable[[str], ModuleType]]:
    """Loads an example by its name, as a module."""
    loaded = []

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        loaded.append(spec.name)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in loaded:
        del sys.modules[name]


@pytest.fixture(scope="module")
def run(example: Callable[[str], ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of the first example. Ray is started in the test of the reader: once is enough."""
    from data_prep.stages.pipeline import prepare_inline

    place = tmp_path_factory.mktemp("tiny") / "run"
    module = example("train_and_evaluate")
    module.prepare = prepare_inline  # type: ignore[attr-defined]
    score = module.main(f"out={place}", "train.steps=10", "evaluation.samples.prompts=[]")
    assert 4 < score < 8, "a model that has learned next to nothing"
    return place


def test_a_recipe_is_trained_and_evaluated(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert results["checkpoint"]["step"] == 10
    assert "perplexity/heldout/bits_per_byte" in {score["name"] for score in results["results"]}


def test_shards_and_checkpoints_are_read_without_replica(
    example: Callable[[str], ModuleType], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens, weights = example("read_from_outside").main(run)
    results = json.loads((run / "results.json").read_text())
    (train,) = json.loads((run / "data" / "manifest.json").read_text())["splits"]["train"]
    assert tokens == train["tokens"] and weights == results["model"]["parameters"]
    assert "blocks.0" in capsys.readouterr().out
    tree = ast.parse((EXAMPLES / "read_from_outside.py").read_text())
    names = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name.partition(".")[0] for name in names} & {"configs", "data_prep", "pretrain", "eval", "launch"}


def test_a_reader_of_ones_own_works_in_rays_workers(example: Callable[[str], ModuleType], tmp_path: Path) -> None:
    assert example("custom_reader").main(tmp_path) == [
        "The sea was quiet when the train came home.",
        "The sea was quiet when the boat came home.",
    ]


def test_a_rule_of_ones_own_stands_in_the_funnel(example: Callable[[str], ModuleType], tmp_path: Path) -> None:
    counts = example("custom_quality_rule").main(tmp_path)
    assert counts["quality/shouting"] == [1, 17] and counts["quality/no_shouting"][0] == 0
    assert counts["kept"] == [2, 35]


def test_an_objective_of_ones_own_trains_and_validation_stays_in_nats(
    example: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    settings = ("train.steps=3", "train.validation.every=3", "train.log_every=1")
    example("custom_objective").main(f"out={tmp_path / 'run'}", *settings)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    nats = [line["val/loss"] for line in lines if "val/loss" in line]
    # log(257)^2 is 31, and a thousandth of it is added in training alone.
    assert losses[0] - nats[-1] > 0.02, (losses, nats)


def test_a_coin_for_a_reward_knows_nothing(
    example: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    example("coin_reward").main()
    assert capsys.readouterr().out == "right answers: 0.50\nwrong answers: 0.50\n"


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda file: file.stem)
def test_each_example_is_short_and_listed(program: Path) -> None:
    text = program.read_text()
    assert text.count("\n") <= 80 and "def main(" in text and '__name__ == "__main__"' in text
    assert f"]({program.name})" in (EXAMPLES / "README.md").read_text()


def test_the_list_names_no_others() -> None:
    listed = re.findall(r"\]\((\w+\.py)\)", (EXAMPLES / "README.md").read_text())
    assert sorted(listed) == [program.name for program in PROGRAMS]
