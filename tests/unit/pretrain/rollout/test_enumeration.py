"""Proves estimators unbiased by enumeration: three tokens and an end, at most three tokens, all 40 texts.

The mean of an estimator's gradient over all texts, each with its probability, must be autograd's gradient of the
expected reward (minus the divergence) itself. A real model and the real loss; double precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from configs.schema.model import Model
from configs.schema.objectives import GroupPolicy
from pretrain.model.transformer import Transformer
from pretrain.objectives.policy import PolicyLoss
from pretrain.rollout.advantages import (
    answer_advantages,
    generalised_advantages,
    penalised_rewards,
    target_rewards,
)
from pretrain.rollout.drawn import Drawn, loss_weights, training_rows

END, LONGEST, BETA, SAMPLES = 0, 3, 0.3, 2
TEXTS = [list((*words, END)[:LONGEST]) for length in range(LONGEST + 1) for words in product((1, 2, 3), repeat=length)]


def make_model(seed: int) -> Transformer:
    torch.manual_seed(seed)
    config = Model(num_layers=1, hidden_size=8, num_heads=2, context_length=8, dropout=0.0, init_std=0.5)
    return Transformer(config, 4).double().eval()


@dataclass(frozen=True)
class World:
    """Everything about the 40 texts under one policy."""

    policy: Transformer
    rows: Any
    log_probs: Tensor  # (40, T) of the policy, with gradient
    reference: Tensor  # (40, T)
    drawn: Tensor  # (40, T)
    rewards: Tensor  # (40,)

    @property
    def chances(self) -> Tensor:
        return (self.log_probs * self.drawn).sum(dim=1).exp()

    def gradient(self, value: Tensor) -> Tensor:
        parts = torch.autograd.grad(value, list(self.policy.parameters()), retain_graph=True, allow_unused=True)
        return torch.cat([part.flatten() for part in parts if part is not None])

    def exact(self, beta: float = 0.0) -> Tensor:
        """The gradient of E[reward] - beta KL(policy || reference) over whole texts."""
        ratio = ((self.log_probs - self.reference) * self.drawn).sum(dim=1)
        return self.gradient((self.chances * (self.rewards - beta * ratio)).sum())

    @property
    def divergences(self) -> Tensor:
        return (self.log_probs - self.reference).detach()


def log_probs_of(model: Transformer, rows: Any) -> Tensor:
    return model(rows.tokens).log_softmax(-1).gather(-1, rows.targets[..., None]).squeeze(-1)


@cache
def world() -> World:
    answers = [
        Drawn(0, 0, text, [0.0] * len(text), [False] * len(text), "stop" if text[-1] == END else "length")
        for text in TEXTS
    ]
    rows = training_rows([[END]], answers, END)
    policy = make_model(1)
    rewards = torch.randn(len(TEXTS), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        reference = log_probs_of(make_model(2), rows)
    return World(policy, rows, log_probs_of(policy, rows), reference, rows.drawn, rewards)


def settings(**changes: Any) -> GroupPolicy:
    values = {"kind": "rloo", "rewards": {"format": 1.0}, "normalise": "dr_grpo", **changes}
    return GroupPolicy.model_validate({**values, "rollout": {"max_new_tokens": LONGEST, "samples": SAMPLES}})


def estimate(chosen: GroupPolicy, advantages: Tensor) -> Tensor:
    """Mean over all texts of the gradient that the loss gives with these advantages (40,) or (40, T), to ascend."""
    here = world()
    answers = [Drawn(0, 0, text, [], [False] * len(text), "stop") for text in TEXTS]
    weights, _ = loss_weights(answers, chosen.normalise, "keep", LONGEST)
    share = here.chances.detach() * torch.tensor(weights, dtype=torch.float64)
    if advantages.dim() == 1:
        advantages = advantages[:, None].expand(here.drawn.shape)
    module = PolicyLoss(here.policy, None, chosen)
    columns = {
        "advantage": advantages,
        "sampled": here.log_probs.detach(),
        "reference": here.reference,
        "token_share": torch.ones(len(TEXTS)),
    }
    sums = module.loss(here.rows.tokens, here.rows.targets, here.drawn * share[:, None], None, **columns)
    return -here.gradient(sums[0])


def mean_advantages(rewards: Tensor, baseline: str, scale: str = "none") -> Tensor:
    """(40,) the advantage of each text, as mean over all texts that may share its group of two."""
    count = len(rewards)
    pairs = torch.stack([rewards.repeat_interleave(count), rewards.repeat(count)], dim=1)  # (1600, 2)
    found = [answer_advantages(pair[None], baseline, scale) for pair in pairs]  # type: ignore[arg-type]
    return torch.cat(found)[:, 0].view(count, count) @ world().chances.detach()


def test_there_are_forty_texts_and_nothing_else() -> None:
    assert len(TEXTS) == 40 and len({tuple(text) for text in TEXTS}) == 40
    assert float(world().chances.detach().sum()) == pytest.approx(1, abs=1e-12)


def difference(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


def test_leave_one_out_is_unbiased() -> None:
    assert difference(estimate(settings(), mean_advantages(world().rewards, "leave_one_out")), world().exact()) < 1e-6


def test_the_mean_of_the_group_only_shortens_the_gradient() -> None:
    """An answer is part of its own baseline: (S - 1) / S of the gradient, in the same direction."""
    got = estimate(settings(kind="grpo"), mean_advantages(world().rewards, "group"))
    assert difference(got * SAMPLES / (SAMPLES - 1), world().exact()) < 1e-6


def test_the_divergence_in_the_reward_is_unbiased() -> None:
    here = world()
    rewards = penalised_rewards(here.rewards, here.divergences, here.drawn, BETA)
    got = estimate(settings(), mean_advantages(rewards, "leave_one_out"))
    assert difference(got, here.exact(BETA)) < 1e-6
    assert difference(here.exact(), here.exact(BETA)) > 0.1  # the penalty is seen at all


def test_generalised_advantages_at_lambda_one_are_unbiased_whatever_the_critic_says() -> None:
    here = world()
    values = torch.randn(here.drawn.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    # A critic sees what stands before a target, and nothing else: the same value for the same beginning.
    seen: dict[tuple[int, ...], Tensor] = {}
    for row, text in enumerate(TEXTS):
        for place in range(len(text)):
            values[row, place] = seen.setdefault(tuple(text[:place]), values[row, place].clone())
    rewards = target_rewards(here.rewards, here.divergences, here.drawn, BETA)
    advantages, _ = generalised_advantages(rewards, values, here.drawn, 1.0, 1.0)
    assert difference(estimate(settings(), advantages), here.exact(BETA)) < 1e-6


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        pytest.param({}, "group", id="deviation of the group"),
        pytest.param({"normalise": "grpo"}, "none", id="each answer over its own length"),
    ],
)
def test_biased(changes: dict[str, Any], scale: str) -> None:
    """Negative: what the test above would not forgive, whatever the length of the gradient."""
    got = estimate(settings(**changes), mean_advantages(world().rewards, "leave_one_out", scale))
    wanted = world().exact()
    assert float(torch.cosine_similarity(got, wanted, dim=0)) < 0.995


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_divergence_in_the_loss_is_biased(estimator: str) -> None:
    """Negative: a token answers for its own divergence, and not for that of the tokens it leads to."""
    here = world()
    chosen = settings(kl={"coefficient": BETA, "where": "loss", "estimator": estimator})
    got = estimate(chosen, mean_advantages(here.rewards, "leave_one_out"))
    assert difference(got, here.exact(BETA)) > 0.02
