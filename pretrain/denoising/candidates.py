"""Lets a causal model choose between candidates for all masks: an energy-based step (EDLM, arXiv:2410.21357).

Tokens of one pass are drawn as if they did not depend on each other. So each pass draws several candidates for the
whole block, weighs each by p(critic) / p(denoiser), draws one of them by these weights, and keeps as many of its tokens
as any pass. No training is needed. With ever more candidates a candidate would be the critic's own text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretrain.denoising.denoise import Denoiser, DrawnTokens, Floats
from pretrain.denoising.predictor import Tokens
from pretrain.denoising.text import Text
from pretrain.generation.noise import key_uniforms, noise_keys
from pretrain.model.transformer import Transformer

# Log-probabilities (B,) of rows of tokens, each token given those before it.
Critic = Callable[[Sequence[Tokens]], Floats]
_PASS_TOKENS = 8192  # of a forward pass of the critic


def causal_critic(model: Transformer, vocab_size: int) -> Critic:
    """Returns a critic of a causal model in evaluation mode; ids from `vocab_size` on have probability 0."""

    @torch.inference_mode()
    def critic(rows: Sequence[Tokens]) -> Floats:
        width, device = max(map(len, rows)), model.embed.weight.device
        step = max(1, _PASS_TOKENS // width)
        found = []
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            tokens = np.zeros((len(part), width), dtype=np.int64)
            weights = np.zeros((len(part), width - 1))
            for number, row in enumerate(part):
                tokens[number, : len(row)] = row
                weights[number, : len(row) - 1] = 1
            ids = torch.from_numpy(tokens).to(device)
            both = model.log_probs_and_entropy(ids[:, :-1], ids[:, 1:].contiguous(), vocab_size=vocab_size)
            found.append((both[0].double().cpu().numpy() * weights).sum(axis=1))
        return np.concatenate(found)

    return critic


class CriticDenoiser(Denoiser):
    """Fills in masks by candidates that a critic weighs; see `Denoiser`.

    Args:
        critic: gives log-probabilities of rows.
        candidates: of each pass of a text.
        settings: of `Denoiser`, in its order.
    """

    def __init__(self, critic: Critic, candidates: int, *settings: Any) -> None:
        super().__init__(*settings)
        self._critic, self._candidates = critic, candidates

    def _wanted(self, text: Text, count: int) -> list[int]:
        return list(text.open)  # a candidate has a token for each

    def _drawn(self, texts: Sequence[Text], places: Sequence[Sequence[int]], logits: Tensor) -> DrawnTokens:
        found = []
        for candidate in range(self._candidates):
            pairs = zip(texts, places, strict=True)
            numbers = [text.uniforms(own, candidate, self._candidates) for text, own in pairs]
            found.append(self._tokens(texts, places, logits, np.concatenate(numbers)))
        ends = np.cumsum([len(own) for own in places])
        spans = [slice(int(end) - len(own), int(end)) for own, end in zip(places, ends, strict=True)]
        candidates = [
            _Candidate(text, own, drawn.tokens[span], drawn.log_probs[span])
            for text, own, span in zip(texts, places, spans, strict=True)
            for drawn in found
        ]
        by_critic = self._critic([self._row(one) for one in candidates])
        weights = by_critic - np.array([one.log_probs.sum() for one in candidates])
        best = [_pick(own, text) for text, own in zip(texts, np.split(weights, len(texts)), strict=True)]
        kept = [(found[number], span) for number, span in zip(best, spans, strict=True)]
        return DrawnTokens(
            np.concatenate([drawn.tokens[span] for drawn, span in kept]),
            np.concatenate([drawn.log_probs[span] for drawn, span in kept]),
            np.concatenate([drawn.sure[span] for drawn, span in kept]),
        )

    def _row(self, one: _Candidate) -> Tokens:
        """What the critic reads: the part around the block with a candidate in it, up to the next mask behind it."""
        begin, end = one.text.window(self._predictor.context_length)
        row = one.text.seen(begin, end)
        row[np.array(one.places) - begin] = one.tokens
        if one.ends:
            return row[: one.places[-1] + 1 - begin]
        masks = np.flatnonzero(row == self._predictor.mask_id)
        return row[: masks[0]] if len(masks) else row


class _Candidate:
    """Tokens for the first masks of a text's block: all, or up to one that ends the text, behind which none counts."""

    def __init__(self, text: Text, places: Sequence[int], tokens: Tokens, log_probs: Floats) -> None:
        ends = np.flatnonzero(np.isin(tokens, list(text.request.sampling.stop)))
        count = int(ends[0]) + 1 if len(ends) else len(tokens)
        self.text, self.places, self.ends = text, places[:count], len(ends) > 0
        self.tokens, self.log_probs = tokens[:count], log_probs[:count]


def _pick(log_weights: Floats, text: Text) -> int:
    """Draws a candidate in proportion to its weight."""
    weights = np.exp(log_weights - log_weights.max()).cumsum()
    number = key_uniforms(noise_keys(text.key, "critic", [0], [0]), text.done)[0]
    return min(int(np.searchsorted(weights, number * weights[-1], side="right")), len(weights) - 1)
