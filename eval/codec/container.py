"""Defines the container of a coded file: what a decoder must know, the code itself, and a checksum over both.

    magic      8 bytes, `RPLCODE` and the version of the format
    length     2 bytes, little-endian, of the header
    header     JSON, deflated with a preset dictionary
    payload    the code: of a model, of xz, or the bytes as they are
    checksum   8 bytes of BLAKE2b over all before, so that damage is found before anything is decoded

The header names all that the code depends on (`Header`). Free of torch.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from configs.safety.parsing import parse_json

FORMAT_VERSION = 1
_NAME = b"RPLCODE"
_CHECKSUM_BYTES = 8
_MOST_HEADER = 2**16 - 1
_MOST_TEXT = 2**20  # of a header's JSON

Form = Literal["model", "xz", "stored"]


class NotACodedFile(ValueError):
    """The bytes are no coded file, or not as they were written."""


@dataclass(frozen=True)
class Circumstances:
    """What a model's probabilities depend on beside its weights, to the last bit.

    Attributes:
        threads: of torch, which split matrix products and sums.
        dtype: of weights and activations.
        device: `cpu` or `cuda`.
        processor: its kind: of a CPU the instruction set, maker and vector extensions that torch uses.
        torch: version of torch.
        code: digest of the code that computes the probabilities.
    """

    threads: int
    dtype: str
    device: str
    processor: str
    torch: str
    code: str


@dataclass(frozen=True)
class Header:
    """What a decoder must know.

    Attributes:
        form: how the payload is coded; `stored`: as it is.
        bytes: of the file.
        sha256: of the file, hexadecimal.
        reason: why the model did not code it; empty where it did.
        tokens: of the text; this and all below are of the form `model` only.
        streams: rows of text that are decoded side by side.
        check_steps: steps between two checks of the tokens.
        checks: CRC-32 of the tokens up to each check.
        checkpoint, tokenizer: fingerprints.
        circumstances: where it was coded.
    """

    form: Form
    bytes: int
    sha256: str
    reason: str = ""
    tokens: int = 0
    streams: int = 0
    check_steps: int = 0
    checks: list[int] = field(default_factory=list)
    checkpoint: str = ""
    tokenizer: str = ""
    circumstances: Circumstances | None = None


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


def pack(header: Header, payload: bytes) -> bytes:
    """Returns the coded file."""
    values = asdict(header)
    if header.form != "model":
        values = {name: values[name] for name in ("form", "bytes", "sha256", "reason")}
    text = json.dumps(values, separators=(",", ":"), sort_keys=True).encode()
    packer = zlib.compressobj(level=9, wbits=-15, zdict=_DICTIONARY)
    deflated = packer.compress(text) + packer.flush()
    if len(deflated) > _MOST_HEADER:
        raise ValueError(f"a header of {len(deflated):,} bytes has no room in a coded file; use larger check steps")
    body = _magic(FORMAT_VERSION) + len(deflated).to_bytes(2, "little") + deflated + payload
    return body + _checksum(body)


def unpack(data: bytes) -> tuple[Header, bytes]:
    """Returns header and payload of a coded file.

    Raises:
        NotACodedFile: for other bytes, damaged or truncated ones, and other versions of the format.
    """
    start = len(_NAME) + 3
    if data[: len(_NAME)] != _NAME[: len(data)] or not data:
        raise NotACodedFile("it is not a file that `replica compress` wrote: it begins otherwise")
    if len(data) < start + _CHECKSUM_BYTES:
        raise NotACodedFile(f"it ends after {len(data)} bytes, within its header: it was truncated")
    if _checksum(data[:-_CHECKSUM_BYTES]) != data[-_CHECKSUM_BYTES:]:
        raise NotACodedFile(
            "its checksum does not match: a bit was flipped, or its end is missing; take another copy of it"
        )
    if (version := data[len(_NAME)]) != FORMAT_VERSION:
        raise NotACodedFile(f"it has version {version} of the format; this Replica reads version {FORMAT_VERSION}")
    end = start + int.from_bytes(data[start - 2 : start], "little")
    return _header(data[start:end]), data[end:-_CHECKSUM_BYTES]


def _header(deflated: bytes) -> Header:
    try:
        text = zlib.decompressobj(wbits=-15, zdict=_DICTIONARY).decompress(deflated, _MOST_TEXT)
        values: dict[str, Any] = parse_json(text.decode())
        where = values.pop("circumstances", None)
        return Header(**values, circumstances=None if where is None else Circumstances(**where))
    except (zlib.error, ValueError, TypeError, AttributeError) as error:
        raise NotACodedFile(f"its header cannot be read ({error}); it was made by another program") from error


def _magic(version: int) -> bytes:
    return _NAME + bytes([version])


def _checksum(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_CHECKSUM_BYTES).digest()


# What headers have in common, the likeliest last. It is part of the format: another one makes a new version.
_DICTIONARY = (
    b"it is empty it is not UTF-8 text the tokenizer does not give it back the model needs more bytes than xz than it "
    b'has "form":"stored" "form":"xz" AuthenticAMD AVX2 "device":"cuda" {"bytes":,"check_steps":4096,"checkpoint":"",'
    b'"checks":[],"circumstances":{"code":"","device":"cpu","dtype":"fp32","processor":"x86_64 GenuineIntel AVX512",'
    b'"threads":2,"torch":"2.13.0+cpu"},"form":"model","reason":"","sha256":"","streams":64,"tokenizer":"","tokens":}'
)
