"""The file of a coded corpus: whole or refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pretrain.coding.container import MAGIC, CodedCorpus, read_coded, write_coded

CONTENT = CodedCorpus({"strands": [1, 2], "text": {"sha256": "ü"}}, {"tokenizer.json": "{}\n"}, b"\0\1\2\3" * 9)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_coded(tmp_path / "c", CONTENT)
    return tmp_path / "c"


def test_what_is_written_is_read(file: Path) -> None:
    assert read_coded(file) == CONTENT
    file.unlink()
    parts = write_coded(file, CONTENT)
    assert sum(parts.values()) == file.stat().st_size and parts["stream"] == 36


def test_a_flipped_bit_anywhere_is_noticed(file: Path) -> None:
    content = file.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged or was cut short" if place >= len(MAGIC) else "no coded"):
            read_coded(file)


@pytest.mark.parametrize("size", [0, 3, len(MAGIC), len(MAGIC) + 5, len(MAGIC) + 8, 100, -1])
def test_a_file_that_was_cut_short(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"is damaged or was cut short|is no coded corpus"):
        read_coded(file)


def test_a_header_that_is_none(file: Path) -> None:
    """The hash at the end keeps out accidents alone."""
    content = file.read_bytes()[:-32]
    for middle in (b"\xff" * 8 + content[len(MAGIC) + 8 :], content[len(MAGIC) : len(MAGIC) + 8] + b"x" * 200):
        forged = MAGIC + middle
        file.write_bytes(forged + hashlib.sha256(forged).digest())
        with pytest.raises(ValueError, match="its header cannot be read"):
            read_coded(file)
    write_coded(file, CodedCorpus({}, [], b""))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="its header cannot be read"):
        read_coded(file)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        read_coded(tmp_path / "nothing")
