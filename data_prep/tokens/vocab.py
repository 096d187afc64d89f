"""Loads a vocabulary from a `tokenizer.json` and turns text into token ids and back.

The Hugging Face `tokenizers` file is the truth; `data_prep/tokens/encode.py` may produce the same ids faster.
Special tokens come first, so the end-of-document id of a trained vocabulary is 0.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from configs.common.files import fingerprint, write_json, write_text
from configs.schema.chat import END_OF_TEXT, MASK
from data_prep.tokens.special_tokens import SpecialTokens, read_special_tokens
from data_prep.tokens.vocab_checks import (
    BYTE_TOKEN,
    MAX_FILE_BYTES,
    check_bounds,
    check_ids,
    for_text_alone,
    for_text_inside,
    keeps_text,
    missing_bytes,
)

TOKENIZER_NAME = "tokenizer.json"
CONFIG_NAME = "tokenizer_config.json"
# Every byte that UTF-8 uses, and what has broken vocabularies: spaces of all kinds, marks, tokens written as text.
_TRIAL = (
    "".join(map(chr, [*range(0x800), *range(0x800, 0xD800, 0x40), *range(0xE000, 0x110000, 0x1000)]))
    + " a  b\n\n c\t<0x41> <unk> <s> </s> ▁x [UNK] [SEP] ##y Hello World, 2024! naïve 中文 😀 "
)


def byte_alphabet() -> list[str]:
    """The 256 characters that stand for the bytes 0-255 in byte-level vocabularies (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


class Vocab:
    """A tokenizer with the ids that texts begin and end with, and the number of bytes behind each id.

    `eod_id` ends documents. `begin_id` is what the first token of a text is conditioned on: the same id in vocabularies
    trained here, another one in many imported models. `end_ids` end generation.
    """

    def __init__(
        self, tokenizer: Tokenizer, end_of_document: str | int = END_OF_TEXT, special: SpecialTokens | None = None
    ) -> None:
        """`special`: what the files beside the tokenizer say; None: texts begin and end with `end_of_document`."""
        eod = _id_of(tokenizer, end_of_document)
        if eod is None:
            added = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
            known = ", ".join(map(repr, added[:8])) or "none: add one"
            raise ValueError(
                f"the vocabulary has no token {end_of_document!r} to end documents with; set "
                f"data.tokenizer.special_tokens to one that it has (its special tokens: {known}), or name it as "
                f"eos_token in the {CONFIG_NAME} of an imported model"
            )
        if special is None:  # documents are written without what a template would put around them
            special = SpecialTokens()
            tokenizer.post_processor = None
        # Text is only text: `<|endoftext|>` written inside a document must not end it.
        tokenizer.encode_special_tokens = True
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        check_ids(self.vocabulary.values())
        self.tokenizer = tokenizer
        self.end_of_document = str(tokenizer.id_to_token(eod))
        self.eod_id: int = eod
        begin = _id_of(tokenizer, special.begin)
        self.begin_id: int = eod if begin is None else begin
        self.end_ids = frozenset(special.ends or [eod])
        self.size = self._bounded(special.rows)

    def _bounded(self, rows: int | None) -> int:
        """Number of ids: the largest plus one, or the rows of the model's embedding where some tokens have none.

        Raises:
            ValueError: when a text could give one of those.
        """
        size = max(self.vocabulary.values()) + 1
        if rows is None or rows >= size:
            return size
        special = {index for index, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}
        needed = {self.begin_id, *self.end_ids, self.eod_id, *self.template[0], *self.template[1]}
        for token, index in self.vocabulary.items():
            if index >= rows and (index not in special or index in needed):
                raise ValueError(
                    f"the tokenizer has {size:,} tokens and the model's embedding {rows:,} rows: {token!r} (id {index})"
                    " has none; use the tokenizer that the model was trained with"
                )
        return rows

    @classmethod
    def load(cls, path: str | Path, end_of_document: str | None = None) -> Vocab:
        """Reads a `tokenizer.json` or a directory with one.

        Args:
            path: the file or directory.
            end_of_document: the token that ends documents, and that they then begin with; None: what the files beside
                it say (`data_prep/tokens/special_tokens.py`), else `<|endoftext|>`.

        Raises:
            ValueError: when there is no such file, it is not a tokenizer, it lacks the end-of-document token, or it
                does not pass `try_out`.
        """
        file = Path(path) / TOKENIZER_NAME if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise ValueError(f"{path}: no {TOKENIZER_NAME} here; give a tokenizer.json or a directory with one")
        if file.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"{file} has {file.stat().st_size:,} bytes; a tokenizer has {MAX_FILE_BYTES:,} at most")
        stat = file.stat()
        stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        special = None if end_of_document else read_special_tokens(file.parent)
        return _loaded(file.absolute(), stamp, end_of_document, special)

    def try_out(self) -> None:
        """Encodes what has broken vocabularies.

        Raises:
            ValueError: when a special id comes out of a text, when a byte-level vocabulary lacks bytes, when what is
                unknown would end a document, or when a vocabulary without losses does not give a text back.
        """
        if self.byte_level and self.unknown_id is None and (lacking := self._missing_bytes):
            text = ", ".join(f"0x{byte:02X}" + (f" ({chr(byte)!r})" if 32 < byte < 127 else "") for byte in lacking[:8])
            raise ValueError(
                f"the vocabulary is byte-level but has no token for {len(lacking)} of the bytes that text is made of "
                f"({text}{', …' if len(lacking) > 8 else ''}), so they would be lost; train it with all 256 bytes as "
                "its initial alphabet, or keep its special tokens apart from them"
            )
        if self.unknown_id == self.eod_id and not self.lossless:
            raise ValueError(
                f"the vocabulary gives {self.end_of_document!r}, which ends documents, for what it does not know; set "
                "data.tokenizer.special_tokens to another of its tokens, or give it all bytes"
            )
        specials = sorted(token for token, index in self.vocabulary.items() if index in self.special_ids)
        for text in (_TRIAL, " ".join(specials), "".join(specials)):
            ids = self.encode(text)
            if found := self.special_ids.intersection(ids) - {self.unknown_id}:
                raise ValueError(f"text gives the special id {min(found)}; its model is not known here")
            if self.lossless and (self.decode(ids) != text or self.token_bytes[ids].sum() != len(text.encode())):
                raise ValueError("the vocabulary has all bytes and does not give a text back; its decoder is broken")

    def save(self, directory: Path) -> None:
        """Writes `tokenizer.json` and a `tokenizer_config.json` that transformers understands.

        For vocabularies made here; the files of an imported one are copied (`special_tokens.copy_companions`).
        """
        directory.mkdir(parents=True, exist_ok=True)
        write_text(directory / TOKENIZER_NAME, self.tokenizer.to_str(pretty=True) + "\n")
        eos = self.end_of_document
        write_json(
            directory / CONFIG_NAME,
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": eos,
                "eos_token": eos,
                "clean_up_tokenization_spaces": False,
            },
        )

    def extended(self, tokens: Iterable[str]) -> Vocab:
        """The vocabulary with those special tokens that it lacks, at its end; the ids of all others stay as they are.

        A token that it has as ordinary text becomes a special one under the id that it has.
        """
        tokenizer = Tokenizer.from_str(self.tokenizer.to_str())
        tokenizer.add_special_tokens(list(tokens))
        return Vocab(tokenizer, self.end_of_document)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without an end-of-document id; special-token strings inside are ordinary text."""
        with _panics_said(f"a text that begins {text[:40]!r}"):
            ids: list[int] = self.encoder.encode(text, add_special_tokens=False).ids
        return ids

    def encode_inside(self, text: str) -> list[int]:
        """Token ids of a text behind a special token: without what the tokenizer puts before the first word of all."""
        with _panics_said(f"a text that begins {text[:40]!r}"):
            ids: list[int] = self.inner_encoder.encode(text, add_special_tokens=False).ids
        return ids

    @cached_property
    def template(self) -> tuple[list[int], list[int]]:
        """The ids that the tokenizer puts before and after a prompt: none, in vocabularies made here."""
        if not self.tokenizer.encode("", add_special_tokens=True).ids:
            return [], []
        probes = (self.tokenizer.encode(text, add_special_tokens=True) for text in ("a", *self.vocabulary))
        found = next(probe for probe in probes if 0 in probe.special_tokens_mask)
        first = found.special_tokens_mask.index(0)
        last = len(found.ids) - found.special_tokens_mask[::-1].index(0)
        return found.ids[:first], found.ids[last:]

    def framed(self, text: str) -> list[int]:
        """Token ids of `text` with what the tokenizer's template puts around it."""
        before, after = self.template
        return [*before, *self.encode(text), *after]

    def prompt(self, text: str) -> list[int]:
        """Token ids of a text to be continued; never empty."""
        return self.framed(text) or [self.begin_id]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; special tokens are left out. Cut characters become U+FFFD."""
        with _panics_said("ids"):
            text: str = self.tokenizer.decode(list(map(int, ids)), skip_special_tokens=True)
        return text

    def lost(self, text: str, ids: Iterable[int]) -> int:
        """UTF-8 bytes of the characters of a text that its ids do not give back; 0 for a vocabulary without losses."""
        if self.lossless:
            return 0
        back = self.decode(index for index in ids if index != self.unknown_id)
        return 0 if back == text else len("".join((Counter(text) - Counter(back)).elements()).encode())

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that no text may give: the end-of-document id and those of special added tokens."""
        added = self.tokenizer.get_added_tokens_decoder().items()
        return frozenset({self.eod_id, self.begin_id, *(index for index, token in added if token.special)})

    @property
    def mask_id(self) -> int | None:
        """The id of the special token `<|mask|>`, which hides tokens in masked diffusion; None: there is none."""
        index = self.vocabulary.get(MASK)
        return index if index in self.special_ids else None

    @cached_property
    def unknown_id(self) -> int | None:
        """The id that stands for what the model does not know, if it has one."""
        model = self._description["model"]
        named = model.get("unk_token")
        return model.get("unk_id") if named is None else self.vocabulary.get(named)

    @cached_property
    def encoder(self) -> Tokenizer:
        """The tokenizer for text: the same ids, but never a special one."""
        return self._encoder(self._description)

    @cached_property
    def inner_encoder(self) -> Tokenizer:
        """The tokenizer for a text behind a special token; in most vocabularies that for any text."""
        inside = for_text_inside(self._description)
        return self.encoder if inside == self._description else self._encoder(inside)

    def _encoder(self, description: dict[str, Any]) -> Tokenizer:
        made = Tokenizer.from_str(json.dumps(for_text_alone(description, self.special_ids)))
        made.encode_special_tokens = True
        return made

    @cached_property
    def _description(self) -> dict[str, Any]:
        description: dict[str, Any] = json.loads(self.tokenizer.to_str())
        return description

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """(size,) int32: UTF-8 bytes that each id stands for; 0 for special tokens and unused ids."""
        counts = np.zeros(self.size, dtype=np.int32)
        for token, index in self.vocabulary.items():
            if index < self.size:
                counts[index] = self._bytes_of(token)
        for index, added in self.tokenizer.get_added_tokens_decoder().items():
            if index < self.size:
                counts[index] = 0 if added.special else len(added.content.encode())
        return counts

    def prefix_bytes(self, text: str) -> int:
        """Bytes that the tokens of a text stand for before its own: the space that some tokenizers put before it.

        Such are SentencePiece's dummy prefix (`Prepend`, `Metaspace`) and `ByteLevel` with `add_prefix_space`. Some put
        it only where the text does not begin with a space.
        """
        begin = " a" if text.startswith(" ") else "a"
        return max(0, int(self.token_bytes[self.encode(begin)].sum()) - len(begin)) if text else 0

    @cached_property
    def byte_level(self) -> bool:
        """Tells whether the tokens are strings over GPT-2's byte alphabet."""
        decoder = self._description["decoder"] or {}
        return any(part.get("type") == "ByteLevel" for part in [decoder, *decoder.get("decoders", [])])

    @cached_property
    def lossless(self) -> bool:
        """Tells whether the ids of any text stand for exactly its bytes, and give it back."""
        return keeps_text(self._description, self.byte_level) and not self._missing_bytes

    @cached_property
    def _missing_bytes(self) -> list[int]:
        """Bytes of UTF-8 that no token stands for; one that is a special token's does not count."""
        names = byte_alphabet() if self.byte_level else [f"<0x{byte:02X}>" for byte in range(256)]
        special = {token for token, index in self.vocabulary.items() if index in self.special_ids}
        return missing_bytes(self._description, [name if name not in special else "" for name in names])

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the tokenizer file and the tokens at the end and the beginning of a document."""
        begin = {} if self.begin_id == self.eod_id else {"begin": self.begin_id}
        return fingerprint({"tokenizer": self.tokenizer.to_str(), "end_of_document": self.end_of_document, **begin})

    def _bytes_of(self, token: str) -> int:
        if self.byte_level:
            return len(token)
        if BYTE_TOKEN.fullmatch(token):
            return 1
        # SentencePiece writes a space as U+2581; where nothing is rewritten, that character is itself.
        return len((token if self.lossless else token.replace("▁", " ")).encode())


@lru_cache(maxsize=4)
def _loaded(
    file: Path, stamp: tuple[int, int, int], end_of_document: str | None, special: SpecialTokens | None
) -> Vocab:
    """Reads and tries a vocabulary once; `stamp` changes with the file. Every checkpoint asks for the same one."""
    try:
        text = file.read_text(encoding="utf-8")
        check_bounds(text)
        with _panics_said("its own file"):
            tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises plain Exception
        raise ValueError(f"{file} is not a tokenizer that Hugging Face `tokenizers` reads: {error}") from error
    try:
        named = end_of_document if special is None else special.end
        vocab = Vocab(tokenizer, END_OF_TEXT if named is None else named, special)
        vocab.try_out()
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return vocab


@contextmanager
def _panics_said(what: str) -> Iterator[None]:
    """Makes an error of ours of a panic in the library's Rust code, which is no `Exception`.

    Raises:
        ValueError: as when a regular expression gives up.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"the tokenizer gave up on {what} ({error}); use another tokenizer") from error


def _id_of(tokenizer: Tokenizer, token: str | int | None) -> int | None:
    if isinstance(token, int):
        return token if 0 <= token < 2**32 and tokenizer.id_to_token(token) is not None else None
    found: int | None = None if token is None else tokenizer.token_to_id(token)
    return found
