"""Follows a text while its masks are filled in: its blocks, its noise and its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from configs.schema.denoising import Denoising
from pretrain.denoising.predictor import Tokens
from pretrain.generation.noise import key_uniforms, noise_keys
from pretrain.generation.player import Answer, Finish, Request

Places = npt.NDArray[np.int64]


@dataclass
class Text:
    """A text that is filled in.

    Attributes:
        number: of the answer.
        request: what was asked.
        tokens: ids of the whole text.
        places: of all masks there were, in increasing order.
        end: the first place after the last fixed token; from there on, the text may end.
        open: masks of the present block.
        passes: forward passes that the present block still has.
        done: forward passes so far.
        log_probs: place -> of its token in the distribution that it was drawn from.
    """

    number: int
    request: Request
    key: int
    tokens: list[int]
    places: list[int]
    end: int
    open: list[int] = field(default_factory=list)
    passes: int = 0
    done: int = 0
    log_probs: dict[int, float] = field(default_factory=dict)
    _begun: int = 0  # masks of the blocks so far

    @classmethod
    def of(cls, number: int, request: Request, key: int, mask_id: int) -> Text:
        """Makes the text of a request: its prompt with its masks, or with `max_new_tokens` masks behind it."""
        tokens = list(request.prompt)
        if mask_id not in tokens:
            tokens += [mask_id] * request.max_new_tokens
        places = [place for place, token in enumerate(tokens) if token == mask_id]
        end = 1 + max(place for place, token in enumerate(tokens) if token != mask_id)
        return cls(number, request, key, tokens, places, end)

    def begin_block(self, plan: Denoising, context: int) -> None:
        """Opens the next masks; in a text longer than the context no more than half of it, so that a pass sees more."""
        block = plan.block if len(self.tokens) <= context else min(plan.block, context // 2)
        self.open = self.places[self._begun : self._begun + block]
        self._begun += len(self.open)
        whole = len(self.places)
        steps = whole if plan.steps is None else plan.steps
        self.passes = max(1, min(len(self.open), round(steps * len(self.open) / whole)))

    def window(self, context: int) -> tuple[int, int]:
        """The part [begin, end) of the text that a forward pass reads: all of it, or what lies around the block."""
        end = len(self.tokens)
        if end > context:
            end = min(end, max(self.open[-1] + 1, self.open[0] + context // 2))
        return max(0, end - context), end

    def seen(self, begin: int, end: int) -> Tokens:
        """Ids of a part of the text."""
        return np.array(self.tokens[begin:end], dtype=np.int64)

    def uniforms(self, places: Sequence[int], candidate: int = 0, candidates: int = 1) -> npt.NDArray[np.float64]:
        """Numbers that the tokens of these places are drawn by in this pass."""
        counts = (self.done * candidates + candidate) * len(self.tokens) + np.asarray(places, dtype=np.int64)
        return key_uniforms(self._keys, counts)

    @property
    def _keys(self) -> npt.NDArray[np.uint64]:
        return np.array([self.key], dtype=np.uint64)

    def ranks(self, places: Sequence[int]) -> npt.NDArray[np.float64]:
        """Numbers that decide a random order: the same in each pass."""
        return key_uniforms(noise_keys(self.key, "order", [0], [0]), np.asarray(places, dtype=np.int64))

    def fill(self, place: int, token: int, log_prob: float) -> None:
        """Puts a token where a mask was. Behind one that ends the text nothing is filled in."""
        self.tokens[place] = token
        self.log_probs[place] = log_prob
        self.open.remove(place)
        if token in self.request.sampling.stop:
            self.open = [other for other in self.open if other < place]

    def answer(self) -> Answer | None:
        """The answer, once the text is over; asked when a block is full."""
        ids: list[int] = []
        request, filled = self.request, self.places[: self._begun]
        finish: Finish | None = "length" if self._begun == len(self.places) else None
        for place in filled:
            ids.append(self.tokens[place])
            if ids[-1] in request.sampling.stop or (request.is_over is not None and request.is_over(ids)):
                finish = "stop"
                break
        if finish is None:
            return None
        return Answer(ids, [self.log_probs[place] for place in filled[: len(ids)]], [False] * len(ids), finish)
