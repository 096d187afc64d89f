"""Weights to start from when the vocabulary has grown: rows of new and of untrained tokens, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from configs.schema.chat import CHAT_TOKENS, END_OF_TEXT, MASK
from configs.schema.data import Tokenizer
from configs.schema.recipe import Recipe
from data_prep.tokens.shards import DataManifest, load_manifest
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import train_vocab
from pretrain.checkpoint.saver import Snapshot, commit_checkpoint
from pretrain.interchange.warm_start import added_tokens, weights_of, weights_to_start_from
from pretrain.model.transformer import Transformer
from pretrain.parallel.ranks import Ranks
from pretrain.session import initial_weights
from tests.parts.training_run import prepare_data, tiny_recipe


def base(directory: Path, vocab: Vocab, **train: Any) -> tuple[Recipe, DataManifest, Transformer]:
    """A run whose checkpoint has random weights, as if trained with this vocabulary."""
    data = load_manifest(prepare_data(directory / "data"))
    vocab.save(directory / "vocabulary")
    data = replace(data, tokenizer=directory / "vocabulary", tokenizer_fingerprint=vocab.fingerprint)
    recipe = tiny_recipe(directory, data.directory, **train)
    model = Transformer(recipe.model, recipe.model.padded_vocab(vocab.size))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    alone = Ranks(rank=0, count=1, local_rank=0, local_count=1)
    commit_checkpoint(Snapshot.of_model(model), recipe, data, alone, lambda value: [value])
    return recipe, data, model


def starting(recipe: Recipe, vocab: Vocab) -> tuple[Callable[[str], Tensor], Transformer]:
    """The function that reads the start for a model with this vocabulary, and a model as it is drawn."""
    drawn = Transformer(recipe.model, recipe.model.padded_vocab(vocab.size))
    shapes = {name: list(value.shape) for name, value in drawn.named_parameters()}
    initial = initial_weights(drawn, shapes, 1)
    return weights_of(recipe.run_directory, recipe.model, vocab, initial, "train.init_from"), drawn


@pytest.fixture
def plain() -> Vocab:
    return train_vocab(Tokenizer(kind="byte"), [])


def test_new_tokens_start_as_the_mean_of_the_trained_ones(tmp_path: Path, plain: Vocab) -> None:
    recipe, _, model = base(tmp_path, plain)
    grown = plain.extended(CHAT_TOKENS)
    read, _ = starting(recipe, grown)
    for name in ("embed.weight", "lm_head.weight"):
        before, now = model.state_dict()[name], read(name)
        assert torch.equal(now[: plain.size], before[: plain.size])
        mean = before[: plain.size].mean(dim=0)
        assert grown.size - plain.size == len(CHAT_TOKENS) - 1  # <|endoftext|> was there
        for row in now[plain.size : grown.size]:
            torch.testing.assert_close(row, mean)
        assert torch.equal(now[grown.size :], before[grown.size :])  # padding stays: the softmax goes over it too
    other = next(name for name, _ in model.named_parameters() if name.startswith("blocks.0"))
    assert torch.equal(read(other), model.state_dict()[other])


def test_reserved_tokens_that_no_text_has_start_so_too(tmp_path: Path) -> None:
    vocab = train_vocab(Tokenizer(kind="byte", special_tokens=list(CHAT_TOKENS)), [])
    recipe, _, model = base(tmp_path, vocab)
    before, now = model.state_dict()["embed.weight"], starting(recipe, vocab)[0]("embed.weight")
    reserved = [vocab.vocabulary[token] for token in CHAT_TOKENS[1:]]
    trained = [index for index in range(vocab.size) if index not in reserved]
    assert torch.equal(now[trained], before[trained]) and vocab.eod_id in trained
    mean = before[trained].mean(dim=0)
    assert all(torch.allclose(now[index], mean, atol=1e-6) for index in reserved)


def test_tokens_that_a_stage_has_trained_stay(tmp_path: Path) -> None:
    vocab = train_vocab(Tokenizer(kind="byte", special_tokens=list(CHAT_TOKENS)), [])
    recipe, _, model = base(tmp_path, vocab, objective={"kind": "sft"})
    rows = slice(0, vocab.size)
    assert torch.equal(starting(recipe, vocab)[0]("embed.weight")[rows], model.state_dict()["embed.weight"][rows])


def test_a_masked_model_starts_from_a_causal_one_and_not_the_other_way(tmp_path: Path, plain: Vocab) -> None:
    recipe, _, model = base(tmp_path / "causal", plain)
    masked = train_vocab(Tokenizer(kind="byte", special_tokens=[END_OF_TEXT, MASK]), [])
    both_ways = recipe.model_copy(update={"model": recipe.model.model_copy(update={"causal": False})})
    grown = plain.extended([MASK])
    assert grown.mask_id == plain.size and plain.mask_id is None
    before, now = model.state_dict()["embed.weight"], starting(both_ways, grown)[0]("embed.weight")
    torch.testing.assert_close(now[grown.mask_id], before[: plain.size].mean(dim=0))
    recipe, _, model = base(tmp_path / "masked", masked, objective={"kind": "masked_diffusion"})
    rows = slice(0, masked.size)
    assert torch.equal(starting(recipe, masked)[0]("embed.weight")[rows], model.state_dict()["embed.weight"][rows])
    causal = recipe.model_copy(update={"model": recipe.model.model_copy(update={"causal": True})})
    with pytest.raises(
        ValueError, match=r"^train\.init_from .* needs a model that predicts each token from those before"
    ):
        starting(causal, masked)


def test_weights_that_the_parent_lacks_are_drawn(tmp_path: Path, plain: Vocab) -> None:
    recipe, data, _ = base(tmp_path, plain)
    recipe = recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"init_from": str(recipe.run_directory)})}
    )
    read = weights_to_start_from(recipe, data, lambda name: torch.full((1, 32), 0.0))
    assert torch.equal(read("reward_head.weight"), torch.zeros(1, 32))


def test_another_vocabulary_is_refused(tmp_path: Path, plain: Vocab) -> None:
    recipe, _, _ = base(tmp_path, plain)
    others = [
        train_vocab(Tokenizer(kind="byte", special_tokens=list(CHAT_TOKENS)), []),  # its chat tokens come first
        train_vocab(Tokenizer(kind="char"), ["some text"]),
    ]
    for other in others:
        with pytest.raises(ValueError, match=r"has other tokens than the data; prepare the data with data\.tokenizer="):
            starting(recipe, other)
    assert added_tokens(plain.extended(CHAT_TOKENS), plain) is None  # it lacks some
    assert added_tokens(plain, plain) == set()
