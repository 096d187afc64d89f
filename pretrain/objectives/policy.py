"""Trains a policy on answers it has drawn: the clipped policy gradient of GRPO, RLOO, REINFORCE and PPO.

What an answer is worth (`advantage`) and what its tokens count (`weights`, `count`) come with the batch, so that one
loss serves them all (`pretrain.rollout`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from configs.schema.objectives import Reinforcement
from pretrain.engine.loss_module import LossModule
from pretrain.model.transformer import Transformer
from pretrain.objectives.policy_terms import clipped_loss, divergence, divergence_loss
from pretrain.rollout.experience import ADVANTAGE, OLD, REFERENCE, SAMPLED, TOKEN_SHARE


class PolicyLoss(LossModule):
    """Sum over drawn tokens of weight x (clipped loss, and the divergence where it belongs to the loss)."""

    def __init__(self, model: Transformer, chunk: int | None, settings: Reinforcement) -> None:
        super().__init__(model, chunk)
        low, high = settings.clip
        self.clip, self.temperature = (low, high), settings.rollout.temperature
        self.divergence = settings.kl
        self.vocab_size: int | None = None  # rows of the embedding from here on are padding, which is never drawn
        self.stat_names = ("clip_fraction", "entropy", "logp_gap", *(("kl",) if settings.kl.compares else ()))

    def loss(
        self, tokens: Tensor, targets: Tensor, weights: Tensor, positions: Tensor | None, **columns: Tensor
    ) -> Tensor:
        """(1 + S,): the loss and the statistics of `stat_names`, means over drawn tokens with weight."""
        hidden = self.model.backbone(tokens, positions=positions)
        return self.sums(hidden, targets, weights, read_columns(columns, weights))

    def sums(self, hidden: Tensor, targets: Tensor, weights: Tensor, columns: dict[str, Tensor]) -> Tensor:
        """As `loss`, from the policy's hidden states (B, T, D)."""
        log_probs, entropy = self.target_log_probs(hidden, targets)
        # What is not learnt may be as unlikely as it likes: 0 x infinity would be NaN in loss and gradient.
        log_probs = torch.where(weights > 0, log_probs, 0)
        now = log_probs.detach()
        old = columns.get(OLD, now)  # the ratio of the first update is 1, whatever rounding does
        loss, clipped = clipped_loss(log_probs, old, columns[ADVANTAGE], self.clip)
        statistics = [clipped.float(), entropy.detach(), (now - columns[SAMPLED]).abs()]
        if self.divergence.compares:
            reference = columns[REFERENCE]
            if self.divergence.where == "loss" and self.divergence.coefficient:
                penalty = divergence_loss(log_probs, old, reference, self.divergence.estimator)
                loss = loss + self.divergence.coefficient * penalty
            statistics.append(divergence(now, reference, "k1"))
        share = (weights > 0) * columns[TOKEN_SHARE][:, None]
        return torch.stack([weighted_sum(loss, weights), *(weighted_sum(each, share) for each in statistics)])

    def target_log_probs(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of each target and entropy of its distribution, at the sampler's temperature; (B, T) fp32."""
        found = self.model.log_probs_and_entropy(
            targets, targets, chunk=self.chunk, temperature=self.temperature, hidden=hidden, vocab_size=self.vocab_size
        )
        return found[0], found[1].detach()

    def per_target(
        self, tokens: Tensor, targets: Tensor, weights: Tensor, positions: Tensor | None = None, **columns: Tensor
    ) -> Tensor:
        """(1, B, T) fp32: log-probabilities of the targets."""
        return self.target_log_probs(self.model.backbone(tokens, positions=positions), targets)[0].unsqueeze(0)


def read_columns(columns: dict[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
    """The columns with 0 at targets without weight: what stood there, NaN too, must not reach loss or gradient."""
    return {name: torch.where(weights > 0, value, 0) if value.dim() == 2 else value for name, value in columns.items()}


def weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    """Sum of weight x value."""
    return (values * weights).sum()
