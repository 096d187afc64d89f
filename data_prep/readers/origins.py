"""Lists the origins of a source: files, or pieces of a hub dataset, each read from start to end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.common.stores import is_url, protocol_of
from configs.safety.user_code import UserCode
from configs.schema.data import Limits
from configs.schema.sources import Source
from data_prep.readers import check_format, read_records, row_size
from data_prep.readers.custom import bind_reader
from data_prep.readers.records import RawRecord, Reading
from data_prep.sources.file_lists import source_files
from data_prep.sources.places import Location, size_of
from data_prep.sources.unreadable import UnreadableFile, concerns_one, describe


@dataclass(frozen=True)
class Origin:
    """A file, or one of the pieces that a hub dataset comes in: what one reader reads from start to end."""

    source: Source
    name: str
    place: Location | None = None
    index: int = 0
    count: int = 1
    reader: UserCode | None = None  # of the source

    @property
    def path(self) -> Path | None:
        """Path of a local file; else None."""
        return self.place if isinstance(self.place, Path) else None

    @property
    def size(self) -> int:
        """Bytes at rest; 0 where unknown."""
        return size_of(self.place) if self.place else 0

    def records(self, max_part_bytes: int, limits: Limits | None = None) -> Iterator[RawRecord]:
        """Its records, no more than the source's `max_documents` and `max_bytes` allow.

        Raises:
            UnreadableFile: for a URL that cannot be reached, after several tries.
        """
        reader = bind_reader(self.reader) if self.reader else None
        reading = Reading.of(self.source, max_part_bytes, limits or Limits(), reader)
        records = read_records(self.place, reading) if self.place else _hub_records(self)
        size = 0
        for record in records:
            if self.source.max_documents is not None and record.position >= self.source.max_documents:
                return
            yield record
            size += record.size
            if self.source.max_bytes is not None and size >= self.source.max_bytes:
                return


def origins(source: Source) -> list[Origin]:
    """The origins of a source, in order. Their names do not depend on where the files lie.

    Raises:
        ValueError: when a path matches nothing, a file's ending is not known, or the source's reader may not run.
    """
    if source.hub is None:
        files = source_files(source)
        if source.reader is not None:
            reader = UserCode.read(source.reader.code, source.reader.options).allowed(f"source {source.name}: reader")
            bind_reader(reader)  # what is wrong with it is said before the work
            return [Origin(source, name, file, reader=reader) for name, file in files]
        for _, file in files:
            check_format(file, source.format)
        return [Origin(source, name, file) for name, file in files]
    assert source.hub is not None
    count = _hub_dataset(source).num_shards
    return [
        Origin(source, f"{source.hub.path}/{source.hub.split}-{index}", None, index, count) for index in range(count)
    ]


def _hub_dataset(source: Source) -> Any:
    import datasets

    assert source.hub is not None
    hub = source.hub
    for place in [hub.path, *(hub.data_files or [])]:  # `datasets` hands URLs on to fsspec
        if is_url(place) or "::" in place:
            protocol_of(place)
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(
            hub.path, hub.name, split=hub.split, data_files=hub.data_files, revision=hub.revision, streaming=True
        )
    except Exception as error:  # the library raises dozens of types; all mean that there is no such data here
        raise ValueError(
            f"source {source.name}: datasets.load_dataset({hub.path!r}) failed ({type(error).__name__}: {error}); "
            "check `hub.path`, `name`, `split` and the network"
        ) from error


def _hub_records(origin: Origin) -> Iterator[RawRecord]:
    dataset = _hub_dataset(origin.source)
    if origin.count > 1:
        dataset = dataset.shard(num_shards=origin.count, index=origin.index)
    position = -1
    try:
        for position, row in enumerate(dataset):
            yield RawRecord(position, row, row_size(row))
    except Exception as error:  # the library's streams end at an error, and cannot go on behind it
        if isinstance(error, OSError) and not concerns_one(error):
            raise
        raise UnreadableFile(
            f"source {origin.source.name}: {origin.name} cannot be read behind row {position} ({describe(error)}); "
            "take out what is damaged, or set the source's `max_documents`"
        ) from error
