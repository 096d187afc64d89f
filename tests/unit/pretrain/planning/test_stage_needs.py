"""What a stage needs beside training: frozen models, a critic, the cache of answers; `replica plan` of a recipe."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.schema.recipe import Recipe, load
from launch.cli import main as replica
from pretrain.engine.devices import parse_gpus
from pretrain.planning.memory import Memory, Setup, memory
from pretrain.planning.stage_needs import StageNeeds, cache_bytes, stage_needs
from pretrain.planning.step_time import Hardware
from pretrain.sizes.flops import count_parameters

TEXT = """
data: {sources: [{name: a, path: a.txt}], tokenizer: {kind: bpe, vocab_size: 2048, special_tokens: chat}}
model: {family: llama, num_layers: 4, hidden_size: 128, num_heads: 4, num_kv_heads: 2, context_length: 64}
train: {steps: 5, precision: bf16}
stages:
  - name: sft
    objective: {kind: sft}
    data: {sources: [{name: s, path: s.jsonl, shape: gsm8k}]}
    train: {steps: 5}
  - name: reward
    objective: {kind: reward}
    data: {sources: [{name: p, path: p.jsonl, shape: pairs}]}
    train: {steps: 5}
  - name: grpo
    from: sft
    objective: {kind: grpo, rewards: {exact_answer: 1}, rollout: {prompts: 8, samples: 4, max_new_tokens: 16}}
    data: {sources: [{name: s, path: s.jsonl, shape: gsm8k}]}
    train: {steps: 5}
  - name: ppo
    from: sft
    objective:
      {kind: ppo, rewards: {model: {stage: reward}}, kl: {coefficient: 0.1}, rollout: {rows: 6, max_new_tokens: 16}}
    data: {like: grpo}
    train: {steps: 5}
"""
GPU = Hardware(parse_gpus("8xH100")[1], 8)
SETUP = Setup(precision="bf16", ranks=8, micro_batch=1, accumulation=4, stage=1)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    file = tmp_path / "chain.yaml"
    file.write_text(TEXT)
    return load(file)


def needs(recipe: Recipe, name: str, **setup: Any) -> tuple[StageNeeds, Memory]:
    chosen = replace(SETUP, **setup)
    training = memory(recipe.model, 2048, chosen)
    found = stage_needs(recipe.stage(name), 2048, chosen, training, GPU)
    assert found is not None
    return found, training


def test_the_cache_of_a_known_model_has_its_size(recipe: Recipe) -> None:
    gpt3 = recipe.model.model_copy(update={"num_layers": 24, "num_heads": 16, "num_kv_heads": 16, "head_dim": 128})
    assert cache_bytes(gpt3, 2) == 2 * 24 * 16 * 128 * 2 == 196_608  # 197 kB a token at 1.3 billion parameters
    assert cache_bytes(recipe.model, 4) == 2 * 4 * 2 * 32 * 4


def test_answers_and_their_cache(recipe: Recipe) -> None:
    grpo, training = needs(recipe, "grpo")
    assert (grpo.answers, grpo.rows, grpo.drawn_tokens) == (32, 4, 512)  # 32 answers over 8 ranks
    assert grpo.cache == 4 * 64 * cache_bytes(recipe.model, 2) and not grpo.frozen and not grpo.critic
    assert grpo.peak(training) == training.total, "a few rows need less than activations"
    limit = training.total + 1e6
    rows = grpo.most_rows(training, limit)
    many = replace(grpo, rows=rows)
    assert many.peak(training) <= limit < replace(grpo, rows=rows + 1).peak(training)
    assert grpo.most_rows(training, 0.0) == 0


def test_models_beside_the_policy(recipe: Recipe) -> None:
    count = count_parameters(recipe.model, 2048).total
    ppo, training = needs(recipe, "ppo")
    assert ppo.frozen == {"reference": 2.0 * count, "reward model": 2.0 * count} and ppo.rows == 6
    trained = sum(training.parts[name] for name in ("weights", "gradients", "optimizer"))
    assert ppo.critic >= trained and ppo.peak(training) >= training.total + 4 * count + trained
    shared = recipe.stage("ppo")
    kind = shared.train.objective.model_copy(update={"critic": "shared"})  # type: ignore[union-attr]
    shared = shared.model_copy(update={"train": shared.train.model_copy(update={"objective": kind})})
    found = stage_needs(shared, 2048, SETUP, training, GPU)
    assert found is not None and found.critic == 0
    whole, _ = needs(recipe, "grpo", stage=3)
    assert whole.frozen == {"copy to generate with": 2.0 * count}
    assert stage_needs(recipe, 2048, SETUP, training, GPU) is None
    assert stage_needs(recipe.stage("sft"), 2048, SETUP, training, GPU) is None


def test_plan_shows_the_base_and_each_stage(recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", str(tmp_path / "chain.yaml"), "--gpus", "1xH100"]
    assert replica([*arguments, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [one["recipe"] for one in plan["then"]] == ["chain.sft", "chain.reward", "chain.grpo", "chain.ppo"]
    grpo = plan["then"][2]
    assert "stage" not in plan and grpo["stage"]["rollout_rows"] == 32 and grpo["stage"]["rollout_rows_that_fit"] > 1e5
    assert replica([*arguments, "--stage", "ppo"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "beside the model reference" in said and "critic" in said and "6 at a time on a rank" in said
    assert replica([*arguments, "--stage", "ppo", "--probe"]) == 2
