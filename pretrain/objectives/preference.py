"""Preference optimisation without a reward model: DPO and its kin, as sums over pairs.

Every loss is a function of the log-probabilities of whole answers, log p(answer | prompt), their lengths, and the same
log-probabilities under a reference model that is computed before training (`pretrain.objectives.reference`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.schema.objectives import Preference
from pretrain.engine.loss_module import LossModule
from pretrain.model.transformer import Transformer
from pretrain.objectives.pair_sums import ACCURACY, MARGIN, answer_log_probs, sums_over_pairs


@dataclass(frozen=True)
class Answers:
    """Answers of some pairs; all (P, 2): the chosen first, then the rejected."""

    log_probs: Tensor  # sum over the answer's tokens
    lengths: Tensor  # tokens with their end
    reference: Tensor | None = None  # log_probs of the reference model

    @property
    def means(self) -> Tensor:
        """Log-probability per token."""
        return self.log_probs / self.lengths.clamp(min=1)

    @property
    def ratios(self) -> Tensor:
        """log p - log p of the reference."""
        assert self.reference is not None
        return (self.log_probs - self.reference).float()


@dataclass(frozen=True)
class PairLoss:
    """What a loss says about pairs."""

    losses: Tensor  # (P,)
    rewards: Tensor  # (P, 2) implicit rewards, without gradient


def pair_loss(settings: Preference, answers: Answers) -> PairLoss:
    """The loss of each pair.

    With d = log p - log p_ref of the chosen and the rejected answer, b = beta, e = label_smoothing, and m the mean
    log-probability per token:

    | loss     | of a pair                                                   | source                                  |
    |----------|-------------------------------------------------------------|-----------------------------------------|
    | sigmoid  | -(1-e) log s(b (d_c - d_r)) - e log s(-b (d_c - d_r))       | arXiv:2305.18290; e: conservative DPO   |
    | robust   | (-(1-e) log s(b Δ) + e log s(-b Δ)) / (1 - 2 e)             | arXiv:2403.00409                        |
    | hinge    | max(0, 1 - b (d_c - d_r))                                   | arXiv:2305.10425                        |
    | ipo      | (d_c / n_c - d_r / n_r - 1 / (2 b))²                        | arXiv:2310.12036; per token, as in trl  |
    | apo_zero | 1 - s(b d_c) + s(b d_r)                                     | arXiv:2408.06266, equation 7            |
    | simpo    | -log s(b (m_c - m_r - gamma))                               | arXiv:2405.14734                        |
    | orpo     | -m_c - b log s(log odds_c - log odds_r), odds of exp(m)     | arXiv:2403.07691, equations 6 and 7     |

    Rewards are b d; of simpo and orpo b m. `sft_weight` adds -m_c times itself.
    """
    beta = settings.beta
    rewards = beta * (answers.ratios if settings.needs_reference else answers.means)
    if settings.loss == "ipo":
        per_token = answers.ratios / answers.lengths.clamp(min=1)
        losses = (per_token[:, 0] - per_token[:, 1] - 1 / (2 * beta)).square()
    elif settings.loss == "apo_zero":
        losses = torch.sigmoid(-rewards[:, 0]) + torch.sigmoid(rewards[:, 1])
    elif settings.loss == "orpo":
        means = answers.means.float()
        log_odds = means - torch.log(-torch.expm1(means.clamp(max=-1e-6)))  # exact for probabilities near 1 as well
        losses = -means[:, 0] - beta * F.logsigmoid(log_odds[:, 0] - log_odds[:, 1])
    else:
        losses = _of_margin(settings, rewards[:, 0] - rewards[:, 1])
    if settings.sft_weight:
        losses = losses - settings.sft_weight * answers.means[:, 0]
    return PairLoss(losses, rewards.detach())


def _of_margin(settings: Preference, margin: Tensor) -> Tensor:
    """Losses that depend on the difference of rewards alone; (P,) both."""
    if settings.loss == "hinge":
        return torch.relu(1 - margin)
    if settings.loss == "simpo":
        margin = margin - settings.beta * settings.gamma
    flipped = settings.label_smoothing
    right, wrong = F.logsigmoid(margin), F.logsigmoid(-margin)
    if settings.loss == "robust":
        return (flipped * wrong - (1 - flipped) * right) / (1 - 2 * flipped)
    return -(1 - flipped) * right - flipped * wrong


class PreferenceOptimisation(LossModule):
    """The loss of pairs: rows 2i and 2i + 1 are a chosen and a rejected answer, `weights` 1 at the answer's tokens."""

    stat_names = (ACCURACY, MARGIN, "reward_chosen", "reward_rejected", "log_prob_chosen", "log_prob_rejected")
    unit_rows = 2

    def __init__(self, model: Transformer, settings: Preference, chunk: int | None = None) -> None:
        super().__init__(model, chunk)
        self.settings = settings

    def loss(
        self, tokens: Tensor, targets: Tensor, weights: Tensor, positions: Tensor | None, **columns: Tensor
    ) -> Tensor:
        """The sum over pairs of loss and statistics.

        Columns: `reference` (B,), log-probability of each answer under the reference, where the loss needs one.
        Log-probabilities of answers are added up in fp64: differences of large sums decide.
        """
        log_probs = self.model.log_probs(tokens, targets, positions, self.chunk)
        reference = columns["reference"].view(-1, 2) if self.settings.needs_reference else None
        sums = answer_log_probs(log_probs, weights).view(-1, 2)
        answers = Answers(sums, weights.sum(dim=1).view(-1, 2), reference)
        found = pair_loss(self.settings, answers)
        rewards = found.rewards
        statistics = (
            rewards[:, 0] > rewards[:, 1],
            rewards[:, 0] - rewards[:, 1],
            rewards[:, 0],
            rewards[:, 1],
            sums[:, 0].detach(),
            sums[:, 1].detach(),
        )
        return sums_over_pairs(found.losses, statistics, answers.lengths[:, 0] > 0)
