"""Held-out conversations: nats of the answers alone, whatever the batch; and which stages are scored on them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from configs.schema.model import Model
from configs.schema.objectives import Supervised
from configs.schema.recipe import Recipe, save
from data_prep.tokens.chat_template import ChatTemplate
from data_prep.tokens.shards import load_manifest
from data_prep.tokens.vocab import Vocab
from eval.likelihood.conversations import conversation_results
from eval.reading.reader import LocalReader
from eval.stage_facts import tuned_of
from pretrain.batches.units import UnitWindows
from pretrain.model.transformer import Transformer
from tests.parts.fake_chain import chain_recipe
from tests.parts.fake_run import fake_recipe
from tests.parts.items_check import without_items
from tests.parts.small_units import prepare_units


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    run = tmp_path_factory.mktemp("conversations") / "stages" / "sft"
    prepare_units(run / "data", "conversation")
    recipe = fake_recipe(run)
    train = recipe.train.model_copy(update={"objective": Supervised(kind="sft")})
    return recipe.model_copy(update={"name": "demo.sft", "train": train, "parents": {"base": str(run.parents[1])}})


@pytest.fixture(scope="module")
def model(tuned: Recipe) -> Transformer:
    torch.manual_seed(1)
    vocab = Vocab.load(tuned.data_directory / "tokenizer")
    config = Model(num_layers=1, hidden_size=16, num_heads=2, context_length=64, init_std=0.3)
    return Transformer(config, config.padded_vocab(vocab.size)).eval()


def test_nats_of_the_answers_whatever_the_batch(tuned: Recipe, model: Transformer, tmp_path: Path) -> None:
    """Against one conversation at a time, its answer found by the markers around it."""
    vocab = Vocab.load(tuned.data_directory / "tokenizer")
    template = ChatTemplate(vocab)
    scored = conversation_results(tuned, LocalReader(model, vocab.size, 5), vocab, 200)
    (result,) = scored.results
    assert result.name == "conversations/sft/nats_per_token" and result.n == 12
    assert without_items(scored, "conversations/sft", tmp_path) == set()
    ours = [item.measures["nats_per_token"][0] for item in scored.items]
    again = conversation_results(tuned, LocalReader(model, vocab.size, 1), vocab, 200)
    assert ours == pytest.approx([item.measures["nats_per_token"][0] for item in again.items], rel=1e-5)
    assert [(item.id, item.hash) for item in scored.items] == [(item.id, item.hash) for item in again.items]
    windows = UnitWindows(load_manifest(tuned.data_directory).validation[0], vocab.size, 64, vocab.eod_id)
    for number in range(12):
        ids = torch.tensor([template.bos, *windows.ids(number).tolist()])
        with torch.no_grad():
            logits = model(ids[None, :-1])[0, :, : vocab.size].double()
        nats = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        said, learnt = False, 0.0
        for place, index in enumerate(ids[1:].tolist()):
            learnt += float(nats[place]) if said else 0.0
            said = (said or index == template.role_ids["assistant"]) and index != template.end
        assert ours[number] == pytest.approx(learnt, rel=1e-5)


def test_later_stages_are_scored_on_the_same_conversations(tmp_path: Path) -> None:
    recipe = chain_recipe(tmp_path)
    save(recipe, tmp_path)
    assert tuned_of(recipe.stage("grpo")) is None, "the stage above has no recipe yet"
    for name in ("sft", "grpo"):
        save(recipe.stage(name), tmp_path / "stages" / name)
    found = tuned_of(recipe.stage("grpo"))
    assert found is not None and found.name == "demo.sft"
    assert tuned_of(recipe.stage("sft")) == recipe.stage("sft") and tuned_of(recipe) is None
