"""Reads files by a function of the user's own (`data.sources.N.reader`)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO

from configs.safety.user_code import UserCode
from data_prep.readers.records import RawRecord, Reading, dropped, row_size


def bind_reader(code: UserCode) -> Any:
    """The reader as a function of the stream alone.

    Raises:
        ValueError: when the code cannot be loaded or is not called like this.
    """
    code.check_call("stream")
    return partial(code.load(), **code.options)


def custom_records(stream: BinaryIO, reading: Reading) -> Iterator[RawRecord]:
    """The records that `reading.reader` finds in a file.

    Args:
        stream: the file's bytes, decompressed.
        reading: its `reader` gives texts (`str`, or `bytes` of UTF-8) or the fields of a row (`dict`).

    Raises:
        TypeError: for a record of another type. As any other error of the reader, it ends the file as `damaged_file`,
            and what was read before it stays.
    """
    assert reading.reader is not None
    for position, value in enumerate(reading.reader(stream)):
        if isinstance(value, str):
            value = value.encode("utf-8", errors="surrogatepass")
        if not isinstance(value, (bytes, dict)):
            raise TypeError(f"the reader gave a {type(value).__name__}; it gives str, bytes or dict")
        size = len(value) if isinstance(value, bytes) else row_size(value)
        if size > reading.record_bytes:
            yield dropped("record_too_long", size, position)
        else:
            yield RawRecord(position, value, size)
