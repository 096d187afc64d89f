"""Fills in the masks of many texts side by side, each by its own settings and its own noise.

A pass predicts the masks of the present block of each text. Then tokens are drawn, and as many are kept as the plan
says (`configs.schema.denoising`). What a text becomes does not depend on its neighbours (but for rounding).

A prompt without masks is continued: `max_new_tokens` masks are put behind it. Tokens that are no masks never change, no
mask is ever drawn, and no token that ends a text is drawn before a fixed one. When a text is longer than the context, a
pass reads the part around the present block.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from configs.schema.denoising import Denoising
from pretrain.denoising.predictor import LOWEST, Predictor, Tokens, state_at
from pretrain.denoising.text import Text
from pretrain.generation.noise import noise_keys
from pretrain.generation.player import Answer, Request, check_request
from pretrain.generation.sampling import NO_PROBABILITIES, Chooser

# Told how many of all answers are complete.
Report = Callable[..., None]
Floats = npt.NDArray[np.float64]
# Tokens of a forward pass, and size of its (N, V) logits, at most.
_PASS_TOKENS = 8192
_LOGIT_BYTES = 256 * 2**20


class DrawnTokens(NamedTuple):
    """Tokens for N places.

    Attributes:
        tokens: (N,) ids.
        log_probs: (N,) in the distributions that they were drawn from; 0 at temperature 0.
        sure: (N,) log-probabilities by the model.
    """

    tokens: Tokens
    log_probs: Floats
    sure: Floats


class Denoiser:
    """Fills in masks.

    Args:
        predictor: predicts the tokens behind masks.
        vocab_size: number of ids that it predicts.
        plan: how masks are filled in.
        max_rows: texts that are filled in side by side.
        pass_tokens: most tokens of a forward pass, or one row.
    """

    def __init__(
        self,
        predictor: Predictor,
        vocab_size: int,
        plan: Denoising | None = None,
        max_rows: int = 64,
        pass_tokens: int = _PASS_TOKENS,
    ) -> None:
        self._predictor, self._vocab_size, self._plan = predictor, vocab_size, plan or Denoising()
        self._max_rows, self._pass_tokens = max_rows, pass_tokens

    @torch.inference_mode()
    def run(self, requests: Sequence[Request], report: Report | None = None) -> list[Answer]:
        """Fills in all requests: an answer for each sample, in order. Its ids are those of the masks, left to right.

        Raises:
            ValueError: for a request that cannot be filled in, and when logits are NaN or infinite.
        """
        texts = [text for number, request in enumerate(requests) for text in self._texts(request)]
        for number, text in enumerate(texts):
            text.number = number
        # The longest first: then those of a pass are of similar length.
        waiting = deque(sorted(texts, key=lambda text: -len(text.tokens)))
        playing: list[Text] = []
        answers: dict[int, Answer] = {}
        while waiting or playing:
            while waiting and len(playing) < self._max_rows:
                playing.append(waiting.popleft())
                playing[-1].begin_block(self._plan, self._predictor.context_length)
            for part in self._parts(playing):
                self._pass(part)
            playing = [text for text in playing if not self._ends(text, answers)]
            if report is not None:
                report(len(answers), total=len(texts))
        return [answers[number] for number in range(len(texts))]

    def _texts(self, request: Request) -> list[Text]:
        """The texts of a request's samples.

        Raises:
            ValueError: as `run`.
        """
        mask, context = self._predictor.mask_id, self._predictor.context_length
        check_request(request, self._vocab_size)
        if request.forced is not None:
            raise ValueError("a model that fills in masks takes no tokens that follow from others, such as a tool's")
        if request.prompt[0] == mask:
            raise ValueError("a prompt begins with a mask; put a token before it, such as the end-of-text token")
        if mask in request.prompt and len(request.prompt) > context:
            raise ValueError(
                f"a prompt with masks has {len(request.prompt):,} tokens, which do not fit the model's context of "
                f"{context:,}; shorten it"
            )
        keys = request.keys
        if keys is None:
            keys = list(
                map(int, noise_keys(request.sampling.seed, "text", [0] * request.samples, range(request.samples)))
            )
        return [Text.of(0, request, int(key), mask) for key in keys]

    def _ends(self, text: Text, answers: dict[int, Answer]) -> bool:
        """Goes on to the next block of a text when one is full; tells whether the text is over."""
        if text.open:
            return False
        answer = text.answer()
        if answer is None:
            text.begin_block(self._plan, self._predictor.context_length)
            return False
        answers[text.number] = answer
        return True

    # ------------------------------------------------------------------------------------------------------- one pass
    def _parts(self, playing: Sequence[Text]) -> list[list[Text]]:
        """Cuts texts into forward passes."""
        context = self._predictor.context_length
        parts: list[list[Text]] = []
        width = masks = 0
        for text in playing:
            begin, end = text.window(context)
            width, masks = max(width, end - begin), masks + len(text.open)
            rows = len(parts[-1]) + 1 if parts else 1
            if not parts or rows * width > self._pass_tokens or 4 * masks * self._vocab_size > _LOGIT_BYTES:
                parts.append([])
                width, masks = end - begin, len(text.open)
            parts[-1].append(text)
        return parts

    def _pass(self, texts: Sequence[Text]) -> None:
        """Gives some masks of each text a token."""
        context = self._predictor.context_length
        windows = [text.window(context) for text in texts]
        states = self._predictor.states([text.seen(*window) for text, window in zip(texts, windows, strict=True)])
        counts = [-(-len(text.open) // text.passes) for text in texts]
        places = [self._wanted(text, count) for text, count in zip(texts, counts, strict=True)]
        local = [np.array(own, dtype=np.int64) - begin for own, (begin, _) in zip(places, windows, strict=True)]
        logits = self._allowed(texts, places, self._predictor.logits(state_at(states, local)))
        drawn = self._drawn(texts, places, logits)
        start = 0
        for text, own, count in zip(texts, places, counts, strict=True):
            part = slice(start, start + len(own))
            by_chance = self._plan.order == "random"
            order = np.argsort(text.ranks(own) if by_chance else -drawn.sure[part], kind="stable")
            for index in order[:count]:
                if own[index] in text.open:  # not behind a token of this pass that ends the text
                    text.fill(own[index], int(drawn.tokens[part][index]), float(drawn.log_probs[part][index]))
            text.passes, text.done = text.passes - 1, text.done + 1
            start += len(own)

    def _wanted(self, text: Text, count: int) -> list[int]:
        """The masks that tokens are drawn for: in a random order, those whose turn it is."""
        if self._plan.order == "confidence":
            return list(text.open)
        order = np.argsort(text.ranks(text.open), kind="stable")
        return sorted(text.open[index] for index in order[:count])

    def _allowed(self, texts: Sequence[Text], places: Sequence[Sequence[int]], logits: Tensor) -> Tensor:
        """Logits (N, V) without the tokens that end a text, where a fixed token follows."""
        start = 0
        for text, own in zip(texts, places, strict=True):
            ends, last = sorted(text.request.sampling.stop), text.end
            inner = [start + index for index, place in enumerate(own) if place < last]
            if inner and ends:
                rows = torch.tensor(inner, device=logits.device).unsqueeze(-1)
                logits[rows, torch.tensor(ends, device=logits.device)] = LOWEST
            start += len(own)
        return logits

    def _drawn(self, texts: Sequence[Text], places: Sequence[Sequence[int]], logits: Tensor) -> DrawnTokens:
        """Draws a token for each place."""
        numbers = [text.uniforms(own) for text, own in zip(texts, places, strict=True)]
        return self._tokens(texts, places, logits, np.concatenate(numbers))

    def _tokens(
        self, texts: Sequence[Text], places: Sequence[Sequence[int]], logits: Tensor, uniforms: Floats
    ) -> DrawnTokens:
        """Draws by given numbers (N,).

        Raises:
            ValueError: when logits are NaN or infinite.
        """
        samplings = [text.request.sampling for text, own in zip(texts, places, strict=True) for _ in own]
        by_model = logits.log_softmax(dim=-1)
        chooser = Chooser(samplings, self._vocab_size, logits.device)
        tokens, log_probs, sound = chooser(logits, torch.from_numpy(uniforms).to(logits.device)).cpu().numpy()
        if not np.isfinite(sound).all():
            raise ValueError(NO_PROBABILITIES)
        ids = torch.from_numpy(tokens.astype(np.int64)).to(logits.device)
        sure = by_model.gather(-1, ids.unsqueeze(-1)).squeeze(-1).double().cpu().numpy()
        return DrawnTokens(tokens.astype(np.int64), log_probs, sure)
