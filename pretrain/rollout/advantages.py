"""Computes how much better than expected each answer, or each token of it, was.

Pure functions of numbers in double precision. Groups: P prompts with S answers each. Tokens: B rows of T targets, of
which a mask says whether they were drawn from the policy.

Sources: GRPO (arXiv:2402.03300), Dr. GRPO (arXiv:2503.20783), RLOO (arXiv:2402.14740), generalised advantage estimation
(arXiv:1506.02438).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Baseline = Literal["group", "leave_one_out", "batch"]
Scale = Literal["none", "group", "batch"]
# Added to a standard deviation that is divided by; trl's value, so that both give the same numbers.
DEVIATION_EPSILON = 1e-4
_WHITENING_EPSILON = 1e-8


def has_variance(rewards: Tensor) -> Tensor:
    """(P, S) rewards -> (P,) bool: not all answers of the group are worth the same."""
    return rewards.amax(dim=1) > rewards.amin(dim=1)


def answer_advantages(rewards: Tensor, baseline: Baseline, scale: Scale = "none") -> Tensor:
    """(P, S) rewards -> (P, S) float64: reward minus baseline, divided by a standard deviation where asked for.

    Args:
        rewards: of each answer.
        baseline: group: the mean of the group (GRPO). leave_one_out: that of the other answers of the group, which
            leaves the policy gradient unbiased (RLOO). batch: the mean of all answers (REINFORCE).
        scale: the standard deviation (of a sample, n - 1) of the group or of all answers, plus 1e-4.

    Answers that are all worth the same have an advantage of exactly 0, whatever rounding makes of their mean.

    Raises:
        ValueError: for a baseline that needs two answers, when there is one.
    """
    rewards = rewards.double()
    samples = rewards.shape[1]
    if samples < 2 and baseline != "batch":
        raise ValueError(
            "a baseline from the other answers needs at least 2 answers per prompt; set "
            "objective.rollout.samples to 2 or more, or objective.kind to reinforce"
        )
    if baseline == "batch":
        advantages = rewards - rewards.mean()
        advantages = advantages * bool(rewards.max() > rewards.min())
    else:
        mean = rewards.mean(dim=1, keepdim=True)
        others = (rewards.sum(dim=1, keepdim=True) - rewards) / max(samples - 1, 1)
        advantages = rewards - (mean if baseline == "group" else others)
        advantages = advantages * has_variance(rewards)[:, None]
    if scale == "none":
        return advantages
    deviation = rewards.std(dim=1, keepdim=True) if scale == "group" else rewards.std()
    return advantages / (torch.nan_to_num(deviation) + DEVIATION_EPSILON)


def penalised_rewards(rewards: Tensor, divergences: Tensor, drawn: Tensor, coefficient: float) -> Tensor:
    """(B,) float64: the reward of each answer minus `coefficient` x the k1 (B, T) of its drawn targets.

    As part of the reward the penalty also tells a token what it does to the divergence of those after it. So its
    gradient is that of the divergence of whole answers.
    """
    return rewards.double() - coefficient * torch.where(drawn, divergences.double(), 0).sum(dim=1)


def target_rewards(rewards: Tensor, divergences: Tensor, drawn: Tensor, coefficient: float) -> Tensor:
    """(B, T) float64: -`coefficient` x k1 at each drawn target, and the answer's reward (B,) at the last one of them.

    That one is the end that was drawn, or where the answer was cut. It is no padding behind it.
    """
    spread = torch.where(drawn, -coefficient * divergences.double(), 0)
    places = torch.arange(drawn.shape[1], device=drawn.device).expand_as(drawn)
    last = torch.where(drawn, places, -1).amax(dim=1, keepdim=True)  # -1: nothing was drawn
    return spread + torch.where((places == last) & drawn, rewards.double()[:, None], 0)


def generalised_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of tokens, both (B, T) float64 and 0 where the mask is.

    Args:
        rewards: (B, T) what each target earned, once it was drawn.
        values: (B, T) the critic's estimate before each target.
        mask: (B, T) bool: the targets that were drawn. Those between them (a tool's output) and around them (prompt,
            padding) are passed over: the next value is that of the next target that was drawn, and 0 after the last.
        gamma: discount per drawn target.
        lam: lambda per drawn target.
    """
    rewards, values = rewards.double(), values.double()
    zero = torch.zeros(len(rewards), dtype=torch.float64, device=rewards.device)
    advantage, next_value = zero, zero
    columns = []
    for column in reversed(range(rewards.shape[1])):
        drawn = mask[:, column].bool()
        surprise = rewards[:, column] + gamma * next_value - values[:, column]
        # `where`, not a product: what stands at other targets may be anything, NaN too.
        advantage = torch.where(drawn, surprise + gamma * lam * advantage, advantage)
        next_value = torch.where(drawn, values[:, column], next_value)
        columns.append(torch.where(drawn, advantage, zero))
    advantages = torch.stack(columns[::-1], dim=1) if columns else torch.zeros_like(rewards)
    return advantages, torch.where(mask.bool(), advantages + values, torch.zeros_like(values))


def whitened(advantages: Tensor, mask: Tensor) -> Tensor:
    """(B, T) advantages with mean 0 and deviation 1 over all targets in the mask, and 0 outside of it.

    Needs the rows of all ranks: a mean over one rank's rows would make the loss depend on the number of ranks.
    """
    chosen = advantages[mask.bool()].double()
    if len(chosen) < 2:
        return torch.zeros_like(advantages)
    scaled = (advantages - chosen.mean()) / (chosen.std() + _WHITENING_EPSILON)
    return torch.where(mask.bool(), scaled, torch.zeros_like(scaled))
