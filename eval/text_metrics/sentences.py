"""Splits texts into sentences by punctuation, in English and Chinese, and dialogues into turns."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

SplitBy = Literal["sentences", "lines"]

# Of a class in a regular expression: scripts that are written without blanks between words.
UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\u0e00-\u0eff\u1000-\u109f"
_UNSPACED_LETTER = re.compile(f"[{UNSPACED}]")

# A sentence may end after these marks and what closes a quotation; the Chinese marks need no space behind them.
_END = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s)|[。！？]+[\"'”’」』）)]*")
_PARAGRAPH = re.compile(r"\n\s*\n")
# A full stop after these ends no sentence, because a name, a number or an example follows.
_ABBREVIATIONS = frozenset(
    {
        *("mr", "mrs", "ms", "dr", "prof", "st", "mt", "sr", "jr", "vs", "etc", "no"),
        *("nos", "vol", "fig", "figs", "eq", "e.g", "i.e", "cf", "al", "inc", "ltd", "co"),
        *("corp", "gen", "col", "capt", "lt", "sgt", "rev", "hon", "gov", "sen", "rep", "pres"),
        *("jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec", "approx", "dept", "est"),
    }
)
_INITIALS = re.compile(r"(?:[A-Za-z]\.)*[A-Za-z]")  # J, U.S, a.m


def unspaced_share(texts: Iterable[str]) -> float:
    """Returns the share of letters and digits that are of a script without blanks between words, such as Chinese."""
    joined = "".join(texts)
    letters = sum(map(str.isalnum, joined))
    return sum(map(str.isalnum, _UNSPACED_LETTER.findall(joined))) / letters if letters else 0.0


def split_text(text: str, by: SplitBy = "sentences") -> list[str]:
    """Splits a text into its units in order, without white space at their ends and without empty ones.

    Args:
        text: the text. Line breaks within a paragraph count as blanks, unless it is split at them.
        by: `sentences`: at marks that end a sentence. A full stop after an abbreviation, an initial or before a small
            letter ends none. `lines`: at line ends, as the turns of a dialogue are written.
    """
    if by == "lines":
        pieces = text.splitlines()
    else:
        paragraphs = (" ".join(part.split()) for part in _PARAGRAPH.split(text))
        pieces = [piece for paragraph in paragraphs for piece in _sentences(paragraph)]
    return [stripped for piece in pieces if (stripped := piece.strip())]


def _sentences(paragraph: str) -> list[str]:
    found, start = [], 0
    for match in _END.finditer(paragraph):
        if _ends(paragraph, start, match):
            found.append(paragraph[start : match.end()])
            start = match.end()
    return [*found, paragraph[start:]]


def _ends(paragraph: str, start: int, match: re.Match[str]) -> bool:
    """Tells whether a sentence that begins at `start` ends with the match."""
    following = paragraph[match.end() :].lstrip()
    if following[:1].islower():
        return False
    if match.group() != ".":
        return True
    word = paragraph[start : match.start()].rpartition(" ")[2].lstrip("\"'“‘([")
    return not (word.lower() in _ABBREVIATIONS or _INITIALS.fullmatch(word))
