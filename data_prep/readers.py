"""From files to raw records, streaming: memory does not depend on the size of a file.

Plain, `.gz` and `.zst` files are read alike. A raw record is the bytes of a line, paragraph or stretch of text, or the
mapping of a table row; `data_prep/documents.py` makes documents of them. A file that cannot be read to its end raises
`UnreadableFile`; a single bad record is the business of the next step.
"""

from __future__ import annotations

import glob
import gzip
import io
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

FORMATS = (".txt", ".jsonl", ".parquet")
COMPRESSIONS = (".gz", ".zst")
# One record of .jsonl is held in memory; a longer line is skipped and counted.
MAX_RECORD_BYTES = 256 * 2**20
_CHUNK_BYTES = 2**20
# A zstd block of a few bytes may unfold to 128 KiB: small bites keep what one call returns small.
_ZSTD_BITE = 4096
_TABLE_BATCH_BYTES = 4 * 2**20

Raw = bytes | dict[str, Any]


class UnreadableFile(ValueError):
    """A damaged file; the message names it and the fix."""


@dataclass(frozen=True)
class RawRecord:
    """One record as it stands in a file.

    `value` None means a record too long to hold, of `size` bytes. `position` counts records of the file from 0. The
    parts of a text too long for one record share the position and carry the byte `offset` they begin at.
    """

    position: int
    value: Raw | None
    size: int
    offset: int = 0
    part: int | None = None


# ---------------------------------------------------------------------------------------------------------------- files
def expand(paths: str | Sequence[str]) -> list[Path]:
    """Files of a path, glob or list of them: globs sorted, doubles left out.

    Raises:
        ValueError: when a path or glob matches nothing, or has an ending that is not read here.
    """
    files: dict[Path, None] = {}
    for pattern in [paths] if isinstance(paths, str) else paths:
        literal = Path(pattern)
        found = [literal] if literal.is_file() else [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207
        found = [path for path in found if path.is_file()]
        if not found:
            raise ValueError(f"{pattern}: no such file; correct the `path` of the source (globs must match something)")
        for path in found:
            file_format(path)
        files.update(dict.fromkeys(found))
    return list(files)


def file_format(path: Path) -> str:
    """`.txt`, `.jsonl` or `.parquet`; raises `ValueError` for anything else."""
    name = path.name.lower()
    for ending in COMPRESSIONS:
        name = name.removesuffix(ending)
    suffix = Path(name).suffix
    if suffix not in FORMATS:
        raise ValueError(f"{path}: files end in {', '.join(FORMATS)}, each also with .gz or .zst; rename or convert it")
    return suffix


def names_within(files: Sequence[Path]) -> list[str]:
    """Names of the files relative to their common directory: the same wherever the directory lies."""
    absolute = [path.absolute() for path in files]
    common = Path(os.path.commonpath([path.parent for path in absolute]))
    return [path.relative_to(common).as_posix() for path in absolute]


class _ZstdStream(io.RawIOBase):
    """Decompressed bytes of a .zst file; unlike zstandard's own reader it notices a file that ends too early."""

    def __init__(self, stream: BinaryIO) -> None:
        import zstandard

        self._stream = stream
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
        self._frame: Any = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            if not self._input:
                self._input = self._stream.read(_ZSTD_BITE)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("the compressed data ends in the middle of a frame")
                return 0
            self._decompress()
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def _decompress(self) -> None:
        if self._frame is None:
            self._frame = self._decompressor.decompressobj()
        self._output = memoryview(self._frame.decompress(self._input))
        self._input = b""
        if self._frame.eof:
            self._input = self._frame.unused_data
            self._frame = None


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed; errors of the body that mean a damaged file become `UnreadableFile`."""
    import zstandard

    try:
        with path.open("rb") as raw:
            if path.suffix.lower() == ".gz":
                yield cast(BinaryIO, gzip.GzipFile(fileobj=raw))
            elif path.suffix.lower() == ".zst":
                yield io.BufferedReader(_ZstdStream(raw), _CHUNK_BYTES)
            else:
                yield raw
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise UnreadableFile(
            f"{path} is damaged or was not copied whole ({error}); fetch it again or take it out of the source's `path`"
        ) from error


# -------------------------------------------------------------------------------------------------------------- records
def read_records(
    path: Path, text_documents: Literal["file", "line", "paragraph"], max_part_bytes: int
) -> Iterator[RawRecord]:
    """All records of a file in order.

    Args:
        path: the file.
        text_documents: what one record of a .txt file is.
        max_part_bytes: a .txt file read whole is cut into parts of at most this size.

    Raises:
        UnreadableFile: when the file is damaged.
    """
    kind = file_format(path)
    if kind == ".parquet":
        yield from _table_rows(path)
        return
    with open_bytes(path) as stream:
        if kind == ".jsonl" or text_documents == "line":
            yield from _lines(stream)
        elif text_documents == "paragraph":
            yield from _paragraphs(stream)
        else:
            yield from cut_bytes(stream, max_part_bytes)


def _lines(stream: BinaryIO) -> Iterator[RawRecord]:
    position = 0
    while line := stream.readline(MAX_RECORD_BYTES):
        size = len(line)
        too_long = False
        while not line.endswith(b"\n") and (line := stream.readline(_CHUNK_BYTES)):
            too_long = True
            size += len(line)
        if too_long:
            yield RawRecord(position, None, size)
        elif line.strip():
            yield RawRecord(position, _without_mark(line, position).strip(b"\r\n"), size)
        position += 1


def _without_mark(data: bytes, position: int) -> bytes:
    """Leaves out the byte order mark with which some editors begin a file."""
    return data.removeprefix(b"\xef\xbb\xbf") if position == 0 else data


def _paragraphs(stream: BinaryIO) -> Iterator[RawRecord]:
    """Stretches of lines between empty ones."""
    position, lines, size = 0, [], 0
    for record in _lines_with_empty(stream):
        if record.strip() and size < MAX_RECORD_BYTES:
            lines.append(record)
            size += len(record)
        elif lines:
            yield RawRecord(position, b"".join(lines), size)
            position, lines, size = position + 1, [record] if record.strip() else [], len(record)
    if lines:
        yield RawRecord(position, b"".join(lines), size)


def _lines_with_empty(stream: BinaryIO) -> Iterator[bytes]:
    first = True
    while line := stream.readline(MAX_RECORD_BYTES):
        yield _without_mark(line, 0) if first else line
        first = False


def cut_bytes(stream: BinaryIO, max_bytes: int) -> Iterator[RawRecord]:
    """The whole stream as one record, or as parts of at most `max_bytes` that end at a line end where there is one."""
    offset, part, rest = 0, 0, b""
    while data := rest + stream.read(max_bytes - len(rest)):
        more = len(data) == max_bytes and bool(following := stream.read(1))
        end = cut_position(data) if more else len(data)
        value = _without_mark(data[:end], part)
        yield RawRecord(0, value, end, offset, part if more or part else None)
        offset, part, rest = offset + end, part + 1, data[end:] + (following if more else b"")


def cut_position(data: bytes) -> int:
    """Where to cut: after the last line end, else before the last character that may be incomplete."""
    end = data.rfind(b"\n") + 1
    if end:
        return end
    end = len(data)
    while end > len(data) - 4 and end > 1 and data[end - 1] & 0xC0 == 0x80:
        end -= 1
    return end - 1 if end > 1 and data[end - 1] >= 0xC0 else len(data)


def _table_rows(path: Path) -> Iterator[RawRecord]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with _seekable(path) as stream, pq.ParquetFile(stream) as table:
            groups = [table.metadata.row_group(index) for index in range(table.num_row_groups)]
            row_bytes = sum(group.total_byte_size for group in groups) // max(1, table.metadata.num_rows)
            batch_size = max(1, min(4096, _TABLE_BATCH_BYTES // max(1, row_bytes)))
            position = 0
            for batch in table.iter_batches(batch_size=batch_size):
                for row in batch.to_pylist():
                    yield RawRecord(position, row, row_size(row))
                    position += 1
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UnreadableFile(
            f"{path} is not a whole Parquet file ({str(error).splitlines()[0]}); "
            "fetch it again or take it out of the source's `path`"
        ) from error


def row_size(row: dict[str, Any]) -> int:
    """Characters of a row's strings: how much work it stands for."""
    return sum(len(value) for value in row.values() if isinstance(value, str)) + 1


@contextmanager
def _seekable(path: Path) -> Iterator[BinaryIO]:
    """Parquet is read from its end: a compressed file is unpacked to a temporary one first."""
    with open_bytes(path) as stream:
        if path.suffix.lower() not in COMPRESSIONS:
            yield stream
            return
        with tempfile.TemporaryFile() as unpacked:
            shutil.copyfileobj(stream, unpacked, _CHUNK_BYTES)
            unpacked.seek(0)
            yield cast(BinaryIO, unpacked)
