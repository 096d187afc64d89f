"""Trains a policy and its critic together: PPO (arXiv:1707.06347, arXiv:1909.08593).

Both are one module under one engine: one optimizer, one checkpoint, one clipping of the gradient over both.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from configs.schema.objectives import ProximalPolicy
from pretrain.model.transformer import Transformer
from pretrain.objectives.policy import PolicyLoss, read_columns, weighted_sum
from pretrain.rollout.experience import OLD_VALUE, RETURN

# Names of the critic's weights in checkpoints: those of a model of its own begin so.
CRITIC_BODY, CRITIC_HEAD = "value.body.", "value.head.weight"


class Critic(nn.Module):
    """Estimates, before each target, the sum of rewards still to come: a model of its own, or a head on the policy."""

    def __init__(self, policy: Transformer, separate: bool) -> None:
        super().__init__()
        self.body = policy.sibling() if separate else None
        if self.body is not None:
            self.body.lm_head = None  # it predicts no token
        self.head = nn.Linear(policy.config.hidden_size, 1, bias=False, device=policy.embed.weight.device)

    def forward(self, tokens: Tensor, hidden: Tensor, positions: Tensor | None) -> Tensor:
        """Tokens (B, T) and the policy's hidden states (B, T, D) -> values (B, T) fp32."""
        if self.body is not None:
            hidden = self.body.backbone(tokens, positions=positions)
        values: Tensor = self.head(hidden)
        return values.squeeze(-1).float()


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """Half the squared error (B, T), the larger one of the value and of the value at most `clip` from the old one."""
    error = (values - returns).square()
    if clip is not None:
        near = torch.clamp(values, old_values - clip, old_values + clip)
        error = torch.maximum(error, (near - returns).square())
    return error / 2


class ProximalLoss(PolicyLoss):
    """The policy's loss, and `value_coefficient` x that of the critic, over the same targets."""

    def __init__(self, model: Transformer, chunk: int | None, settings: ProximalPolicy) -> None:
        super().__init__(model, chunk, settings)
        self.value = Critic(model, settings.critic == "separate")
        self.value_coefficient, self.value_clip = settings.value_coefficient, settings.value_clip
        self.stat_names = (*self.stat_names, "value_loss", "value")

    def loss(
        self, tokens: Tensor, targets: Tensor, weights: Tensor, positions: Tensor | None, **columns: Tensor
    ) -> Tensor:
        """(1 + S,): both losses added up, and the statistics of `stat_names`."""
        columns = read_columns(columns, weights)
        hidden = self.model.backbone(tokens, positions=positions)
        sums = self.sums(hidden, targets, weights, columns)
        values = self.value(tokens, hidden, positions)
        error = value_loss(values, columns[OLD_VALUE], columns[RETURN], self.value_clip)
        own = weighted_sum(error, weights)
        whole = sums[0] + self.value_coefficient * own
        return torch.stack([whole, *sums[1:], own.detach(), weighted_sum(values.detach(), weights)])

    def per_target(
        self, tokens: Tensor, targets: Tensor, weights: Tensor, positions: Tensor | None = None, **columns: Tensor
    ) -> Tensor:
        """(2, B, T) fp32: log-probabilities of the targets, and the values before them."""
        hidden = self.model.backbone(tokens, positions=positions)
        log_probs, _ = self.target_log_probs(hidden, targets)
        return torch.stack([log_probs, self.value(tokens, hidden, positions)])
