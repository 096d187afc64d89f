"""Losses and gradients of drawn answers equal those of trl's GRPOTrainer, on the ids and advantages of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from configs.schema.data import Tokenizer
from configs.schema.model import Model
from configs.schema.objectives import GroupPolicy
from data_prep.tokens.vocab_training import train_vocab
from pretrain.interchange.huggingface_export import export_directory
from pretrain.model.transformer import Transformer
from pretrain.objectives.policy import PolicyLoss
from pretrain.rollout.drawn import Drawn, loss_weights, training_rows

ROOT = Path(__file__).parents[2]
LONGEST, TEMPERATURE = 9, 0.7
PROMPTS = [[0, 5, 6], [0, 5, 6], [0, 9, 8, 7, 6], [0, 9, 8, 7, 6]]
ANSWERS = [[11, 12, 13, 14, 1], [21, 1], [31, 32, 33, 34, 35, 36, 37, 38, 39], [41, 42, 43, 1]]
FORCED = [[2], [], [4, 5], []]
ADVANTAGES = [0.7, -0.9, 1.3, -0.2]
# Each: settings of trl's, of ours, and whether the answers are older than the weights.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "grpo": ({"loss_type": "grpo"}, {"normalise": "grpo"}, False),
    "dapo": ({"loss_type": "dapo"}, {"normalise": "dapo"}, False),
    "dr_grpo": ({"loss_type": "dr_grpo"}, {"normalise": "dr_grpo"}, False),
    "second update": ({"loss_type": "dapo"}, {}, True),
    "clip higher": ({"loss_type": "grpo", "epsilon_high": 0.28}, {"normalise": "grpo", "clip": [0.2, 0.28]}, True),
    "k3": (
        {"loss_type": "dapo", "beta": 0.3},
        {"kl": {"coefficient": 0.3, "where": "loss", "estimator": "k3"}},
        True,
    ),
}
WEIGHTS = {
    "embed.weight": "model.embed_tokens.weight",
    "lm_head.weight": "lm_head.weight",
    "norm.weight": "model.norm.weight",
    "blocks.0.mlp.down.weight": "model.layers.0.mlp.down_proj.weight",
    "blocks.1.attention.out.weight": "model.layers.1.self_attn.o_proj.weight",
}


@pytest.fixture(scope="module")
def trl(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Transformer, dict[str, Any]]:
    """Directory with trl's answers, the model, and what both were given."""
    directory = tmp_path_factory.mktemp("trl")
    vocab = train_vocab(Tokenizer(kind="byte"), [])
    vocab.save(directory / "vocab")
    torch.manual_seed(0)
    config = Model(
        family="llama", num_layers=2, hidden_size=32, num_heads=4, context_length=32, init_std=0.2, vocab_multiple=1
    )
    model = Transformer(config, config.padded_vocab(vocab.size))
    export_directory(model, directory / "vocab", directory / "policy")
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        new = PolicyLoss(model, None, settings({})).per_target(*rows_of()[:2], torch.ones(1), None)[0]
    given: dict[str, Any] = {"longest": LONGEST, "temperature": TEMPERATURE, "prompts": PROMPTS, "answers": ANSWERS}
    given["advantages"] = ADVANTAGES
    given["masks"] = [
        [0 if place in out else 1 for place in range(len(a))] for a, out in zip(ANSWERS, FORCED, strict=True)
    ]
    for name, spread in (("old", 0.4), ("reference", 0.8)):
        given[name] = [
            (new[row, len(prompt) - 1 :][: len(answer)] + spread * torch.randn(len(answer), generator=chance)).tolist()
            for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True))
        ]
    plain = {"beta": 0.0, "epsilon": 0.2}
    given["cases"] = {name: {"settings": plain | theirs, "old": old} for name, (theirs, _, old) in CASES.items()}
    (directory / "inputs.json").write_text(json.dumps(given))
    command = [sys.executable, "-m", "tests.reference.trl_policy_numbers", str(directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return directory, model, given


def settings(ours: dict[str, Any]) -> GroupPolicy:
    values = {"kind": "grpo", "rewards": {"format": 1.0}, "clip": [0.2, 0.2], **ours}
    values["rollout"] = {"max_new_tokens": LONGEST, "temperature": TEMPERATURE}
    return GroupPolicy.model_validate(values)


def rows_of() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = training_rows(PROMPTS, drawn(), 0)
    return rows.tokens, rows.targets, rows.drawn


def drawn() -> list[Drawn]:
    forced = [[place in out for place in range(len(ids))] for ids, out in zip(ANSWERS, FORCED, strict=True)]
    return [
        Drawn(row, 0, ids, [0.0] * len(ids), given, "stop")
        for row, (ids, given) in enumerate(zip(ANSWERS, forced, strict=True))
    ]


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_those_of_trl(name: str, trl: tuple[Path, Transformer, dict[str, Any]]) -> None:
    directory, model, given = trl
    _, ours, old = CASES[name]
    chosen = settings(ours)
    tokens, targets, mask = rows_of()
    weights, count = loss_weights(drawn(), chosen.normalise, "mask", LONGEST)

    def column(values: list[list[float]]) -> torch.Tensor:
        placed = torch.zeros(mask.shape)
        for row, of_row in enumerate(values):
            begin = len(PROMPTS[row]) - 1
            placed[row, begin : begin + len(of_row)] = torch.tensor(of_row)
        return placed

    tokens_counted = float(mask.sum())
    columns = {
        "advantage": torch.tensor(ADVANTAGES)[:, None].expand(mask.shape),
        "sampled": torch.zeros(mask.shape),
        "reference": column(given["reference"]),
        "token_share": torch.full((len(ANSWERS),), count / tokens_counted),
    } | ({"old": column(given["old"])} if old else {})
    model.zero_grad()
    sums = PolicyLoss(model, None, chosen).loss(tokens, targets, mask * torch.tensor(weights)[:, None], None, **columns)
    loss, clipped = sums[0] / count, sums[1] / count
    loss.backward()
    numbers = json.loads((directory / "numbers.json").read_text())
    assert float(loss.detach()) == pytest.approx(numbers[name], abs=1e-6)
    assert float(clipped.detach()) == pytest.approx(numbers[f"{name} clipped"], abs=1e-6)
    assert (numbers[f"{name} clipped"] > 0) is old
    theirs = load_file(directory / f"{name}.st")
    own = dict(model.named_parameters())
    for ours_name, their_name in WEIGHTS.items():
        gradient = own[ours_name].grad
        assert gradient is not None
        their = theirs[their_name]
        # Relative to the largest: trl pads prompts on the left, so rotary positions and their rounding differ.
        assert (gradient - their).abs().max() < 2e-6 * their.abs().max().clamp(min=1), ours_name
