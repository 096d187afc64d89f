"""Reads and writes the file of a coded corpus.

    a line that names the format | bytes of the header and of the tokenizer (4 bytes each) | header | tokenizer | stream
    | SHA-256 of all before

The header is JSON under xz: what the decoder must know of the corpus (how many tokens, documents and bytes each source
and split has), the settings and circumstances of training, and the hashes of what must come out. Free of torch.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.common.files import atomic_path

MAGIC = b"replica coded corpus 1\n"
_LENGTH = struct.Struct("<I")
_HASH_BYTES = hashlib.sha256().digest_size
_MOST_BYTES = 2**28  # of header and tokenizer, unpacked: nothing that fits a vocabulary is larger
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]


@dataclass(frozen=True)
class CodedCorpus:
    """What a file holds."""

    header: dict[str, Any]
    tokenizer: dict[str, str]  # the files of the tokenizer's directory, name -> text
    stream: bytes


def write_coded(file: Path, content: CodedCorpus) -> dict[str, int]:
    """Writes the file, whole or not at all; returns the bytes of its parts."""
    header, tokenizer = _packed(content.header), _packed(content.tokenizer)
    parts = [MAGIC, _LENGTH.pack(len(header)), _LENGTH.pack(len(tokenizer)), header, tokenizer, content.stream]
    whole = b"".join(parts)
    with atomic_path(file) as temporary:
        temporary.write_bytes(whole + hashlib.sha256(whole).digest())
    frame = len(MAGIC) + 2 * _LENGTH.size + _HASH_BYTES
    return {"header": len(header) + frame, "tokenizer": len(tokenizer), "stream": len(content.stream)}


def read_coded(file: Path) -> CodedCorpus:
    """Reads the file.

    Raises:
        ValueError: when it is no coded corpus, of another format, cut short, or damaged.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file; `replica train RECIPE --code FILE` writes one")
    content = file.read_bytes()
    if not content.startswith(MAGIC):
        raise ValueError(
            f"{file} is no coded corpus, or one of another format (it does not begin with {MAGIC.decode().strip()!r})"
        )
    whole, found = content[:-_HASH_BYTES], content[-_HASH_BYTES:]
    begin = len(MAGIC) + 2 * _LENGTH.size
    if len(whole) < begin or hashlib.sha256(whole).digest() != found:
        raise ValueError(f"{file} is damaged or was cut short: its SHA-256 is not the one at its end; get it again")
    sizes = [_LENGTH.unpack_from(whole, len(MAGIC) + number * _LENGTH.size)[0] for number in range(2)]
    try:
        header = _unpacked(whole[begin : begin + sizes[0]])
        tokenizer = _unpacked(whole[begin + sizes[0] : begin + sum(sizes)])
    except (ValueError, lzma.LZMAError, RecursionError) as error:
        raise ValueError(f"{file}: its header cannot be read ({error}); get the file again") from error
    return CodedCorpus(header, {str(name): str(text) for name, text in tokenizer.items()}, whole[begin + sum(sizes) :])


def _packed(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return lzma.compress(text.encode(), check=lzma.CHECK_NONE, filters=_FILTERS)


def _unpacked(packed: bytes) -> dict[str, Any]:
    unpacker = lzma.LZMADecompressor(memlimit=2**30)
    text = unpacker.decompress(packed, max_length=_MOST_BYTES)
    if not unpacker.eof:
        raise ValueError(f"more than {_MOST_BYTES:,} bytes")
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value
