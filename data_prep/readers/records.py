"""Defines raw records, and the settings that readers get."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

from configs.schema.chat import FIELDS
from configs.schema.data import Limits
from configs.schema.sources import Source

JSON_TYPE = "application/json"
CUSTOM = "custom"  # the format of files that code of the user's reads
MARKUP_TYPES = {"html": "text/html", "xml": "application/xml", "markdown": "text/markdown"}

_NUMBER_BYTES = 8

Raw = bytes | dict[str, Any]


@dataclass(frozen=True, slots=True)
class RawRecord:
    """One record as it stands in a file.

    `value` is the bytes of a text, a JSON object (`media_type` application/json) or a page, or the fields of a table's
    row; None means a record that is dropped for `reason`, of `size` bytes. `position` counts records of the file from
    0. The parts of a text too long for one record share the position and carry the byte `offset` they begin at.
    """

    position: int
    value: Raw | None
    size: int  # bytes in the file, decompressed: how much work it stands for
    offset: int = 0
    part: int | None = None
    media_type: str | None = None  # with its charset where one was stated
    name: str | None = None  # its own id: of a web page, of a sequence
    url: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    member: str | None = None  # of an archive, with the record's number in it
    detail: str = ""  # to `reason`, for people


@dataclass(frozen=True)
class Reading:
    """Settings for reading one file; `configs.schema.data` explains them."""

    format: str = "auto"
    members: str = "**"
    header: bool | None = None
    text_documents: Literal["file", "line", "paragraph"] = "file"
    max_part_bytes: int = 16_000_000
    record_bytes: int = 256 * 2**20
    expansion: float = 1000
    attempts: int = 3
    reader: Callable[[BinaryIO], Iterable[Any]] | None = None  # the user's own, for format `custom`
    fields: tuple[str, ...] = ()  # that are asked for: a first row of a table that has one names the columns

    @staticmethod
    def of(
        source: Source, max_part_bytes: int, limits: Limits, reader: Callable[[BinaryIO], Iterable[Any]] | None = None
    ) -> Reading:
        """The settings of a source; `reader`: its own, where it names one."""
        return Reading(
            CUSTOM if source.reader else source.format, source.members, source.header, source.text_documents,
            max_part_bytes, limits.record_bytes, limits.expansion, limits.attempts, reader,
            FIELDS.get(source.shape, tuple(source.text_fields)),
        )  # fmt: skip


@dataclass
class Damage:
    """Why a stream ended before its file was read to the end; shared by all layers that read one file."""

    reason: str | None = None  # truncated_file, damaged_file, expands_too_much
    detail: str = ""
    lost: int = 0  # bytes of the record that was cut by it
    holes: int = 0  # damaged gzip members after which reading went on
    garbage: int = 0  # bytes behind compressed data that is whole

    def set(self, reason: str, detail: object) -> None:
        """The first one counts: it is the cause of the others."""
        if self.reason is None:
            self.reason, self.detail = reason, str(detail)

    def records(self, **more: Any) -> Iterator[RawRecord]:
        """What is to be said of the file when it has been read."""
        if self.reason:
            yield dropped(self.reason, self.lost, detail=self.detail, **more)
        if self.garbage:
            yield dropped("trailing_garbage", self.garbage, detail="bytes behind compressed data that is whole", **more)


def dropped(reason: str, size: int, position: int = 0, detail: object = "", **more: Any) -> RawRecord:
    """A record of which only the reason is left."""
    return RawRecord(position, None, size, reason=reason, detail=str(detail), **more)


def row_size(row: dict[str, Any]) -> int:
    """Bytes of all values of a row (of strings the characters), however deep: how much work it stands for."""
    return 1 + _size(row.values())


def _size(values: Iterable[Any]) -> int:
    size = 0
    for value in values:
        if isinstance(value, (str, bytes)):
            size += len(value)
        elif isinstance(value, dict):
            size += _size(value.values())
        elif isinstance(value, (list, tuple)):
            size += _size(value)
        elif value is not None:
            size += getattr(value, "nbytes", _NUMBER_BYTES)
    return size


def unique(names: list[str]) -> list[str]:
    """Names of columns, the second `x` as `x.1`, the third as `x.2`; an empty one as its number."""
    found: dict[str, None] = {}
    for index, name in enumerate(names):
        base = name or str(index)
        count, new = 0, base
        while new in found or (count and new in names):
            count += 1
            new = f"{base}.{count}"
        found[new] = None
    return list(found)
