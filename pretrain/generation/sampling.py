"""Chooses the next token of each row from its logits: the settings, the distribution, and the choice itself."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.generation.noise import draw_with_total

NO_PROBABILITIES = (
    "the checkpoint gives no finite probabilities. Did training diverge? See metrics.jsonl, and take an earlier "
    "checkpoint: --step N, or --best"
)
# Of two fp32 logits, the less likely one has probability 0 from here on. Smaller temperatures would underflow in fp32.
_COLDEST = 1e-20
_BLOCK = 64  # of a search for the largest logit


@dataclass(frozen=True)
class Sampling:
    """Settings that choose the next token from the model's logits, and that end a text.

    Attributes:
        temperature: logits are divided by it; 0 takes the most likely token.
        top_k: only so many of the most likely tokens; None or 0: all.
        top_p: of these, only the most likely ones up to the first at which their probabilities sum to it (nucleus
            sampling, arXiv:1904.09751); None or 1: all.
        seed: of the draws; equal settings give equal text.
        stop: token ids that end the text; they do not belong to it.
        vocab_size: ids from here on (the padding of the vocabulary) are never chosen; None: the model's rows.

    Raises:
        ValueError: for settings that no distribution can be made of, naming what may stand there.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    stop: Collection[int] = ()
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(
                f"temperature {self.temperature}: give a number of 0 or more; 0 takes the most likely token"
            )
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f"top-k {self.top_k} is negative: give the number of tokens to choose among; 0 is off")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top-p {self.top_p}: give a probability above 0 and up to 1; 1 is off")

    @property
    def truncates(self) -> bool:
        """Tells whether tokens are cut off that the model gives a probability to."""
        return bool(self.top_k) or (self.top_p is not None and self.top_p < 1)


GREEDY = Sampling(temperature=0.0)
PLAIN = Sampling()  # from the model's own distribution


def distribution(logits: Tensor, temperature: float, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Probabilities (…, V), fp32, that the next token is drawn from; arguments as in `Sampling`, `temperature` above 0.

    The temperature comes first, then `top_k`, then `top_p` of what that leaves.
    """
    logits = logits.float()
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / max(temperature, _COLDEST)
    kept = _truncated(scaled, top_k, top_p)
    return kept.softmax(dim=-1)


def _truncated(scaled: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Logits (…, V), already divided by the temperature, with -inf for the tokens that are cut off."""
    if top_k and top_k < scaled.shape[-1]:
        smallest = scaled.topk(top_k, dim=-1).values[..., -1:]
        scaled = scaled.masked_fill(scaled < smallest, -torch.inf)
    if top_p is not None and top_p < 1:
        probabilities = scaled.softmax(dim=-1)
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        already_reached = ordered.cumsum(dim=-1) - ordered >= top_p
        scaled = scaled.masked_fill(torch.zeros_like(already_reached).scatter(-1, order, already_reached), -torch.inf)
    return scaled


class Chooser:
    """Chooses the next tokens of some rows, each by its own settings.

    Everything stays on the device of the logits: the caller's transfer of the result is the only wait for it.
    """

    def __init__(self, samplings: Sequence[Sampling], vocab_size: int, device: torch.device) -> None:
        """`vocab_size`: the model's rows, for settings that say nothing of it."""
        temperatures = [max(sampling.temperature, _COLDEST) for sampling in samplings]
        self._temperatures = torch.tensor(temperatures, dtype=torch.float32, device=device).unsqueeze(-1)  # (R, 1)
        greedy = [sampling.temperature == 0 for sampling in samplings]
        self._all_greedy = all(greedy)
        self._greedy = torch.tensor(greedy, device=device) if any(greedy) else None  # (R,)
        sizes = [min(sampling.vocab_size or vocab_size, vocab_size) for sampling in samplings]
        self._size = max(sizes)
        self._beyond: Tensor | None = None  # bool (R, V): ids that a row never takes, where rows differ in it
        if min(sizes) < self._size:
            limits = torch.tensor(sizes, device=device).unsqueeze(-1)
            self._beyond = torch.arange(vocab_size, device=device) >= limits
        truncated: dict[tuple[int | None, float | None], list[int]] = {}
        for row, sampling in enumerate(samplings):
            if sampling.truncates and sampling.temperature:
                truncated.setdefault((sampling.top_k, sampling.top_p), []).append(row)
        self._truncated = [
            (top_k, top_p, None if len(rows) == len(greedy) else torch.tensor(rows, device=device))
            for (top_k, top_p), rows in truncated.items()
        ]

    def __call__(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Chooses a token for each row of logits (R, V) by the row's number `uniforms` (R,) fp64.

        Args:
            logits: (R, V); those of ids that no row takes are overwritten.
            uniforms: (R,) fp64 in [0, 1).

        Returns:
            (3, R) fp64: the token, its log-probability in the distribution that it was drawn from (0 at temperature 0),
            and a number that is finite where all of the row's logits are.
        """
        within = logits[:, : self._size]
        highest = within.amax(dim=-1, keepdim=True).float()
        sound = (highest - within.amin(dim=-1, keepdim=True)).squeeze(-1).double()
        if self._beyond is not None:
            logits.masked_fill_(self._beyond, -torch.inf)
            highest = logits.amax(dim=-1, keepdim=True).float()
        elif self._size < logits.shape[1]:
            logits[:, self._size :] = -torch.inf
        if self._all_greedy:
            return torch.stack([largest(logits).double(), torch.zeros_like(sound), sound])
        scaled = (logits.float() - highest).div_(self._temperatures)
        for top_k, top_p, rows in self._truncated:
            if rows is None:
                scaled = _truncated(scaled, top_k, top_p)
            else:
                scaled[rows] = _truncated(scaled[rows], top_k, top_p)
        tokens, total = draw_with_total(scaled.exp_(), uniforms)
        tokens = tokens.clamp(max=logits.shape[1] - 1)  # where logits are NaN; the caller then says so
        drawn = (logits.gather(-1, tokens.unsqueeze(-1)).float() - highest).div_(self._temperatures)
        log_probs = drawn.squeeze(-1) - total.log()
        if self._greedy is not None:
            tokens = largest(logits).where(self._greedy, tokens)
            log_probs = log_probs.masked_fill(self._greedy, 0.0)
        return torch.stack([tokens.double(), log_probs, sound])


def largest(logits: Tensor) -> Tensor:
    """The first id of the largest logit of each row (R, V): (R,) int64."""
    rows, size = logits.shape
    if logits.device.type != "cpu" or size % _BLOCK:
        return logits.argmax(dim=-1)
    # On a CPU torch finds the largest value 30 times as fast as its place: first the block, then the place in it.
    blocks = logits.view(rows, size // _BLOCK, _BLOCK)
    block = blocks.amax(dim=-1).argmax(dim=-1)
    return block * _BLOCK + blocks[torch.arange(rows), block].argmax(dim=-1)
