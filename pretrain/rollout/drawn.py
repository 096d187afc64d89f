"""Defines what a rollout draws, cuts it into blocks to draw, and lays it out as rows to train on.

Everything here is a pure function of the prompts and answers of one rollout, the same on all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pretrain.batches.order import KeyedPermutation

Finish = Literal["stop", "length"]
Normalise = Literal["dapo", "grpo", "dr_grpo"]


@dataclass(frozen=True)
class Drawn:
    """One answer as the sampler drew it. Its ids are never decoded and encoded again on their way to the loss."""

    prompt: int  # place in the rollout's prompts
    sample: int  # place in the prompt's group
    ids: list[int]  # of the answer, with the end token that was drawn
    log_probs: list[float]  # the sampler's, of the distribution that each token was drawn from; 0 where forced
    forced: list[bool]  # a tool's output, which nothing drew
    finish: Finish  # stop: it ended itself. length: it was cut

    @property
    def drawn(self) -> int:
        """Tokens that the policy drew."""
        return len(self.forced) - sum(self.forced)


def blocks(prompt_lengths: Sequence[int], samples: int, rows: int) -> list[list[tuple[int, int]]]:
    """(prompt, sample) of every answer, in blocks of at most `rows` that are decoded together.

    Prompts of one length stand together, so that little is padded, and the samples of a prompt too, so that it is read
    once a block. The blocks depend on no rank: each computes the same at any number of ranks, which take whole ones.
    """
    order = sorted(range(len(prompt_lengths)), key=lambda prompt: (prompt_lengths[prompt], prompt))
    pairs = [(prompt, sample) for prompt in order for sample in range(samples)]
    return [pairs[start : start + rows] for start in range(0, len(pairs), rows)]


def parts(answers: int, updates: int, passes: int, key: str) -> list[list[int]]:
    """Which answers each of the rollout's optimizer steps trains on: `updates` lists of equal length.

    Every pass goes through all answers once, in an order of its own that the key gives.
    """
    steps = updates // passes
    size = answers // steps
    found = []
    for number in range(passes):
        order = KeyedPermutation(answers, f"{key}/{number}".encode())(np.arange(answers)).tolist()
        found += [sorted(order[step * size : (step + 1) * size]) for step in range(steps)]
    return found


def deal(answers: Sequence[int], lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """The answers of each rank: sorted by length and dealt in turn, so that micro-batches hold rows of like length."""
    ordered = sorted(answers, key=lambda answer: (-lengths[answer], answer))
    return [ordered[rank::ranks] for rank in range(ranks)]


@dataclass(frozen=True)
class Rows:
    """Right-padded rows: a prompt and its answer each."""

    tokens: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64
    drawn: Tensor  # (B, T) bool: the target was drawn from the policy
    sampled: Tensor  # (B, T) float32: the sampler's log-probability of each drawn target


def training_rows(prompts: Sequence[Sequence[int]], answers: Sequence[Drawn], pad: int) -> Rows:
    """The rows of these answers, right-padded with `pad`; prompts, tools' outputs and padding are not drawn."""
    width = max((len(prompts[answer.prompt]) + len(answer.ids) - 1 for answer in answers), default=1)
    tokens, targets = (torch.full((len(answers), width), pad, dtype=torch.int64) for _ in range(2))
    drawn = torch.zeros(len(answers), width, dtype=torch.bool)
    sampled = torch.zeros(len(answers), width)
    for row, answer in enumerate(answers):
        text = torch.tensor([*prompts[answer.prompt], *answer.ids], dtype=torch.int64)
        begin, end = len(prompts[answer.prompt]) - 1, len(text) - 1
        tokens[row, :end], targets[row, :end] = text[:-1], text[1:]
        drawn[row, begin:end] = ~torch.tensor(answer.forced, dtype=torch.bool)
        sampled[row, begin:end] = torch.tensor(answer.log_probs)
    return Rows(tokens, targets, drawn, sampled * drawn)


def counts_in_loss(answer: Drawn, truncated: Literal["mask", "keep"]) -> bool:
    """Whether an answer belongs to loss and count: without an end it does only with `truncated: keep`."""
    return (truncated == "keep" or answer.finish == "stop") and answer.drawn > 0


def loss_weights(
    answers: Sequence[Drawn], normalise: Normalise, truncated: Literal["mask", "keep"], max_new_tokens: int
) -> tuple[list[float], float]:
    """The weight of each answer's tokens, and what the loss of these answers is divided by.

    dapo: the mean over tokens. grpo: the mean over answers of their mean over tokens. dr_grpo: the mean over answers of
    their sum over tokens, divided by `max_new_tokens`. An answer that is left out has weight 0 and adds nothing to the
    count either.
    """
    kept = [counts_in_loss(answer, truncated) for answer in answers]
    weights = [
        0.0 if not counts else 1 / answer.drawn if normalise == "grpo" else 1.0
        for answer, counts in zip(answers, kept, strict=True)
    ]
    if normalise == "dapo":
        return weights, float(sum(answer.drawn for answer, counts in zip(answers, kept, strict=True) if counts))
    return weights, float(sum(kept) * (max_new_tokens if normalise == "dr_grpo" else 1))
