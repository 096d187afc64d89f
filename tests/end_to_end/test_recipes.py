"""Every shipped recipe runs from raw text to a report when overrides make it tiny.

Each keeps its own model family, tokenizer, schedule, ZeRO stage and precision, on a small local corpus.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.common.files import read_json
from configs.schema.recipe import load, load_run
from configs.schema.stage_recipe import is_masked

RECIPES = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.usefixtures("prepares_here")  # `test_run.py` prepares on Ray
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_runs_tiny(
    recipe: Path, tiny_overrides: list[str], tmp_path: Path, replica: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    run, more = tmp_path / "run", list[str]()
    if all(is_masked(stage) for stage in load(recipe).stages):  # they read documents, which the small corpus has
        more += [f"stages.{stage.name}.train={{steps: 12}}" for stage in load(recipe).stages]
        more += ["model.context_length=128"] if load(recipe).stages else []  # for prompts with gaps
    else:  # `test_assistant.py` goes through stages
        more.append("stages=[]")
    if load(recipe).train.objective is not None:  # it reads units, which the small corpus has not
        source = load(recipe).data.sources[0]
        more.append(f"data.sources=[{{name: own, path: {source.path}, shape: {source.shape}, max_documents: 200}}]")
        more.append("model.context_length=128")
    replica("run", recipe, "--out", run, *tiny_overrides, *more)
    assert read_json(run / "results.json")["checkpoint"]["step"] == 12
    assert (run / "report" / "index.html").is_file()
    full, tiny = load(recipe), load_run(run)
    for stage in tiny.stages:
        assert read_json(run / "stages" / stage.name / "results.json")["checkpoint"]["step"] == 12
    assert tiny.model.family == full.model.family
    assert tiny.train.zero == full.train.zero
    assert tiny.data.tokenizer.kind == full.data.tokenizer.kind
