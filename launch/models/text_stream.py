"""Decodes tokens one by one into text, and ends a text at stop strings; the time for a token does not grow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from data_prep.tokens.vocab import Vocab

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
# A character of UTF-8 has up to 4 bytes, and a token of text at least one.
_LONGEST_CHARACTER = 4
# Other decoders show bytes that make no character only when the run of such bytes is over; no run is kept for ever.
_LONGEST_RUN = 32


class TextStream:
    """Gives the text of each new token. What it gave, joined, is the text that all tokens decode to.

    A character of several tokens is given when it is complete, or by `end` if it never is.
    """

    def __init__(self, vocab: Vocab, context: Sequence[int] = ()) -> None:
        """`context`: the ids before; some vocabularies write a first word otherwise than a later one."""
        self._vocab = vocab
        self._ids = list(context)[-_LONGEST_CHARACTER:]
        self._given = len(vocab.decode(self._ids))  # characters of the text of `_ids`
        self._fresh = 0  # tokens whose text is not complete

    def push(self, token: int) -> str:
        """Adds a token; returns the text that has become certain."""
        if not self._vocab.token_bytes[token]:  # a special token has no text
            return ""
        self._ids.append(token)
        self._fresh += 1
        text = self._vocab.decode(self._ids)
        if not text.endswith(_UNFINISHED):
            return self._give(text, keep=1)
        # Every token of a byte-level vocabulary is at least a byte, so the last four hold all of a cut character.
        if self._fresh > (_LONGEST_CHARACTER if self._vocab.byte_level else _LONGEST_RUN):
            return self._give(text[:-1], keep=_LONGEST_CHARACTER)
        return ""

    def end(self) -> str:
        """Returns the rest: a cut character as U+FFFD."""
        return self._give(self._vocab.decode(self._ids), keep=1)

    def _give(self, text: str, keep: int) -> str:
        new = text[self._given :]
        self._ids = self._ids[-keep:]
        self._given = len(self._vocab.decode(self._ids)) - (1 if keep > 1 else 0)
        self._fresh = 0
        return new


class StopStrings:
    """Holds text back while it could be the beginning of a stop string, and ends the text before the first one."""

    def __init__(self, strings: Iterable[str] = ()) -> None:
        self._strings = [string for string in strings if string]
        self._held = ""
        self.met = False

    def push(self, text: str) -> str:
        """Adds text; returns what surely stands before every stop string. Nothing follows once `met` is True."""
        if self.met:
            return ""
        held = self._held + text
        found = [place for string in self._strings if (place := held.find(string)) >= 0]
        if found:
            self.met, self._held = True, ""
            return held[: min(found)]
        kept = max((_overlap(held, string) for string in self._strings), default=0)
        self._held = held[len(held) - kept :]
        return held[: len(held) - kept]

    def end(self) -> str:
        """Returns what was held back, when no more text comes."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of `text` that begins `string`, shorter than it."""
    longest = min(len(text), len(string) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(string[:size])), 0)


def decode_stream(vocab: Vocab, prompt: Sequence[int], tokens: Iterable[int]) -> Iterator[str]:
    """Decodes tokens after the prompt one by one. A character of several tokens is yielded when it is complete."""
    stream = TextStream(vocab, prompt)
    for token in tokens:
        if text := stream.push(token):
            yield text
    if text := stream.end():
        yield text
