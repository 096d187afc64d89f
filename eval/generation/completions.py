"""Text completion for scores and samples, on top of the model's own generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from data_prep.tokens.vocab import Vocab
from eval.likelihood.scoring import Report
from pretrain.model.generate import GREEDY, Sampling, generate, generate_batch
from pretrain.model.transformer import Transformer

_LONGEST_CHARACTER = 4  # bytes of UTF-8


@dataclass(frozen=True)
class Stops:
    """Strings that end a completion; the text before them belongs to it, also within the token that brings them.

    The rule is that of lm-eval's `hf` model: generation goes on until a whole stop string stands in the new text, and
    the text is then cut at each string in the order given. Only the end-of-text token is no part of the text.
    """

    vocab: Vocab
    strings: Sequence[str]

    def met(self, tokens: Sequence[int]) -> bool:
        """Whether a stop string stands in the text of the new tokens; asked after each of them.

        Strings are compared, not ids: the same text can be written in many tokens.
        """
        for stop in filter(None, self.strings):
            # Each token stands for a byte or more, so the string reaches back by its own bytes at most; up to four more
            # tokens find the start of a character that this would cut. Only a hit is worth decoding the whole text for.
            reach = len(stop.encode())
            tails = (tokens[-reach - more :] for more in range(_LONGEST_CHARACTER + 1))
            if any(stop in self.vocab.decode(tail) for tail in tails) and stop in self.vocab.decode(tokens):
                return True
        return False

    def cut(self, text: str) -> str:
        """The text before the stop strings."""
        for stop in filter(None, self.strings):
            text = text.partition(stop)[0]
        return text


def complete(
    model: Transformer,
    vocab: Vocab,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    stops: Sequence[str],
    batch_size: int,
    report: Report | None = None,
) -> list[str]:
    """Greedy completions of prompts (token ids), each cut at the end of text or a stop string."""
    ends = Stops(vocab, stops)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    texts = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        chosen = [prompts[index] for index in indices]
        outputs = generate_batch(model, chosen, max_new_tokens, _within(vocab, GREEDY), ends.met)
        for index, output in zip(indices, outputs, strict=True):
            texts[index] = ends.cut(vocab.decode(output))
        if report is not None:
            report(start + len(indices), total=len(prompts))
    return texts


def sample(
    model: Transformer,
    vocab: Vocab,
    prompt: list[int],
    max_new_tokens: int,
    stops: Sequence[str],
    sampling: Sampling,
) -> str:
    """One random continuation of a prompt (token ids), cut at the end of text or a stop string."""
    ends = Stops(vocab, stops)
    tokens = generate(model, prompt, max_new_tokens, _within(vocab, sampling), ends.met)
    return ends.cut(vocab.decode(tokens))


def _within(vocab: Vocab, sampling: Sampling) -> Sampling:
    """The same choice among this vocabulary's tokens; the end of text ends a completion."""
    return replace(sampling, stop={vocab.eod_id, *vocab.end_ids}, vocab_size=vocab.size)
