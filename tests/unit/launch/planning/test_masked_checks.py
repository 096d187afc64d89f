"""What an evaluation asks of a model that reads both ways, or of one that does not, is refused before training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from configs.schema.chat import END_OF_TEXT, MASK
from configs.schema.recipe import Recipe, RecipeError, save
from eval.currency import scored_recipe
from eval.report.gates import PREQUENTIAL, gate_problems
from eval.stage_facts import fitting
from launch.planning.checks import recipe_problems

MASKED: dict[str, Any] = {"kind": "masked_diffusion"}
DIFFUSE = {"name": "diffuse", "objective": MASKED, "data": {"like": "base"}, "train": {"steps": 2}}
CODEC = {"perplexity": [{"name": "h", "path": "h.jsonl"}], "compression": {"codec": ["h"]}}
LEFT_TO_RIGHT = "but the model reads from left to right; give a model that"


def made(
    masked: bool, prompts: list[str] | None = None, stages: Any = (), gates: Any = (), **evaluation: Any
) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "r",
            "data": {
                "sources": [{"name": "a", "path": "a.txt"}],
                "tokenizer": {"kind": "byte", "special_tokens": [END_OF_TEXT, MASK]},
            },
            "model": {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "context_length": 32},
            "train": {"steps": 1, "objective": MASKED if masked else None},
            "stages": list(stages),
            "evaluation": {**evaluation, "samples": {"prompts": prompts or []}},
            "report": {"gates": list(gates)},
        }
    )


@pytest.mark.parametrize(
    ("recipe", "problem"),
    [
        (made(False, ["a", "b<|mask|>*3"]), LEFT_TO_RIGHT),
        (made(True, ["a", "b<|mask|>*0"]), "<|mask|>*0 is no gap"),
        (made(True, ["b<|mask|>*31", "b<|mask|>*32"]), "a gap of 32 tokens does not fit the model's context of 32"),
    ],
)
def test_gaps_that_nothing_fills_in(recipe: Recipe, problem: str) -> None:
    (found,) = recipe_problems(recipe)
    assert found.startswith("evaluation.samples.prompts.1: ") and problem in found


def test_a_bound_is_no_code_so_no_gate_reads_one() -> None:
    gates = [f"{PREQUENTIAL} < 3"]
    assert "there is no metric" in gate_problems(made(True, gates=gates))[0] and not gate_problems(
        made(False, gates=gates)
    )
    chain = made(False, stages=[DIFFUSE], gates=[*gates, f"diffuse:{PREQUENTIAL} < 3"])
    (found,) = gate_problems(chain)
    assert f"there is no metric `diffuse:{PREQUENTIAL}`" in found


def test_in_a_chain_each_model_does_what_it_can() -> None:
    chain = made(False, ["a", "b<|mask|>*3"], stages=[DIFFUSE], **CODEC)
    assert not recipe_problems(chain) and not recipe_problems(chain.stage("diffuse"))
    section = chain.evaluation
    causal, masked, chat = (fitting(section, *kind) for kind in ((True, "text"), (False, "text"), (True, "assistant")))
    assert causal.samples.prompts == ["a"] and causal.compression.codec == ["h"]
    assert masked.samples.prompts == ["a", "b<|mask|>*3"] and masked.compression.codec == []
    assert chat == section


@pytest.mark.parametrize(
    ("stage", "override", "refused"),
    [
        ("diffuse", "evaluation.compression={codec: [h]}", True),
        ("diffuse", "evaluation.compression.codec=[h]", True),
        ("diffuse", "evaluation.compression={codec: []}", False),
        ("diffuse", "evaluation.bound_draws=3", False),
        ("base", "evaluation.samples.prompts=['x<|mask|>*3']", True),
        ("base", "evaluation.samples.prompts=['x']", False),
        ("base", "evaluation.samples.max_new_tokens=5", False),
        ("base", "evaluation.perplexity.0.max_documents=1", False),
        ("base", "evaluation.chat=[{name: c, path: held.txt, shape: text}]", True),
    ],
)
def test_a_setting_that_a_model_of_a_chain_cannot_score_is_not_dropped(
    tmp_path: Path, stage: str, override: str, refused: bool
) -> None:
    """What a stage inherits and cannot do is left out. What was asked for by name is an error."""
    (tmp_path / "held.txt").write_text("text")
    chain = made(False, ["a", "b<|mask|>*3"], stages=[DIFFUSE], **CODEC)
    recipe = chain if stage == "base" else chain.stage(stage)
    save(recipe, tmp_path)
    checkpoint: Any = SimpleNamespace(recipe=recipe)
    assert scored_recipe(tmp_path, checkpoint)
    if refused:
        with pytest.raises(RecipeError, match=r"override `evaluation\..*cannot do all .* as in RUN:STAGE"):
            scored_recipe(tmp_path, checkpoint, [override])
    else:
        assert scored_recipe(tmp_path, checkpoint, [override])
