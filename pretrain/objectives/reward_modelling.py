"""Reward modelling: a score for whole texts, learnt from pairs of answers of which one was preferred."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema.objectives import RewardModelling
from pretrain.engine.loss_module import LossModule
from pretrain.model.transformer import Transformer
from pretrain.objectives.pair_sums import ACCURACY, MARGIN, sums_over_pairs


class RewardHead(nn.Module):
    """One number from a hidden state; `weight` (1, D) is zero at the start, so that no text is ahead."""

    def __init__(self, width: int, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width, device=device))

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, D) -> (N,), in fp32 at every precision: bf16 could not tell good answers apart."""
        return (hidden.float() * self.weight.float()).sum(-1)


class RewardModel(LossModule):
    """Transformer and head; the score of a text is read where the model has seen the end of its last answer."""

    stat_names = (ACCURACY, MARGIN, "reward_chosen", "reward_rejected")
    unit_rows = 2

    def __init__(self, model: Transformer, settings: RewardModelling, chunk: int | None = None) -> None:
        super().__init__(model, chunk)
        self.settings = settings
        self.reward_head = RewardHead(model.config.hidden_size, model.embed.weight.device)

    def scores(self, tokens: Tensor, weights: Tensor, positions: Tensor | None = None) -> Tensor:
        """(B,) fp32: the score of each row, read at the place with weight. What stands behind it changes nothing."""
        hidden = self.model.backbone(tokens, positions=positions)
        places = weights.argmax(1)
        scores: Tensor = self.reward_head(hidden[torch.arange(len(places), device=places.device), places])
        if self.model.lm_head is not None and torch.is_grad_enabled():
            # Its gradient is 0 and not missing, or ZeRO stages would treat it differently.
            scores = scores + 0 * self.model.head(hidden[:1, :1]).float().sum()
        return scores

    def loss(
        self, tokens: Tensor, targets: Tensor, weights: Tensor, positions: Tensor | None, **columns: Tensor
    ) -> Tensor:
        """The sum over pairs of loss and statistics.

        `weights` are 1 at the place where the score is read (`pretrain.batches.units.scored`). Columns: `margin` (B,).
        """
        rewards = self.scores(tokens, weights, positions).view(-1, 2)
        losses = bradley_terry(rewards, columns["margin"].view(-1, 2)[:, 0], self.settings)
        seen = rewards.detach()
        statistics = (seen[:, 0] > seen[:, 1], seen[:, 0] - seen[:, 1], seen[:, 0], seen[:, 1])
        return sums_over_pairs(losses, statistics, weights.sum(1).view(-1, 2)[:, 0] > 0)


def bradley_terry(rewards: Tensor, margin: Tensor, settings: RewardModelling) -> Tensor:
    """(P,): -log s(r_c - r_r - margin) + center (r_c + r_r)², of rewards (P, 2) and margin (P,).

    Bradley and Terry 1952; margin as in arXiv:2307.09288, centring as in arXiv:2312.09244.
    """
    difference = rewards[:, 0] - rewards[:, 1]
    losses = -F.logsigmoid(difference - margin if settings.margin else difference)
    return losses + settings.center * rewards.sum(1).square() if settings.center else losses
