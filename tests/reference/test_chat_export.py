"""Exports of stages: the chat template with its ids, the tokens that end an answer, a reward model's scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from configs.schema.chat import CHAT_TOKENS
from configs.schema.data import Tokenizer
from configs.schema.recipe import save
from data_prep.chat.messages import Message
from data_prep.tokens.chat_template import ChatTemplate, Kind
from data_prep.tokens.shards import load_manifest
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import train_vocab
from launch.cli import main as replica
from pretrain.checkpoint.saver import Snapshot, commit_checkpoint
from pretrain.model.transformer import Transformer
from pretrain.parallel.ranks import Ranks
from tests.parts.training_run import prepare_data, tiny_recipe

Made = Callable[..., Path]


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    return train_vocab(Tokenizer(kind="byte", special_tokens=list(CHAT_TOKENS)), [])


@pytest.fixture
def made(tmp_path: Path, vocab: Vocab) -> Made:
    """Makes a run `RUN/stages/NAME` whose objective is of the kind NAME, with random weights."""

    def make(name: str, objective: dict[str, Any]) -> Path:
        data = load_manifest(prepare_data(tmp_path / "data"))
        vocab.save(tmp_path / "vocabulary")
        data = replace(data, tokenizer=tmp_path / "vocabulary", tokenizer_fingerprint=vocab.fingerprint)
        recipe = tiny_recipe(tmp_path, data.directory, objective=objective)
        stage = recipe.model_copy(update={"out": str(tmp_path / "run" / "stages" / name)})
        torch.manual_seed(1)
        model = Transformer(recipe.model, recipe.model.padded_vocab(vocab.size))
        if name == "reward":
            model.add_module("reward_head", nn.Linear(recipe.model.hidden_size, 1, bias=False))
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
        alone = Ranks(rank=0, count=1, local_rank=0, local_count=1)
        commit_checkpoint(Snapshot.of_model(model), stage, data, alone, lambda value: [value])
        for one in (recipe, stage):
            save(one, one.run_directory)
        return tmp_path / "run"

    return make


CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is  3 + 4?\n"},
    {"role": "assistant", "content": " It is 7. 🙂"},
    {"role": "user", "content": ""},
    {"role": "assistant", "content": "You said nothing."},
]


def test_ids_of_the_exported_template_are_ours(made: Made, tmp_path: Path, vocab: Vocab) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    run, target = made("sft", {"kind": "sft"}), tmp_path / "exported"
    assert replica(["export", f"{run}:sft", str(target), "--verify"]) == 0
    tokenizer, template = AutoTokenizer.from_pretrained(target), ChatTemplate(vocab)
    messages = [Message.of(message["role"], message["content"]) for message in CONVERSATION]  # type: ignore[arg-type]
    theirs = tokenizer.apply_chat_template(CONVERSATION, return_assistant_tokens_mask=True, return_dict=True)
    ours = template.render(messages)
    assert theirs["input_ids"] == ours.ids
    assert theirs["assistant_masks"] == [int(kind in (Kind.ANSWER, Kind.END)) for kind in ours.kinds]
    prompt = tokenizer.apply_chat_template(CONVERSATION[:2], add_generation_prompt=True, return_dict=True)
    assert prompt["input_ids"] == template.prompt(messages[:2])
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|end|>", "<|pad|>")
    settings = GenerationConfig.from_pretrained(target)
    assert settings.eos_token_id == [template.end, vocab.eod_id] and settings.pad_token_id == template.pad
    assert json.loads((target / "config.json").read_text())["pad_token_id"] == template.pad
    assert Vocab.load(target).eod_id == vocab.eod_id  # documents still end with their own token


def test_the_program_for_trl_reads_what_the_page_exports() -> None:
    """It was run once with trl; here it must compile, and name the directory and the settings that there are."""
    page = (Path(__file__).parents[2] / "docs" / "assistant.md").read_text(encoding="utf-8")
    program = page.split("```python\n")[1].split("```")[0]
    compile(program, "docs/assistant.md", "exec")
    assert "replica export runs/assistant:sft exported/assistant" in page
    assert program.count('from_pretrained("exported/assistant")') == 2 and "assistant_only_loss=True" in program


def test_a_base_that_has_reserved_the_tokens_has_no_template(made: Made, tmp_path: Path) -> None:
    run = made("custom", {"code": str(tmp_path / "own.py") + ":Own"})
    assert replica(["export", f"{run}:custom", str(tmp_path / "exported")]) == 0
    assert "chat_template" not in json.loads((tmp_path / "exported" / "tokenizer_config.json").read_text())


def test_a_reward_model_is_a_classifier_with_one_label(
    made: Made, tmp_path: Path, vocab: Vocab, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForSequenceClassification

    run, target = made("reward", {"kind": "reward"}), tmp_path / "exported"
    assert replica(["export", f"{run}:reward", str(target), "--verify"]) == 0
    assert "verified" in capsys.readouterr().err
    model = AutoModelForSequenceClassification.from_pretrained(target, dtype=torch.float32).eval()
    assert type(model).__name__ == "LlamaForSequenceClassification" and model.config.num_labels == 1
    template = ChatTemplate(vocab)
    row = template.render([Message.of("user", "a"), Message.of("assistant", "b")]).ids
    with torch.no_grad():
        alone, padded = (model(torch.tensor([row + [template.pad] * more])).logits for more in (0, 3))
    assert alone.shape == (1, 1) and torch.allclose(alone, padded, atol=1e-6)  # read at `<|end|>`, not at a pad
    assert replica(["export", f"{run}:reward", str(tmp_path / "reward.gguf")]) == 2
    assert "which GGUF has no place for" in capsys.readouterr().err
