"""The container of a coded file: every flipped bit and every cut is found, and other versions are named."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace

import pytest

from eval.codec import container
from eval.codec.container import Circumstances, Header, NotACodedFile, pack, sha256, unpack

WHERE = Circumstances(2, "fp32", "cpu", "x86_64 GenuineIntel AVX512", "2.13.0+cpu", "0123456789ab")
HEADER = Header(
    "model", 436_784, sha256(b"x"), "", 145_213, 64, 512, [1, 2**32 - 1], "c" * 32, "f0" * 16, WHERE
)  # fmt: skip
FILE = pack(HEADER, b"payload")


def test_what_is_packed_comes_back() -> None:
    assert unpack(FILE) == (HEADER, b"payload")
    stored = Header("stored", 0, sha256(b""), "it is empty")
    assert unpack(pack(stored, b"")) == (stored, b"")


def test_a_header_is_small() -> None:
    """Fingerprints and the hash cannot be made smaller: 16 + 16 + 32 bytes of them are noise."""
    real = replace(HEADER, checks=[], checkpoint=sha256(b"c")[:32], tokenizer=sha256(b"t")[:32])
    assert len(pack(real, b"")) <= 160
    assert len(pack(Header("stored", 0, sha256(b""), "it is empty"), b"")) <= 100


def test_every_flipped_bit_is_found() -> None:
    for place in range(len(FILE)):
        for bit in range(8):
            damaged = bytearray(FILE)
            damaged[place] ^= 1 << bit
            with pytest.raises(NotACodedFile):
                unpack(bytes(damaged))


def test_every_cut_is_found() -> None:
    for length in range(len(FILE)):
        with pytest.raises(NotACodedFile, match="trunc|its end is missing" if length else "begins otherwise"):
            unpack(FILE[:length])


def test_other_bytes_are_named() -> None:
    with pytest.raises(NotACodedFile, match="begins otherwise"):
        unpack(b"\x1f\x8b" + FILE)
    newer = container._magic(2) + FILE[8:-8]
    with pytest.raises(NotACodedFile, match="version 2 of the format; this Replica reads version 1"):
        unpack(newer + container._checksum(newer))


@pytest.mark.parametrize("content", [[], {"form": "model"}, {**asdict(HEADER), "other": 1}, "[" * 100])
def test_a_header_of_another_program_is_refused(content: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "dumps", lambda *_, **__: content if isinstance(content, str) else repr(content))
    made = pack(HEADER, b"")
    monkeypatch.undo()
    with pytest.raises(NotACodedFile, match="header cannot be read"):
        unpack(made)


def test_the_dictionary_names_all_fields() -> None:
    """It is part of the format: a field that it lacks costs bytes in every file, and changing it breaks old files."""
    names = {one.name for kind in (Header, Circumstances) for one in fields(kind)}
    assert {name for name in names if f'"{name}":'.encode() not in container._DICTIONARY} == set()
    assert sha256(container._DICTIONARY)[:16] == "a16e3d2240dcbfd6", (
        "old files can no longer be read: raise FORMAT_VERSION"
    )
