"""Short trainings on conversations and pairs: first losses, stored references, scores, validation, resume."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.schema.recipe import Recipe
from data_prep.chat.messages import Message
from data_prep.tokens.chat_template import ChatTemplate
from data_prep.tokens.shards import load_manifest
from pretrain.batches.unit_rows import UnitRows
from pretrain.batches.units import last_answer, learnt, scored
from pretrain.checkpoint.load_weights import load_weights
from pretrain.checkpoint.manifest import newest
from pretrain.objectives.pair_sums import answer_log_probs
from pretrain.objectives.reference import StoredReference
from pretrain.objectives.reward_scorer import RewardScorer, load_reward_model
from pretrain.session import run
from tests.parts.small_units import prepare_units
from tests.parts.training_run import metric_lines, tiny_recipe

SHORT: dict[str, Any] = {"steps": 6, "global_batch_size": 8, "optimizer": {"lr": 1e-3}, "checkpoint": {"every": 3}}


def trained(directory: Path, data: Path, **train: Any) -> Recipe:
    recipe = stage(directory, data, **train)
    assert run(recipe)
    return recipe


def stage(directory: Path, data: Path, **train: Any) -> Recipe:
    directory.mkdir(parents=True, exist_ok=True)
    made = tiny_recipe(directory, data, **{**SHORT, **train})
    return made.model_copy(update={"model": made.model.model_copy(update={"context_length": 96})})


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data, a policy that was fine-tuned on right sums, and a reward model."""
    torch.set_num_threads(1)
    places = tmp_path_factory.mktemp("stages")
    prepare_units(places / "conversations", "conversation", {"a": 40, "b": 20})
    prepare_units(places / "pairs", "pair", {"a": 40, "b": 20})
    settings = {"steps": 30, "optimizer": {"lr": 1e-2}, "packing": "best_fit"}
    trained(places / "sft", places / "conversations", objective={"kind": "sft"}, **settings)
    return places


def parent(places: Path) -> str:
    return str(places / "sft" / "run")


@pytest.fixture(scope="module")
def reward(places: Path) -> Recipe:
    settings = {"steps": 30, "optimizer": {"lr": 1e-2}, "init_from": parent(places)}
    return trained(places / "reward", places / "pairs", objective={"kind": "reward"}, **settings)


# ------------------------------------------------------------------------------------------------------------------ sft
def test_answers_are_learnt_and_measured(places: Path) -> None:
    losses = metric_lines(places / "sft" / "run", "train/loss")
    assert losses[30] < losses[1] - 1
    (loss,) = metric_lines(places / "sft" / "run", "val/loss").values()
    (bits,) = metric_lines(places / "sft" / "run", "val/bits_per_byte").values()
    # By hand, one conversation after the other: nats of learnt tokens, over tokens and over bytes.
    data = load_manifest(places / "conversations")
    rows = UnitRows(data.validation, data.vocab, 96, learnt)
    info = newest(places / "sft" / "run")
    assert info is not None
    model, nats, tokens, size = load_weights(info).requires_grad_(False), 0.0, 0.0, 0
    for document in range(12):
        batch = rows.batch([(0, document)]).rows(0, 1)
        nats += model.loss(*batch.inputs).item()
        tokens += float(batch.weights.sum())
        size += batch.target_bytes
    assert loss == pytest.approx(nats / tokens, rel=1e-5)
    assert bits == pytest.approx(nats / math.log(2) / size, rel=1e-5)


# --------------------------------------------------------------------------------------------------------------- reward
def test_a_reward_model_starts_without_an_opinion_and_gets_one(reward: Recipe) -> None:
    losses, accuracy = (metric_lines(reward.run_directory, f"train/{name}") for name in ("loss", "accuracy"))
    assert losses[1] == pytest.approx(math.log(2), abs=1e-6)
    assert accuracy[1] == 0, "no text is ahead"
    assert losses[30] < 0.6
    (held_out,) = metric_lines(reward.run_directory, "val/accuracy").values()
    assert 0.5 < held_out <= 1
    assert metric_lines(reward.run_directory, "val/margin")[30] > 0


def test_a_score_does_not_depend_on_padding_neighbours_or_order(places: Path, reward: Recipe) -> None:
    data, scorer = load_manifest(places / "pairs"), RewardScorer.open(reward.run_directory)
    rows = UnitRows(data.validation, data.vocab, 96, scored, 2)
    texts = [[data.eod_id, *rows.sources[0].ids(document)[:-1].tolist()] for document in range(24)]
    alone = [scorer([text])[0] for text in texts]
    assert len({round(score, 4) for score in alone}) > 12, "scores that differ, or this shows nothing"
    assert scorer(texts) == pytest.approx(alone, abs=1e-5)
    assert scorer(texts[::-1])[::-1] == pytest.approx(alone, abs=1e-5)
    # In training's own batches, padded to the whole context.
    info = newest(reward.run_directory)
    assert info is not None
    batch, model = rows.batch([(0, document) for document in range(24)]), load_reward_model(info)
    assert model.scores(batch.tokens, batch.weights).tolist() == pytest.approx(alone, abs=1e-5)
    template = ChatTemplate(data.vocab)
    messages = [Message.of("user", "1+1"), Message.of("assistant", "2")]
    assert scorer.conversation(messages) == pytest.approx(scorer([template.render(messages).ids])[0])
    with pytest.raises(ValueError, match="a text of 97 tokens"):
        scorer([[1] * 97])


def test_a_policy_is_no_reward_model(places: Path) -> None:
    with pytest.raises(ValueError, match="holds no reward model"):
        RewardScorer.open(places / "sft" / "run")


# ------------------------------------------------------------------------------------------------------------------ dpo
def dpo(places: Path, directory: Path, **settings: Any) -> Recipe:
    objective = {"kind": "dpo", **settings.pop("objective", {})}
    return stage(directory, places / "pairs", objective=objective, init_from=parent(places), **settings)


def column_of(places: Path) -> list[Path]:
    return sorted((places / "pairs").glob("reference-*"))


def test_the_first_loss_is_ln_2_and_the_reference_is_made_once(places: Path, tmp_path: Path) -> None:
    one, other = dpo(places, tmp_path / "one"), dpo(places, tmp_path / "other", micro_batch_size=2)
    assert run(one)
    losses = metric_lines(one.run_directory, "train/loss")
    assert losses[1] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[6] < losses[1]
    assert metric_lines(one.run_directory, "train/margin")[1] == pytest.approx(0, abs=1e-5)
    for name in ("loss", "accuracy", "margin", "reward_chosen", "log_prob_chosen"):
        assert 6 in metric_lines(one.run_directory, f"val/{name}")
    (column,) = column_of(places)
    before = column.stat().st_mtime_ns
    assert run(other)
    assert column.stat().st_mtime_ns == before
    again = metric_lines(other.run_directory, "train/loss")
    assert again == pytest.approx(losses, abs=1e-6), "a micro-batch is no other mean"
    # By hand: each answer alone, under the parent's weights.
    data = load_manifest(places / "pairs")
    info = newest(places / "sft" / "run")
    assert info is not None
    model = load_weights(info)
    rows = UnitRows(data.train, data.vocab, 96, last_answer, 2)
    stored = StoredReference(one, data, info.fingerprint, "fp32")
    assert stored.file == column
    values = stored.read()[0]
    for document in range(80):
        batch = rows.batch([(0, document)]).rows(0, 1)
        with torch.no_grad():
            log_probs = answer_log_probs(model.log_probs(batch.tokens, batch.targets), batch.weights)
        assert values["a"][document] == pytest.approx(float(log_probs), abs=1e-4)


def test_a_resumed_run_makes_a_lost_reference_again_and_refuses_another_parents(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = dpo(places, tmp_path / "whole")
    assert run(whole)
    expected, (column,) = metric_lines(whole.run_directory, "train/loss"), column_of(places)
    values = np.load(column)
    shutil.rmtree(whole.run_directory / "checkpoints" / "step_00000006")
    (whole.run_directory / "checkpoints" / "latest").unlink(missing_ok=True)
    column.unlink()
    assert run(whole)
    assert np.array_equal(np.load(column), values)
    assert metric_lines(whole.run_directory, "train/loss") == expected, "to the bit"
    # What was half computed when a run was killed is not computed again.
    column.unlink()
    damaged = column.with_suffix(".parts")
    damaged.mkdir()
    np.save(damaged / "000000000000.npy", values - 1.0)
    assert run(dpo(places, tmp_path / "parts"))
    assert np.array_equal(np.load(column), values - 1.0) and not damaged.exists()
    column.unlink()
    moved = places / "sft" / "other"
    shutil.copytree(places / "sft" / "run", moved)
    try:
        shutil.rmtree(places / "sft" / "run" / "checkpoints")
        with pytest.raises(ValueError, match=r"train.init_from .* (no whole|neither|other weights)"):
            shutil.rmtree(whole.run_directory / "checkpoints" / "step_00000006")
            run(whole)
    finally:
        shutil.rmtree(places / "sft" / "run")
        moved.rename(places / "sft" / "run")


def test_a_column_is_that_of_its_weights_model_data_and_precision(places: Path, tmp_path: Path) -> None:
    data, recipe = load_manifest(places / "pairs"), dpo(places, tmp_path)
    model = recipe.model.model_copy(update={"rope_theta": 2 * recipe.model.rope_theta})
    recipes = [recipe, recipe.model_copy(update={"model": model}), recipe.model_copy(update={"seed": recipe.seed + 1})]
    names = {
        StoredReference(one, data, base, precision).file
        for one in recipes
        for base in ("a" * 32, "b" * 32)
        for precision in ("fp32", "bf16")
    }
    assert len(names) == 12
    stored = StoredReference(recipe, data, "a" * 32, "fp32")
    np.save(stored.file, np.zeros(3))
    with pytest.raises(
        ValueError, match=r"does not hold a finite number for each of 144 documents; delete .*, and it is"
    ):
        stored.read()
    stored.file.unlink()


def test_a_loss_without_reference_stores_none(places: Path, tmp_path: Path) -> None:
    for file in column_of(places):
        file.unlink()
    assert run(dpo(places, tmp_path, objective={"loss": "simpo", "beta": 2.0}, steps=2))
    assert not column_of(places)


def test_without_a_parent_there_is_no_reference(places: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"compares with the model that training starts from; set train.init_from"):
        run(stage(tmp_path, places / "pairs", objective={"kind": "dpo"}))
