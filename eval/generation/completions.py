"""Completes text for scores and samples."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from data_prep.tokens.vocab import Vocab
from eval.likelihood.scoring import Report
from pretrain.generation.generate import generate, generate_batch
from pretrain.generation.sampling import GREEDY, Sampling
from pretrain.model.transformer import Transformer

_LONGEST_CHARACTER = 4  # bytes of UTF-8


@dataclass(frozen=True)
class Stops:
    """Strings that end a completion. The text before the string is kept, even if it is part of the same token.

    The rule is that of lm-eval's `hf` model: generation continues until the new text contains a whole stop string. Then
    the text is cut at each string, in the given order. The end-of-text token is not part of the text.

    Attributes:
        vocab: of the model.
        strings: the stop strings.
        end_ids: ids that end a completion beside the end of text, such as the end of a message.
    """

    vocab: Vocab
    strings: Sequence[str] = ()
    end_ids: Collection[int] = ()

    def met(self, tokens: Sequence[int]) -> bool:
        """Tells whether the text of the new tokens contains a stop string; called after each token.

        It compares strings, not ids, because different tokens can spell the same text.
        """
        for stop in filter(None, self.strings):
            # Each token is at least one byte, so the string covers at most as many tokens as it has bytes. Up to four
            # more tokens reach the start of a character that the cut would split. Only a hit is verified in the whole
            # text, because decoding all of it after each token is slow.
            reach = len(stop.encode())
            tails = (tokens[-reach - more :] for more in range(_LONGEST_CHARACTER + 1))
            if any(stop in self.vocab.decode(tail) for tail in tails) and stop in self.vocab.decode(tokens):
                return True
        return False

    def within(self, sampling: Sampling) -> Sampling:
        """Returns the same choice among the vocabulary's tokens; the end of text and the end ids end a completion."""
        ends = {self.vocab.eod_id, *self.vocab.end_ids, *self.end_ids}
        return replace(sampling, stop=ends, vocab_size=self.vocab.size)

    def cut(self, text: str) -> str:
        """Returns the text before the first stop string."""
        for stop in filter(None, self.strings):
            text = text.partition(stop)[0]
        return text


def complete(
    model: Transformer,
    stops: Stops,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    batch_size: int,
    report: Report | None = None,
) -> list[str]:
    """Completes prompts (token ids) greedily. Each completion ends at the end of text, an end id or a stop string."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    texts = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        chosen = [prompts[index] for index in indices]
        outputs = generate_batch(model, chosen, max_new_tokens, stops.within(GREEDY), stops.met)
        for index, output in zip(indices, outputs, strict=True):
            texts[index] = stops.cut(stops.vocab.decode(output))
        if report is not None:
            report(start + len(indices), total=len(prompts))
    return texts


def sample(model: Transformer, stops: Stops, prompt: list[int], max_new_tokens: int, sampling: Sampling) -> str:
    """Samples one continuation of a prompt (token ids). It ends at the end of text, an end id or a stop string."""
    tokens = generate(model, prompt, max_new_tokens, stops.within(sampling), stops.met)
    return stops.cut(stops.vocab.decode(tokens))
