"""Losses, gradients and a step of training equal trl's, on directories that we exported, with the same token ids."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from configs.schema.data import Tokenizer
from configs.schema.model import Model
from configs.schema.objectives import Preference, RewardModelling
from data_prep.tokens.vocab_training import train_vocab
from pretrain.engine.loss_module import LossModule
from pretrain.interchange.huggingface_export import Weights, export_directory
from pretrain.model.transformer import Transformer
from pretrain.model.weight_names import REWARD_HEAD
from pretrain.objectives.language_modelling import LanguageModelling
from pretrain.objectives.pair_sums import answer_log_probs
from pretrain.objectives.preference import Answers, PreferenceOptimisation, pair_loss
from pretrain.objectives.reward_modelling import RewardModel
from tests.parts.training_run import ROOT

pytestmark = pytest.mark.slow
MODEL: dict[str, Any] = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "num_kv_heads": 2, "context_length": 64}
MODEL |= {"init_std": 0.2, "vocab_multiple": 1}
RATE, CENTER, MARGINS = 0.1, 0.01, [0.5, 0.0, 1.0]
DPO: dict[str, dict[str, Any]] = {
    "sigmoid": {"beta": 0.1},
    "ipo": {"beta": 0.1},
    "hinge": {"beta": 0.3},
    "robust": {"beta": 0.1, "label_smoothing": 0.1},
    "apo_zero": {"beta": 0.1},
}
MEANS = [[-1.0, -2.0], [-0.01, -3.0], [-4.0, -0.5]]
Row = tuple[list[int], list[int]]  # ids, and 1 where one is learnt


@dataclass(frozen=True)
class Shared:
    """What both sides read, and what trl found."""

    directory: Path
    policy: Transformer
    reference: Transformer
    head: Tensor
    conversations: list[Row]
    pairs: list[tuple[list[int], list[int], list[int]]]  # prompt, chosen, rejected
    found: dict[str, Any]

    def exported(self, values: dict[str, Tensor], name: str) -> dict[str, Tensor]:
        """Numbers of our parameters under the other side's names, as the export writes weights."""
        made = Weights(self.policy.config, self.policy.vocab_size, lambda key: values[key], REWARD_HEAD in values)
        return load_file(export_directory(made, self.directory / "vocab", self.directory / name) / "model.safetensors")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    directory, draw = tmp_path_factory.mktemp("trl"), random.Random(0)
    vocab = train_vocab(Tokenizer(kind="byte", special_tokens="chat"), [])
    vocab.save(directory / "vocab")
    config = Model(**MODEL)
    torch.manual_seed(1)
    policy, reference = (Transformer(config, vocab.size) for _ in range(2))
    head = torch.randn(1, config.hidden_size)
    weights = Weights.of_model(policy)
    read = {REWARD_HEAD: head}
    scorer = Weights(config, vocab.size, lambda name: read[name] if name in read else weights.read(name), True)
    export_directory(policy, directory / "vocab", directory / "policy")
    export_directory(reference, directory / "vocab", directory / "reference")
    export_directory(scorer, directory / "vocab", directory / "classifier", chat=True)
    low = len(vocab.special_ids)

    def ids(count: int) -> list[int]:
        return [draw.randrange(low, vocab.size) for _ in range(count)]

    conversations = [([0, *ids(n)], [0] * (n // 2) + [1] * (n + 1 - n // 2)) for n in (9, 14, 7, 11)]
    pairs = [([0, *ids(a)], ids(b), ids(c)) for a, b, c in ((5, 4, 7), (3, 8, 2), (6, 1, 5))]
    inputs = {
        "conversations": conversations, "pairs": pairs, "margins": MARGINS, "means": MEANS, "rate": RATE,
        "center": CENTER, "simpo": {"beta": 2.0, "simpo_gamma": 1.0}, "orpo": {"beta": 0.1},
        "dpo": {name: {**settings, "loss_type": [name]} for name, settings in DPO.items()},
    }  # fmt: skip
    (directory / "inputs.json").write_text(json.dumps(inputs))
    command = [sys.executable, "-m", "tests.reference.trl_numbers", str(directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((directory / "numbers.json").read_text())
    return Shared(directory, policy, reference, head, conversations, pairs, found)


def batch_of(rows: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, targets and weights (B, T) of rows padded on the right."""
    width = max(len(ids) for ids, _ in rows)
    padded = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids, _ in rows])
    learnt = torch.tensor([[*mask, *[0] * (width - len(mask))] for _, mask in rows], dtype=torch.float32)
    return padded[:, :-1].contiguous(), padded[:, 1:].contiguous(), learnt[:, 1:].contiguous()


def rows_of_pairs(shared: Shared) -> list[Row]:
    return [
        (prompt + answer, [0] * len(prompt) + [1] * len(answer))
        for prompt, *answers in shared.pairs
        for answer in answers
    ]


def gradients(module: LossModule) -> dict[str, Tensor]:
    return {
        name: torch.zeros_like(value) if value.grad is None else value.grad for name, value in module.named_weights()
    }


def check_gradients(shared: Shared, module: LossModule, name: str) -> None:
    ours, theirs = shared.exported(gradients(module), f"ours {name}"), load_file(shared.directory / f"{name}.st")
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        # Rounding goes with the largest of a tensor; a step of SGD multiplies it by the rate, 0.1 and less.
        atol = 2e-6 * max(1.0, float(value.abs().max()))
        torch.testing.assert_close(ours[key], value, atol=atol, rtol=0, msg=lambda text, key=key: f"{key}: {text}")


# ------------------------------------------------------------------------------------------------------------------ sft
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_supervised_loss_and_a_step_of_sgd(shared: Shared, packed: bool) -> None:
    model = Transformer(shared.policy.config, shared.policy.vocab_size)
    model.load_state_dict(shared.policy.state_dict())
    module = LanguageModelling(model).train()
    if packed:
        inputs = [
            torch.cat(parts, dim=1) for parts in zip(*(batch_of([row]) for row in shared.conversations), strict=True)
        ]
        positions = torch.cat([torch.arange(len(ids) - 1) for ids, _ in shared.conversations])[None]
        loss = module(*inputs, positions) / inputs[2].sum()
    else:
        inputs = list(batch_of(shared.conversations))
        loss = module(*inputs) / inputs[2].sum()
    name = "packed" if packed else "plain"
    assert loss.item() == pytest.approx(shared.found[f"sft {name}"], rel=1e-6)
    loss.backward()
    stepped = {
        key: value.detach() - RATE * value.grad for key, value in model.named_parameters() if value.grad is not None
    }
    ours = shared.exported(stepped, f"ours {name}")
    theirs = load_file(shared.directory / f"{name}.st")
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], atol=1e-6, rtol=0, msg=lambda text, key=key: f"{key}: {text}")


# --------------------------------------------------------------------------------------------------------------- reward
def reward_model(shared: Shared, **settings: Any) -> RewardModel:
    model = Transformer(shared.policy.config, shared.policy.vocab_size)
    model.load_state_dict(shared.policy.state_dict())
    module = RewardModel(model, RewardModelling(kind="reward", **settings)).train()
    with torch.no_grad():
        module.reward_head.weight.copy_(shared.head)
    return module


def last_places(rows: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Whole texts as inputs, with weight at the last token of each: where the classifier reads its score."""
    texts = [([*ids, 0], [0] * len(ids) + [1]) for ids, _ in rows]
    return batch_of(texts)


def test_scores_are_those_of_a_classifier(shared: Shared) -> None:
    tokens, _, weights = last_places(rows_of_pairs(shared))
    scores = reward_model(shared).scores(tokens, weights).detach()
    theirs = torch.tensor(shared.found["scores"])  # the chosen first, then the rejected
    assert torch.allclose(torch.cat([scores[::2], scores[1::2]]), theirs, atol=1e-5)


@pytest.mark.parametrize("name", ["reward", "reward centred"])
def test_reward_loss_and_gradient(shared: Shared, name: str) -> None:
    module = reward_model(shared, **({"center": CENTER, "margin": True} if "centred" in name else {}))
    margin = torch.tensor(MARGINS).repeat_interleave(2)
    loss = module(*last_places(rows_of_pairs(shared)), margin=margin)[0] / len(shared.pairs)
    assert loss.item() == pytest.approx(shared.found[name], rel=1e-6)
    loss.backward()
    module.model.lm_head.weight.grad = None  # type: ignore[union-attr]
    check_gradients(shared, module, name)


# ------------------------------------------------------------------------------------------------------------------ dpo
@pytest.mark.parametrize("name", DPO)
def test_preference_loss_rewards_and_gradient(shared: Shared, name: str) -> None:
    model = Transformer(shared.policy.config, shared.policy.vocab_size)
    model.load_state_dict(shared.policy.state_dict())
    module = PreferenceOptimisation(model, Preference(kind="dpo", loss=name, **DPO[name])).train()
    inputs = batch_of(rows_of_pairs(shared))
    with torch.no_grad():
        reference = answer_log_probs(shared.reference.log_probs(inputs[0], inputs[1]), inputs[2])
    sums = module(*inputs, reference=reference) / len(shared.pairs)
    theirs = shared.found[name]
    values = dict(zip(("loss", *module.stat_names), sums.tolist(), strict=True))
    names = {
        "loss": "loss", "accuracy": "rewards/accuracies", "margin": "rewards/margins",
        "reward_chosen": "rewards/chosen", "reward_rejected": "rewards/rejected",
        "log_prob_chosen": "logps/chosen", "log_prob_rejected": "logps/rejected",
    }  # fmt: skip
    for ours, other in names.items():
        assert values[ours] == pytest.approx(theirs[other], rel=2e-6, abs=2e-6), ours
    sums[0].backward()
    check_gradients(shared, module, name)


@pytest.mark.parametrize("name", ["simpo", "orpo"])
def test_losses_without_a_reference(shared: Shared, name: str) -> None:
    means = torch.tensor(MEANS)
    answers = Answers(means * 7, torch.full_like(means, 7))
    beta = 2.0 if name == "simpo" else 0.1
    settings = Preference(kind="dpo", loss=name, beta=beta, gamma=0.5)  # trl's simpo_gamma is gamma x beta
    losses = pair_loss(settings, answers).losses
    theirs = torch.tensor(shared.found[name])
    # trl's function gives the odds ratio's part alone, with the other sign.
    assert torch.allclose(losses, theirs if name == "simpo" else -means[:, 0] - theirs, atol=1e-6)
    for (chosen, rejected), loss in zip(MEANS, losses.tolist(), strict=True):  # the papers' formulas
        if name == "simpo":
            expected = math.log1p(math.exp(-(beta * (chosen - rejected) - 1.0)))
        else:
            odds = [math.exp(mean) / (1 - math.exp(mean)) for mean in (chosen, rejected)]
            expected = -chosen + beta * math.log1p(odds[1] / odds[0])
        assert loss == pytest.approx(expected, rel=1e-5)
