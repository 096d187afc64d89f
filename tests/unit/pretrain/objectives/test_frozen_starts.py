"""Reinforcement learning compares with, and its critic starts from, weights as training starts with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from configs.schema.chat import CHAT_TOKENS
from configs.schema.data import Tokenizer
from configs.schema.objectives import GroupPolicy, ProximalPolicy, RewardModelling
from configs.schema.recipe import Recipe
from data_prep.tokens.shards import DataManifest, load_manifest
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import train_vocab
from pretrain.batches.source import drawn_batch
from pretrain.checkpoint.base_model import base_fingerprints
from pretrain.checkpoint.saver import Snapshot, commit_checkpoint
from pretrain.interchange.warm_start import weights_of
from pretrain.model.transformer import Transformer
from pretrain.objectives.reinforcement import PolicyOptimisation
from pretrain.objectives.reward_modelling import RewardModel
from pretrain.parallel.ranks import Ranks
from tests.parts.training_run import prepare_data, tiny_recipe

RL: dict[str, Any] = {"rewards": {"format": 1.0}, "rollout": {"prompts": 2, "samples": 2}}


@pytest.fixture
def vocab() -> Vocab:
    """It reserves the chat tokens."""
    return train_vocab(Tokenizer(kind="byte", special_tokens=list(CHAT_TOKENS)), [])


def saved(directory: Path, vocab: Vocab, made: Recipe, module: Any, step: int = 0) -> DataManifest:
    """Keeps the weights as checkpoint of a run; returns the data it was made with."""
    data = load_manifest(prepare_data(directory / "data"))
    vocab.save(directory / "data" / "tokenizer")
    data = replace(data, tokenizer=directory / "data" / "tokenizer", tokenizer_fingerprint=vocab.fingerprint)
    data = replace(data, vocab_size=vocab.size)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    weights = {name.removeprefix("model."): value.detach() for name, value in module.named_parameters()}
    shapes = {name: list(value.shape) for name, value in weights.items()}
    pieces = {f"{name}@0": value.flatten() for name, value in weights.items()}
    snapshot = Snapshot(step, 0, {}, shapes, {"weights": pieces, "optimizer": {}})
    commit_checkpoint(snapshot, made, data, Ranks(0, 1, 0, 1), lambda value: [value])
    return data


def fine_tuning(base: Recipe, objective: Any, **more: Any) -> Recipe:
    train = base.train.model_copy(update={"objective": objective, "init_from": str(base.run_directory)})
    return base.model_copy(update={"train": train, **more})


ENGINE: Any = SimpleNamespace(
    precision_of_autocast=None,
    precision="fp32",
    device=torch.device("cpu"),
    plan=SimpleNamespace(micro_batch=2),
    module=SimpleNamespace(chunk=None),
)


def test_the_reference_is_the_policy_that_training_starts_from(tmp_path: Path, vocab: Vocab) -> None:
    """Tokens that the base only reserved begin as the mean of the others, in the reference as in the policy."""
    base = tiny_recipe(tmp_path, tmp_path / "data")
    rows = base.model.padded_vocab(vocab.size)
    data = saved(tmp_path, vocab, base, Transformer(base.model, rows))
    settings = GroupPolicy.model_validate({"kind": "grpo", "kl": {"coefficient": 0.1}, **RL})
    recipe = fine_tuning(base, settings)
    policy = Transformer(recipe.model, rows).eval()
    start = weights_of(base.run_directory, recipe.model, vocab, lambda name: policy.state_dict()[name].clone(), "it")
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            parameter.copy_(start(name))
    objective = PolicyOptimisation(recipe, settings)
    module: Any = objective.module(policy)
    module.vocab_size = vocab.size
    reference = objective._frozen_policy(data, ENGINE)
    assert reference is not None
    batch = drawn_batch(4, 8, vocab.size, seed=0)
    reserved = torch.tensor([vocab.vocabulary[token] for token in CHAT_TOKENS[1:]])
    batch.targets[:2] = reserved[torch.arange(16) % len(reserved)].view(2, 8)
    with torch.no_grad():
        ours = module.per_target(batch.tokens, batch.targets, batch.weights)
    torch.testing.assert_close(reference(batch), ours, atol=1e-5, rtol=0)


def test_a_run_goes_on_with_the_weights_it_compares_with_alone(tmp_path: Path, vocab: Vocab) -> None:
    base = tiny_recipe(tmp_path, tmp_path / "data")
    model = Transformer(base.model, base.model.padded_vocab(vocab.size))
    data = saved(tmp_path, vocab, base, model)
    known = base_fingerprints(base.run_directory)[0]
    plain = GroupPolicy.model_validate({"kind": "grpo", **RL})
    compared = GroupPolicy.model_validate({"kind": "grpo", "kl": {"coefficient": 0.1}, **RL})

    def prepare(settings: GroupPolicy) -> None:
        PolicyOptimisation(fine_tuning(base, settings), settings).prepare(data, ENGINE, known, lambda: None)

    prepare(compared)
    saved(tmp_path, vocab, base, model, step=5)  # the base was trained further
    prepare(plain)
    with pytest.raises(ValueError, match=r"holds other weights than this run started from, and `kl` compares"):
        prepare(compared)


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_a_critic_starts_from_a_reward_model_whose_vocabulary_is_padded_otherwise(
    tmp_path: Path, vocab: Vocab, critic: str
) -> None:
    base = tiny_recipe(tmp_path, tmp_path / "data")
    padded = base.model.model_copy(update={"vocab_multiple": 1})
    rewarding = RewardModelling.model_validate({"kind": "reward"})
    pairs = [source.model_copy(update={"shape": "pairs"}) for source in base.data.sources]
    tokenizer = base.data.tokenizer.model_copy(update={"special_tokens": list(CHAT_TOKENS)})
    of_pairs = base.data.model_copy(update={"sources": pairs, "tokenizer": tokenizer})
    judge = fine_tuning(base, rewarding, model=padded, data=of_pairs, out=str(tmp_path / "reward"))
    theirs = RewardModel(Transformer(padded, padded.padded_vocab(vocab.size)), rewarding)
    saved(tmp_path, vocab, judge, theirs)
    settings = ProximalPolicy.model_validate({"kind": "ppo", "critic": critic, "critic_from": "reward", **RL})
    recipe = fine_tuning(base, settings, parents={"reward": str(judge.run_directory)})
    objective = PolicyOptimisation(recipe, settings)
    module = objective.module(Transformer(recipe.model, recipe.model.padded_vocab(vocab.size)))
    own = {name: value.detach() for name, value in module.named_weights()}
    read = objective.initial(lambda name: own[name].clone())
    for name, value in own.items():
        assert read(name).shape == value.shape, name
        if not name.startswith("value."):
            assert torch.equal(read(name), value)
    assert torch.equal(read("value.head.weight"), theirs.reward_head.weight)
    if critic == "separate":
        other = dict(theirs.model.named_parameters())
        assert torch.equal(read("value.body.embed.weight")[: vocab.size], other["embed.weight"][: vocab.size])
        assert torch.equal(read("value.body.norm.weight"), other["norm.weight"])
