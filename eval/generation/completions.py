"""Completes text for scores and samples."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from data_prep.tokens.vocab import Vocab, byte_alphabet
from eval.reading.reader import Reader
from eval.reading.windows import Report
from pretrain.generation.player import Request
from pretrain.generation.sampling import GREEDY, Sampling

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
        for stop, last in self._last_tokens:
            if last is not None and tokens and tokens[-1] not in last:
                continue
            # Each token is at least one byte, so the string covers at most as many tokens as it has bytes. Up to four
            # more tokens reach the start of a character that the cut would split. Only a hit is verified in the whole
            # text, because decoding all of it after each token is slow.
            reach = len(stop.encode())
            tails = (tokens[-reach - more :] for more in range(_LONGEST_CHARACTER + 1))
            if any(stop in self.vocab.decode(tail) for tail in tails) and stop in self.vocab.decode(tokens):
                return True
        return False

    @cached_property
    def _last_tokens(self) -> list[tuple[str, frozenset[int] | None]]:
        """Each stop string with the ids that it may end in; None: any, where tokens are not bytes of the text."""
        strings, vocab = [stop for stop in self.strings if stop], self.vocab
        if not (vocab.byte_level and vocab.lossless):
            return [(stop, None) for stop in strings]
        alphabet, added = byte_alphabet(), vocab.tokenizer.get_added_tokens_decoder()
        return [
            (stop, frozenset(added).union(index for token, index in vocab.vocabulary.items() if last in token))
            for stop in strings
            for last in [alphabet[stop.encode()[-1]]]
        ]

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
    reader: Reader,
    stops: Stops,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    report: Report | None = None,
    samplings: Sequence[Sampling] | None = None,
) -> list[str]:
    """Completes prompts (token ids).

    Each completion ends at the end of text, an end id or a stop string. `samplings`: of each prompt; None: greedily.
    """
    chosen = [GREEDY] * len(prompts) if samplings is None else samplings
    requests = [
        Request(prompt, max_new_tokens, stops.within(sampling), is_over=stops.met)
        for prompt, sampling in zip(prompts, chosen, strict=True)
    ]
    ends = stops.within(GREEDY).stop
    answers = [[token for token in answer.ids if token not in ends] for answer in reader.generate(requests, report)]
    return [stops.cut(stops.vocab.decode(ids)) for ids in answers]


def sample(reader: Reader, stops: Stops, prompt: list[int], max_new_tokens: int, sampling: Sampling) -> str:
    """Samples one continuation of a prompt (token ids). It ends at the end of text, an end id or a stop string."""
    return complete(reader, stops, [prompt], max_new_tokens, samplings=[sampling])[0]
