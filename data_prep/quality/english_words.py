"""Splits English text into words and sentences as spaCy's blank English pipeline does, for datatrove's counts.

spaCy takes a text apart at blanks; each chunk between blanks then loses prefixes and suffixes one after the other, is
looked up among some 1300 exceptions (`don't`, `e.g.`, `:-)`), and is cut at infixes unless it is an address. So words
are a function of the chunk, and a dictionary of chunks answers for nearly all of a text. What remains: in the end spaCy
looks for exceptions in the finished sequence of words (`x:)` becomes `x`, `:)`), and a candidate that reaches over a
blank, though it is never taken, keeps candidates within the chunk from being taken. `in_context` does that.

The rules are data (english.json, made by benchmarks/english_words.py, MIT licence); spaCy itself would add eighteen
packages for them.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

_LONGEST_SUFFIX = 16  # characters; only a run of dots may be longer
_LONGEST_ADDRESS = 5000  # the search for `user:password@` takes quadratic time
_PLAIN = re.compile(r"([A-Za-z]+)((?:[,;:!?)]|(?<=[a-z])\.)?)")
_UNCUT = re.compile(r"[A-Za-z0-9_]+")  # no infix has these alone
_DEPENDS = frozenset("+.UCA")  # whether these begin a prefix depends on what follows


class English:
    """Chunk (a stretch without blanks) to words."""

    def __init__(self) -> None:
        rules = json.loads((Path(__file__).parent / "english.json").read_text(encoding="utf-8"))
        self.sentence_ends = frozenset(rules["sentence_ends"])
        # Most affixes are single characters: those are looked up, and the others need a search.
        self._prefixes: dict[str, int] = {}
        self._prefix = re.compile("|".join(rules["prefixes"])).match
        single = [suffix for suffix in rules["suffixes"] if len(suffix.lstrip("\\")) == 1 and suffix != "…"]
        self._suffixes = frozenset(suffix[-1] for suffix in single)
        self._suffix = re.compile("|".join(f"{suffix}$" for suffix in rules["suffixes"] if suffix not in single)).search
        self._infixes = re.compile("|".join(rules["infixes"])).finditer
        self._address = re.compile(rules["address"]).match
        self._exceptions: dict[str, list[str]] = {
            chunk: words.split(" ") for chunk, words in rules["exceptions"].items()
        }
        self._longest = max(map(len, self._exceptions))
        self._candidates = self._find_candidates()
        self.reach = max(map(len, self._candidates))
        self._openings = {(words[0], words[1]) for words in self._candidates}
        self._joined = {pair for words in self._candidates for pair in pairwise(words)}

    def _find_candidates(self) -> frozenset[tuple[str, ...]]:
        """Exceptions that affixes would have broken up, as the words they would be."""
        cuts = (tuple(self._cut(chunk, {})) for chunk in self._exceptions)
        return frozenset(words for words in cuts if len(words) > 1)

    def words(self, chunk: str) -> tuple[list[str], bool]:
        """Words of a chunk alone, and whether its neighbours may have a say in that (see `in_context`)."""
        plain = _PLAIN.fullmatch(chunk)
        if plain and chunk not in self._exceptions and plain[1] not in self._exceptions:
            return ([plain[1], plain[2]] if plain[2] else [chunk]), False
        words = self._cut(chunk, self._exceptions)
        if len(words) == 1 or self._openings.isdisjoint(pairwise(words)):
            return words, False
        final = self._with_exceptions(words, [len(words)])[0]
        return final, final != words

    def may_join(self, left: str, right: str) -> bool:
        """Tells whether a candidate could reach from one chunk into the next."""
        return (self._cut(left, self._exceptions)[-1], self._cut(right, self._exceptions)[0]) in self._joined

    def in_context(self, before: Sequence[str], chunk: str, after: Sequence[str]) -> list[str]:
        """Words of a chunk between others, all with single spaces between; `reach` of them on either side do."""
        pieces = [self._cut(other, self._exceptions) for other in (*before, chunk, *after)]
        words = [word for piece in pieces for word in piece]
        return self._with_exceptions(words, [len(piece) for piece in pieces])[len(before)]

    def _cut(self, chunk: str, exceptions: dict[str, list[str]]) -> list[str]:
        """Prefixes, core, suffixes."""
        start, end = 0, len(chunk)
        prefixes: list[str] = []
        suffixes: list[str] = []
        size = -1
        while start < end and end - start != size:
            size = end - start
            if size <= self._longest and chunk[start:end] in exceptions:
                break
            inner = start + self._prefix_length(chunk, start, end)
            if inner > start and 0 < end - inner <= self._longest and chunk[inner:end] in exceptions:
                prefixes.append(chunk[start:inner])
                start = inner
                break
            outer = end - self._suffix_length(chunk, inner, end)
            if outer < end and 0 < outer - start <= self._longest and chunk[start:outer] in exceptions:
                suffixes.append(chunk[outer:end])
                end = outer
                break
            if inner > start:
                prefixes.append(chunk[start:inner])
            if outer < end:
                suffixes.append(chunk[outer:end])
            start, end = inner, outer
        if start < end:
            core = chunk[start:end]
            prefixes += exceptions.get(core) or self._core(core)
        return prefixes + suffixes[::-1]

    def _prefix_length(self, chunk: str, start: int, end: int) -> int:
        first = chunk[start]
        if first in _DEPENDS:
            match = self._prefix(chunk, start, end)
            return match.end() - start if match else 0
        length = self._prefixes.get(first)
        if length is None:
            length = self._prefixes[first] = 1 if self._prefix(first) else 0
        return length

    def _suffix_length(self, chunk: str, start: int, end: int) -> int:
        """Length of the suffix of chunk[start:end], whose rules must not look at what was taken off before it."""
        if start == end:
            return 0
        if chunk[end - 1] in self._suffixes:
            return 1
        near = end - _LONGEST_SUFFIX
        if chunk.endswith("..", start, end):
            near = min(near, start + len(chunk[start:end].rstrip(".")))
        tail = chunk[max(start, near) : end]
        if tail.isalpha():
            return 0
        match = self._suffix(tail)
        return match.end() - match.start() if match else 0

    def _core(self, core: str) -> list[str]:
        if _UNCUT.fullmatch(core) or self._is_address(core):
            return [core]
        words = []
        start = 0
        for match in self._infixes(core):
            if match.start() == 0:
                continue
            words += [core[start : match.start()], match[0]]
            start = match.end()
        words.append(core[start:])
        return [word for word in words if word]

    def _is_address(self, core: str) -> bool:
        if "." not in core or (len(core) > _LONGEST_ADDRESS and "@" in core):
            return False
        return self._address(core) is not None

    def _with_exceptions(self, words: list[str], sizes: list[int]) -> list[list[str]]:
        """Puts exceptions into cut chunks of these numbers of words; longest first, then the first in the text."""
        chunk_of = [number for number, size in enumerate(sizes) for _ in range(size)]
        found = [
            (length, start)
            for length in range(2, self.reach + 1)
            for start in range(len(words) - length + 1)
            if tuple(words[start : start + length]) in self._candidates
        ]
        taken: dict[int, int] = {}
        seen: set[int] = set()
        for length, start in sorted(found, key=lambda span: (span[0], -span[1]), reverse=True):
            last = start + length - 1
            if start not in seen and last not in seen:
                taken[start] = length
            seen.update(range(start, start + length))
        result: list[list[str]] = [[] for _ in sizes]
        position = 0
        while position < len(words):
            length = taken.get(position, 1)
            span = words[position : position + length]
            within = position in taken and chunk_of[position] == chunk_of[position + length - 1]
            replacement = self._exceptions.get("".join(span)) if within else None
            if replacement is None:
                result[chunk_of[position]].append(words[position])
                position += 1
            else:
                result[chunk_of[position]] += replacement
                position += length
        return result


@cache
def english() -> English:
    """The rules, read once per process."""
    return English()


@cache
def is_punctuation(word: str) -> bool:
    """Tells whether all characters have a Unicode category of punctuation."""
    return all(unicodedata.category(character).startswith("P") for character in word)
