"""Encodes text fast, with the same ids as Hugging Face `tokenizers`.

Text is cut into pieces by a compiled regular expression of the standard library, and every piece is looked up in a
dictionary of its ids; only pieces not met before go through the tokenizer's own merging. The character classes are
asked from `tokenizers` itself, for its Unicode version and Python's differ by thousands of letters.
Vocabularies whose pieces are not known here are encoded by `tokenizers` alone.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import cache, lru_cache
from typing import Any

import numpy as np
from tokenizers import Regex, normalizers

from data_prep.text.characters import BEYOND, HAS_BEYOND, LAST_SCRIPT, characters, ranges
from data_prep.tokens.vocab import Vocab, byte_alphabet
from data_prep.tokens.vocab_training import PATTERNS

SEGMENT_CHARACTERS = 2**17
# Some 60 MB of pieces; text has few that come often, and refilling costs little.
_CACHE_PIECES = 2**18
_LONGEST_CACHED = 64
_BYTES_AS_CHARACTERS = dict(enumerate(byte_alphabet()))

Encode = Callable[[str], bytes]
Split = Callable[[str], Iterable[str]]


# --------------------------------------------------------------------------------------------------------------- pieces
@cache
def _members(excluded: str) -> str:
    """All characters that Oniguruma (inside `tokenizers`) does not match with `excluded`."""
    every = characters(0, LAST_SCRIPT + 1)
    members: str = normalizers.Replace(Regex(excluded + "+"), "").normalize_str(every)
    return members


@cache
def _pattern(name: str, beyond: bool) -> re.Pattern[str]:
    """The pieces of `name` (gpt2, gpt4, qwen2, sequence) as a regular expression of `re`.

    With `beyond` it serves for texts with characters beyond U+FFFF; without, it is faster.
    """
    spaces = ranges(_members(r"\S"))
    if name == "sequence":
        return re.compile(f"[^{spaces}]{{1,128}}|[{spaces}]{{1,128}}")
    letters, numbers = _members(r"\P{L}"), _members(r"\P{N}")
    low = [ranges(c for c in group if c <= "\uffff") for group in (letters, numbers)]
    high = [ranges(c for c in group if c > "\uffff") for group in (letters, numbers)]

    def one(inside: str, outside: str) -> str:
        return f"(?:[{inside}]|(?=[{BEYOND}])[{outside}])" if beyond else f"[{inside}]"

    def run(inside: str, outside: str) -> str:
        return f"(?:[{inside}]++|(?=[{BEYOND}])[{outside}]++)++" if beyond else f"[{inside}]++"

    known = {*letters, *numbers}
    rest = (
        ranges(c for c in characters(0x10000, LAST_SCRIPT + 1) if c not in known) + f"{chr(LAST_SCRIPT + 1)}-\U0010ffff"
    )
    others = (f"^{spaces}{''.join(low)}{BEYOND}", rest)
    end = rf"[{spaces}]+(?![^{spaces}])|[{spaces}]+"
    word, other = run(low[0], high[0]), run(*others)
    if name == "gpt2":
        number = run(low[1], high[1])
        return re.compile(rf" ?{word}|'(?:[stmd]|re|ve|ll)| ?{number}| ?{other}|{end}")
    number = one(low[1], high[1]) + ("{1,3}+" if name == "gpt4" else "")
    before = one(f"^\r\n{''.join(low)}{BEYOND}", rest)
    return re.compile(
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{before}?{word}|{number}| ?{other}[\r\n]*+|[{spaces}]*[\r\n]+|{end}"
    )


@cache
def splitter(name: str) -> Split:
    """A function that cuts text into the pieces of a pattern (gpt2, gpt4, qwen2, sequence)."""
    plain, full = _pattern(name, False), _pattern(name, True)
    return lambda text: (full if HAS_BEYOND.search(text) else plain).findall(text)


_KMERS = re.compile(r"(\[(?:[^\\\]]|\\.)+\])\{([1-8])\}")


def _kmer_splitter(pattern: str) -> Split | None:
    """The pieces of a k-mer vocabulary, if `pattern` is that of one; the text between k-mers is a piece of its own."""
    found = _KMERS.fullmatch(pattern)
    if found is None:
        return None
    letters = found[1]
    piece = f"{pattern}|{letters}|[^{letters[1:]}"
    find, stretch = re.compile(piece).findall, re.compile(f"(?:{piece}){{1,{SEGMENT_CHARACTERS // 8}}}+")
    # A chromosome has no place to cut it but between pieces.
    return lambda text: (part for run in stretch.finditer(text) for part in find(run[0]))


@cache
def _cut_after() -> re.Pattern[str]:
    return re.compile(r"[A-Za-z0-9\u3400-\u4dbf\u4e00-\u9fa5][ \t-\r]")


def segments(text: str, characters: int = SEGMENT_CHARACTERS) -> Iterator[str]:
    """Cuts long text where pieces always end, between a letter or digit and white space: this bounds memory."""
    start = 0
    while len(text) - start > characters:
        found = _cut_after().search(text, start + characters)
        if found is None:
            break
        yield text[start : found.start() + 1]
        start = found.start() + 1
    yield text[start:] if start else text


# ------------------------------------------------------------------------------------------------------------- encoding
class _Pieces(dict[str, bytes]):
    """Piece -> its ids, little-endian; a piece not met before is merged by the tokenizer's model."""

    def __init__(self, vocab: Vocab, width: int) -> None:
        super().__init__()
        self._tokenize = vocab.encoder.model.tokenize
        self._ids = [index.to_bytes(width, "little") for index in range(vocab.size)]
        self._byte_level = vocab.byte_level

    def __missing__(self, piece: str) -> bytes:
        text = piece.encode().decode("latin-1").translate(_BYTES_AS_CHARACTERS) if self._byte_level else piece
        ids = b"".join([self._ids[token.id] for token in self._tokenize(text)])
        if len(piece) <= _LONGEST_CACHED:
            if len(self) >= _CACHE_PIECES:
                self.clear()
            self[piece] = ids
        return ids


def exact_encoder(vocab: Vocab, dtype: np.dtype[Any]) -> Encode:
    """Text to ids of `dtype`, little-endian, by `tokenizers` alone."""
    return lambda text: np.array(vocab.encode(text), dtype=dtype).tobytes()


def fast_encoder(vocab: Vocab, dtype: np.dtype[Any]) -> Encode | None:
    """The same ids faster, or None for a vocabulary whose pieces are not known here."""
    description = json.loads(vocab.tokenizer.to_str())
    split = _split_of(description)
    if split is None:
        return None
    get = _Pieces(vocab, dtype.itemsize).__getitem__
    slow = exact_encoder(vocab, dtype)
    # Added tokens that are not special are found in text before anything else.
    added = [token["content"] for token in description["added_tokens"] if not token["special"]]
    compose = description["normalizer"] is not None

    def encode(text: str) -> bytes:
        if added and any(token in text for token in added):
            return slow(text)
        if compose and not text.isascii():
            text = unicodedata.normalize("NFC", text)
        return b"".join([b"".join(map(get, split(segment))) for segment in segments(text)])

    return encode


def _split_of(description: dict[str, Any]) -> Split | None:
    """How the tokenizer cuts text before merging, if that is one of the ways known here."""
    model, before = description["model"], description["pre_tokenizer"]
    plain = (
        not model.get("dropout") and not model.get("continuing_subword_prefix") and not model.get("end_of_word_suffix")
    )
    if model["type"] != "BPE" or not plain or description["normalizer"] not in (None, {"type": "NFC"}):
        return None
    if before is None:
        return _characters if not model["merges"] and model["byte_fallback"] else None
    parts = before["pretokenizers"] if before["type"] == "Sequence" else [before]
    *cuts, last = parts
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    if not cuts:
        if last["use_regex"]:
            return splitter("gpt2")
        return None if model["merges"] else _characters
    if len(cuts) > 1 or last["use_regex"] or cuts[0]["type"] != "Split":
        return None
    if cuts[0]["behavior"] != "Isolated" or cuts[0]["invert"]:
        return None
    if model.get("ignore_merges"):
        return _kmer_splitter(cuts[0]["pattern"].get("Regex", "")) if not model["merges"] else None
    return next((splitter(name) for name, text in PATTERNS.items() if cuts[0]["pattern"] == {"Regex": text}), None)


def _characters(text: str) -> str:
    """Without merges every character is a piece."""
    return text


# Text that has broken tokenizers: contractions, every kind of space, marks, scripts without spaces, emoji of several
# code points, control characters, special-token strings.
NASTY = (
    "I'm we'LL they'Ve 'sup ''tis 'ſ don't\u2019t '  's \n's",
    "a  b   c\t\td \n e\r\nf\r\r\n\n\n g\x0b\x0c\x1c\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000 end   ",
    "1234567 12,345.678 ①②③ ⅷ ½ ٣٤٥ 𝟙𝟚𝟛𝟜 3D x2y",
    "e\u0301 Å Ä\u0308 \u0301\u0302 नमस्ते สวัสดี 한국어 각 ﬁ ß İı",
    "中文没有空格，标点也是。𠀀𠀁漢字 カタカナ\n\n\n第二行",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 🇩🇪 a😀b 😀😀  😀\n 𝔸𝔹c 𐐷x",
    "\x00\x01\x7f\x80\x9f\ufeff\ufffd\ufffe\u200b\u200d\u202e \ue000\U000e0001\U0010ffff",
    "<|endoftext|> <|im_start|>user <0x41> <unk> ▁x __init__ -->{}[]!!??...'\"`~ $€£\n\n  !\n",
)


def agrees(encode: Encode, vocab: Vocab, dtype: np.dtype[Any], texts: Iterable[str]) -> bool:
    """Tells whether `encode` gives the ids of `tokenizers` on these texts and on what is known to be difficult."""
    exact = exact_encoder(vocab, dtype)
    return all(encode(text) == exact(text) for text in [*NASTY, *texts])


@lru_cache(maxsize=1)
def worker_encoder(directory: str, fingerprint: str, dtype: str, fast: bool) -> tuple[Vocab, Encode]:
    """A worker process's encoder, kept from unit to unit with the pieces it has learnt."""
    vocab = Vocab.load(directory)
    if vocab.fingerprint != fingerprint:
        raise ValueError(f"{directory} changed while shards were being written; run the command again")
    made = fast_encoder(vocab, np.dtype(dtype)) if fast else None
    return vocab, made or exact_encoder(vocab, np.dtype(dtype))
