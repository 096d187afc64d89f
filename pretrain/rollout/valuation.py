"""Turns the rewards of a rollout into what its tokens count: advantages, returns, and what is reported of both.

Pure functions of the whole rollout, which every rank computes alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.schema.objectives import ProximalPolicy, Reinforcement
from pretrain.rewards.registry import Scores
from pretrain.rollout.advantages import (
    Baseline,
    answer_advantages,
    generalised_advantages,
    has_variance,
    penalised_rewards,
    target_rewards,
    whitened,
)
from pretrain.rollout.drawn import Drawn, counts_in_loss

BASELINES: dict[str, Baseline] = {"grpo": "group", "rloo": "leave_one_out", "reinforce": "batch"}
Padded = Tensor  # (N, T) of N answers, right-padded, by the places of their tokens


@dataclass(frozen=True)
class Evaluated:
    """What the training forward says of each token of N answers, before any of them is trained on; (N, T) or None."""

    log_probs: Padded | None = None
    reference: Padded | None = None
    values: Padded | None = None


@dataclass(frozen=True)
class Valued:
    """What each token of N answers is worth."""

    advantages: Padded  # (N, T) float64
    returns: Padded | None  # (N, T) float64, with a critic
    informative: float  # share of groups whose answers are not all worth the same

    def mean_advantage(self, answer: int, drawn: Tensor) -> float:
        """Of one answer, over the tokens it drew."""
        mask = drawn[answer]
        return float(self.advantages[answer][mask].mean()) if mask.any() else 0.0


def drawn_mask(answers: Sequence[Drawn]) -> Tensor:
    """(N, T) bool: the tokens that the policy drew."""
    mask = torch.zeros(len(answers), max((len(answer.ids) for answer in answers), default=0), dtype=torch.bool)
    for row, answer in enumerate(answers):
        mask[row, : len(answer.ids)] = ~torch.tensor(answer.forced, dtype=torch.bool)
    return mask


def value(settings: Reinforcement, answers: Sequence[Drawn], rewards: Tensor, samples: int, known: Evaluated) -> Valued:
    """Values the answers of a rollout, in the order of their numbers.

    Args:
        settings: the objective.
        answers: N of them, `samples` of each prompt side by side.
        rewards: (N,) of each answer.
        samples: answers per prompt.
        known: with the log-probabilities of policy and reference where the penalty belongs to the reward, and with the
            critic's values where there is one.
    """
    drawn = drawn_mask(answers)
    rewards = rewards.double()
    informative = float(has_variance(rewards.view(-1, samples)).double().mean())
    beta = settings.kl.coefficient if settings.kl.where == "reward" else 0.0
    divergences = torch.zeros(drawn.shape, dtype=torch.float64)
    if beta:
        assert known.log_probs is not None and known.reference is not None
        divergences = (known.log_probs - known.reference).double()
    if isinstance(settings, ProximalPolicy):
        assert known.values is not None
        of_targets = target_rewards(rewards, divergences, drawn, beta)
        advantages, returns = generalised_advantages(of_targets, known.values, drawn, settings.gamma, settings.lam)
        if settings.whiten:
            kept = torch.tensor([counts_in_loss(answer, settings.rollout.truncated) for answer in answers])
            advantages = whitened(advantages, drawn & kept[:, None])
        return Valued(advantages, returns, informative)
    if beta:
        rewards = penalised_rewards(rewards, divergences, drawn, beta)
    found = answer_advantages(rewards.view(-1, samples), BASELINES[settings.kind], settings.scale).flatten()
    return Valued(found[:, None] * drawn, None, informative)


def sampler_gap(answers: Sequence[Drawn], log_probs: Padded) -> float:
    """Mean over drawn tokens of |log-probability of the training forward - that of the sampler|."""
    drawn = drawn_mask(answers)
    gaps = [
        (log_probs[row, : len(answer.ids)] - torch.tensor(answer.log_probs)).abs()[drawn[row, : len(answer.ids)]]
        for row, answer in enumerate(answers)
    ]
    return float(torch.cat(gaps).double().mean()) if drawn.any() else 0.0


def rollout_statistics(answers: Sequence[Drawn], scores: Sequence[Scores], valued: Valued) -> dict[str, float]:
    """Means over the answers of a rollout, by the names of metrics.jsonl without `train/`.

    reward and reward/NAME; length, in tokens with the end; stop_rate, of answers that ended themselves; accuracy, of
    answers whose `exact_answer` is 1; informative, of groups with some variance; advantage_std, over drawn tokens.
    """
    count = len(answers)
    found = {"reward": sum(score.total for score in scores) / count}
    for name in scores[0].rewards:
        found[f"reward/{name}"] = sum(score.rewards[name].value for score in scores) / count
    if "exact_answer" in scores[0].rewards:
        found["accuracy"] = sum(score.rewards["exact_answer"].value == 1 for score in scores) / count
    drawn = valued.advantages[drawn_mask(answers)]
    return {
        **found,
        "length": sum(len(answer.ids) for answer in answers) / count,
        "stop_rate": sum(answer.finish == "stop" for answer in answers) / count,
        "informative": valued.informative,
        "advantage_std": float(drawn.std()) if len(drawn) > 1 else 0.0,
    }
