"""Defines the conventions of perplexity: what the model reads, what is scored, and what the sum is divided by.

Published figures of one model on one text differ by these choices. Each result therefore names all of them. See
docs/published-scores.md for who uses which.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from configs.schema.evaluation import PerplexitySet
from eval.reading.windows import Tokens, Window, sliding_windows

# Undoes the tokenization of WikiText (Merity et al. 2016), with the rules and the order of lm-eval's task `wikitext`,
# which go back to Megatron-LM. A string is replaced as it stands, a pattern as a regular expression.
_WIKITEXT: tuple[tuple[str | re.Pattern[str], str], ...] = (
    ("s '", "s'"),
    (re.compile(r"/' [0-9]/"), "/'[0-9]/"),
    *((f" @{sign}@ ", sign) for sign in "-,."),
    *((f" {sign} ", f"{sign} ") for sign in ":;.!?,"),
    *(
        (re.compile(rf"{begin}\s*([^{end}]*?)\s*{end}"), rf"{shown}\1{last}")
        for begin, end, shown, last in (
            (r"\(", r"\)", "(", ")"),
            (r"\[", r"\]", "[", "]"),
            ("{", "}", "{", "}"),
            ('"', '"', '"', '"'),
            ("'", "'", "'", "'"),
        )
    ),
    *(("= " * count + "=", "=" * (count + 1)) for count in (3, 2, 1)),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)
_SPACE = re.compile(r"\s+")


def detokenized_wikitext(text: str) -> str:
    """Undoes the tokenization of a WikiText document; equal to what lm-eval's task `wikitext` scores."""
    for pattern, shown in _WIKITEXT:
        text = text.replace(pattern, shown) if isinstance(pattern, str) else pattern.sub(shown, text)
    return text


@dataclass(frozen=True)
class Convention:
    """How texts become windows of tokens.

    Attributes:
        context: maximum number of tokens that a prediction can see.
        stride: new tokens per window.
        start: the first token of a text follows the begin token. Otherwise it is read only, and not scored.
        joined: all texts are one stream, with the end-of-document token between two of them.
        pieces: windows do not overlap, and the first token of each is read only.
        full: with `pieces`, a last piece that is shorter is left out.
    """

    context: int
    stride: int
    start: bool = True
    joined: bool = False
    pieces: bool = False
    full: bool = False

    def windows(self, tokens: Tokens) -> Iterator[tuple[Window, int]]:
        """Cuts a sequence into windows; yields each with the index of the first token that it scores."""
        if not self.pieces:
            done = 1
            for window in sliding_windows(tokens, 1, self.context, self.stride):
                yield window, done
                done += window.scored
            return
        size = self.context + 1
        for start in range(0, len(tokens) - (size - 1 if self.full else 1), size):
            piece = tokens[start : start + size]
            yield Window(piece, len(piece) - 1), start + 1

    @classmethod
    def of(cls, item: PerplexitySet, context_length: int) -> Convention:
        """Reads the convention of a set, for a model with this context.

        Raises:
            ValueError: for a context that the model does not have, or a stride that would leave tokens out.
        """
        context = item.context or context_length
        if context > context_length:
            raise ValueError(
                f"perplexity set `{item.name}`: context {context} is more than model.context_length {context_length}; "
                "lower it"
            )
        stride = item.stride or max(1, context // 2)
        if stride > context:
            whose = "context" if item.context else "model.context_length"
            raise ValueError(
                f"perplexity set `{item.name}`: stride {stride} is more than {whose} {context}, so tokens "
                "would be left out; lower it"
            )
        pieces, full = item.windows != "sliding", item.windows == "full_pieces"
        return cls(context, stride, item.start_token == "begin", item.stream == "end_of_document", pieces, full)


@dataclass(frozen=True)
class Counted:
    """A scored text.

    Attributes:
        text: as it is counted: its bytes and words are what nats are divided by.
        read: as the model reads it.
    """

    text: str
    read: str


def counted_texts(item: PerplexitySet, texts: Sequence[str]) -> list[Counted]:
    """Returns what is scored: each text, or all as one. Empty texts count only where they are joined."""
    undo = detokenized_wikitext if item.detokenize == "wikitext" else str
    if item.stream == "text":
        return [Counted(item.separator.join(texts), item.separator.join(map(undo, texts)))]
    return [Counted(text, undo(text)) for text in texts if text]


def count_words(text: str, rule: str) -> int:
    """Counts the pieces between white space; by the rule `lm_eval` also those, empty, before and after all of it."""
    return len(_SPACE.split(text)) if rule == "lm_eval" else len(text.split())


def described(item: PerplexitySet, context_length: int) -> dict[str, Any]:
    """Names the convention in words that are equal for equal conventions of models with different contexts."""
    how = Convention.of(item, context_length)
    half = how.stride == max(1, how.context // 2)
    new = "half the context" if half else "the context" if how.stride == how.context else how.stride
    stream = {"text": f"one text, joined by {item.separator!r}", "end_of_document": "one stream of tokens"}
    return {
        **of_text(item),
        "documents": stream.get(item.stream, "apart"),
        "start token": item.start_token,
        "context": "the model's" if how.context == context_length else how.context,
        "new tokens per window": item.windows.replace("_", " ") if how.pieces else new,
    }


def of_text(item: PerplexitySet) -> dict[str, Any]:
    """Names what was done to the text; compressors are compared with models by it."""
    return {"normalize": item.normalize, "detokenize": item.detokenize}
