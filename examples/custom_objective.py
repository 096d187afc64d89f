"""Trains with a loss of one's own: language modelling with PaLM's z-loss.

    python examples/custom_objective.py             # writes runs/z-loss

The recipe names the class as `FILE.py:NAME` (docs/custom-code.md). Validation and evaluation stay in nats, so that runs
with different objectives can be compared.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.model.transformer import Transformer
from pretrain.objectives.objective import LossModule

HERE = Path(__file__).resolve().parent


class ZLoss(LossModule):
    """-log p + coefficient x (log Z)^2, which keeps logits small (Chowdhery et al., arXiv:2204.02311, section 5)."""

    def __init__(self, model: Transformer, chunk: int | None, coefficient: float = 1e-4) -> None:
        """`model` and `chunk` come from the trainer, everything else from the recipe's `options`."""
        super().__init__(model, chunk)
        self.coefficient = coefficient

    def loss(self, tokens: Tensor, targets: Tensor, weights: Tensor, positions: Tensor | None) -> Tensor:
        """The sum over all (B, T) targets, each times its weight: the trainer divides by the weights of all ranks."""
        logits = self.model(tokens, positions=positions).float()  # (B, T, V)
        nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(weights)
        log_z = torch.logsumexp(logits, dim=-1)  # (B, T)
        return (weights * (nats + self.coefficient * log_z.square())).sum()


def main(*overrides: str) -> None:
    """Prepares the data of the tiny recipe and trains on it with the z-loss."""
    from configs.safety.trust import trusting
    from configs.schema.recipe import load
    from data_prep.stages.pipeline import prepare_inline
    from launch.run_stages import working_in
    from pretrain.train import train

    objective = f"train.objective={{code: '{HERE}/custom_objective.py:ZLoss', options: {{coefficient: 1e-3}}}}"
    recipe = load(HERE / "tiny.yaml", ["name=z-loss", objective, *overrides])
    # On the command line: replica run RECIPE --trust examples
    with trusting([HERE]), working_in(recipe):
        prepare_inline(recipe)
        train(recipe)
    print(f"{recipe.run_directory}/metrics.jsonl has the loss with its penalty, and val/loss in nats")


if __name__ == "__main__":
    main()
