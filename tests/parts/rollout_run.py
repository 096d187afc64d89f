"""Prompts that ask for a digit, a policy that answers with any, and recipes that teach it which."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml
from torch import Tensor

import pretrain.session as session
from configs.safety.trust import trusting
from configs.schema.chat import Unit
from configs.schema.recipe import Recipe, load
from data_prep.chat.messages import Message
from data_prep.tokens.chat_template import ChatTemplate, Kind, Rendered
from pretrain.model.transformer import Transformer
from tests.parts.small_units import Documents, chat_vocab, prepare_units

ASKED = 10  # digits that prompts ask for
REWARD = '''"""Rewards for tests."""
def repeats(text, reference):
    return float(text == reference)

def uneven(text, reference):
    return sum(map(ord, text)) % 7 / 7
'''


def write_rollout_recipe(
    file: Path, data: Path, objective: dict[str, Any], reward: str = "repeats", context: int = 16, **train: Any
) -> Path:
    """A recipe for a model of 30,000 parameters in fp32, and beside it the file with its reward."""
    (file.parent / "rewards.py").write_text(REWARD, encoding="utf-8")
    custom = [{"code": f"{file.parent / 'rewards.py'}:{reward}"}]
    rollout = {"prompts": 4, "samples": 4, "max_new_tokens": 4, "truncated": "keep", **objective.pop("rollout", {})}
    chosen = {"kind": "grpo", "rewards": {"custom": custom}, "rollout": rollout, **objective}
    rows = rollout["prompts"] * rollout["samples"] * rollout.get("passes", 1) // rollout.get("updates", 1)
    content = {
        "name": "tiny",
        "out": str(file.parent / "run"),
        "data": {
            "sources": [{"name": "tiny", "path": "none.txt", "shape": "gsm8k"}],
            "directory": str(data),
            "tokenizer": {"kind": "byte", "special_tokens": "chat"},
        },
        "model": {
            "num_layers": 2, "hidden_size": 32, "num_heads": 2, "context_length": context, "dropout": 0.0,
        },
        "train": {
            "steps": 4, "global_batch_size": rows, "precision": "fp32", "optimizer": {"lr": 3e-3, "weight_decay": 0.0},
            "schedule": {"kind": "constant"}, "log_every": 1, "checkpoint": {"every": 1000},
            "validation": {"every": 1000}, "tensorboard": False, "objective": chosen, **train,
        },
    }  # fmt: skip
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def rollout_recipe(directory: Path, data: Path, objective: dict[str, Any], **more: Any) -> Recipe:
    """`write_rollout_recipe`, loaded."""
    return load(write_rollout_recipe(directory / "recipe.yaml", data, objective, **more))


def prepare_digits(directory: Path) -> Path:
    """40 prompts that are a digit each, and 12 held out, with the digit as reference."""
    return prepare_units(directory, "prompt", make=_digit)


def _digit(template: ChatTemplate, unit: Unit, number: int, _: random.Random) -> Documents:
    digit = str(number % ASKED)
    ids = [*template.prompt([Message.of("user", digit)])[1:], template.bos]
    columns = {"id": f"digit {number}", "url": None, "reference": digit, "metadata": "{}"}
    return [(Rendered(ids, [int(Kind.GIVEN)] * len(ids)), columns)]


def digits_model(recipe: Recipe, steps: int = 240) -> Transformer:
    """A model that answers a prompt d with d once in ten times, otherwise with d + 1, d + 2 or d + 3, and the end."""
    vocab = chat_vocab()
    template = ChatTemplate(vocab)
    torch.manual_seed(0)
    model = Transformer(recipe.model, recipe.model.padded_vocab(vocab.size))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    rows = [
        template.render([Message.of("user", str(asked)), Message.of("assistant", str((asked + more) % 10))]).ids
        for asked in range(ASKED)
        for more in (0, 1, 1, 1, 2, 2, 2, 3, 3, 3)
    ]
    whole: Tensor = torch.tensor(rows)
    weights = torch.zeros(len(rows), whole.shape[1] - 1)
    weights[:, -2:] = 1.0
    for _ in range(steps):
        loss = model.loss(whole[:, :-1], whole[:, 1:], weights) / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def digits_run(directory: Path, data: Path) -> Path:
    """A run directory with `digits_model` as its checkpoint, to start from."""
    recipe = rollout_recipe(directory, data, {}, steps=1, optimizer={"lr": 1e-9, "weight_decay": 0.0})
    weights = {name: value.detach() for name, value in digits_model(recipe).named_parameters()}
    with trusting([directory]), patch.object(session, "initial_weights", lambda *_: lambda name: weights[name].clone()):
        session.run(recipe)
    return recipe.run_directory
