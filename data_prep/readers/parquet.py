"""Reads rows of .parquet files as mappings from column to value."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, BinaryIO, cast

from data_prep.readers.records import Damage, RawRecord, Reading, dropped, row_size, unique
from data_prep.readers.streams import CHUNK_BYTES
from data_prep.sources.unreadable import concerns_one, describe

_BATCH_BYTES = 4 * 2**20
_BATCH_ROWS = 4096
# What the values of a batch may come to, should all be the longest of their dictionaries.
_HELD_BYTES = 64 * 2**20
_NUMBER_BYTES = 8
_LEAST_VALUE_BYTES = 4  # of a value in a list, as Arrow holds it with its levels
_MISSING = object()


def parquet_rows(stream: BinaryIO, reading: Reading, damage: Damage) -> Iterator[RawRecord]:
    """One record a row; a damaged row group is one `broken_record`, and the others are read.

    A value that Python cannot hold, such as a date in the year 12,000, is left out of its row; a string that is not
    UTF-8 comes with lone surrogates, which nothing lets pass as text.
    """
    import pyarrow as pa

    position = 0
    with _seekable(stream) as file:
        try:
            table = _Table(file)
        except Exception as error:
            if not _of_the_file(error, pa):
                raise
            damage.set("damaged_file", describe(error))
            return
        for group in range(table.groups):
            try:
                for piece in table.pieces(group, reading.record_bytes):
                    for record in _records(piece, position, reading, table.has_maps):
                        yield record
                        position += 1
            except Exception as error:
                if not _of_the_file(error, pa):
                    raise
                yield dropped("broken_record", 0, position, f"row group {group}: {describe(error)}")
                position += 1


def _of_the_file(error: Exception, pa: Any) -> bool:
    """Tells whether damage or a hostile size raised it: Arrow says that memory is short when a file claims too much."""
    return isinstance(error, pa.ArrowException) or concerns_one(error)


class _Table:
    """A file's row groups, in batches that are small whatever the file says about itself.

    Of a row group its own word is known, `total_byte_size`, in which a string of a dictionary counts once, however many
    rows refer to it: 357 bytes of file can stand for gigabytes. Where the dictionaries allow that, columns are read as
    Arrow's dictionary arrays, which are as small as the file, and are taken apart by what the rows really hold.
    """

    def __init__(self, file: BinaryIO) -> None:
        import pyarrow.parquet as pq

        self._file = file
        self._table = pq.ParquetFile(file)
        self._metadata = self._table.metadata
        columns = [self._metadata.schema.column(index) for index in range(self._metadata.num_columns)]
        self._strings = [
            column.path
            for column in columns
            if column.physical_type == "BYTE_ARRAY" and column.logical_type.type != "DECIMAL"
        ]
        # Columns that were dictionaries when they were written are so too, or Arrow refuses all for one bad string.
        written = [field.name for field in self._table.schema_arrow if "dictionary<" in str(field.type)]
        if own := [path for path in self._strings if any(f"{path}.".startswith(f"{name}.") for name in written)]:
            self._table = pq.ParquetFile(file, metadata=self._metadata, read_dictionary=own)
        self._repeated = {index for index, column in enumerate(columns) if column.max_repetition_level}
        self._fixed_bytes = sum(max(_NUMBER_BYTES, column.length or 0) for column in columns)
        self.groups: int = self._metadata.num_row_groups
        self.has_maps = "map<" in str(self._table.schema_arrow)

    def pieces(self, group: int, record_bytes: int) -> Iterator[Any]:
        """Record batches of some 4 MB, or of one row.

        Args:
            group: number of the row group.
            record_bytes: a row may not come to more.
        """
        metadata = self._metadata.row_group(group)
        rows = max(1, metadata.num_rows)
        values = sum(metadata.column(index).num_values for index in self._repeated)
        if values * _LEAST_VALUE_BYTES > rows * record_bytes:  # runs of one value: 600 bytes of file can be gigabytes
            raise ValueError(f"{values:,} values of lists in {rows:,} rows are more than rows may hold")
        row_bytes = max(1, metadata.total_byte_size // rows + self._fixed_bytes)
        size = max(1, min(_BATCH_ROWS, _BATCH_BYTES // row_bytes))
        table = self._table if self._most_bytes(group, size) <= _HELD_BYTES else self._as_dictionaries
        for batch in table.iter_batches(batch_size=size, row_groups=[group]):
            yield from _cut(batch)

    @cached_property
    def _as_dictionaries(self) -> Any:
        """The same file, its strings read as dictionary arrays."""
        import pyarrow.parquet as pq

        return pq.ParquetFile(self._file, metadata=self._metadata, read_dictionary=self._strings)

    def _most_bytes(self, group: int, rows: int) -> int:
        """What the strings of so many rows may come to, by the dictionaries that stand at the beginning of the group.

        Strings in lists may all be in one row.
        """
        if not self._strings or (self._metadata.row_group(group).num_rows < 2 and not self._repeated):
            return 0
        batches = self._as_dictionaries.iter_batches(
            batch_size=1, row_groups=[group], columns=self._strings, use_threads=False
        )
        columns = next(batches).columns
        counts = [self._metadata.row_group(group).column(index).num_values for index in self._repeated]
        return sum(
            longest * (max(counts, default=0) if in_list else rows)
            for column in columns
            for longest, in_list in _longest(column)
        )


def _longest(array: Any, in_list: bool = False) -> Iterator[tuple[int, bool]]:
    """Bytes of the longest string in each dictionary below an array, and whether it is that of a list's values."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(array.type):
        yield pc.max(pc.binary_length(array.dictionary)).as_py() or 0, in_list
    in_list = in_list or not (pa.types.is_struct(array.type) or isinstance(array, pa.ExtensionArray))
    for child in _children(array):
        yield from _longest(child, in_list)


def _children(array: Any) -> list[Any]:
    """The arrays that a nested one is made of, of its own rows alone."""
    import pyarrow as pa

    if isinstance(array, pa.ExtensionArray):
        return [array.storage]
    if pa.types.is_struct(array.type) or pa.types.is_union(array.type):
        return [array.field(index) for index in range(array.type.num_fields)]
    if pa.types.is_map(array.type):
        first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
        return [array.keys.slice(first, last - first), array.items.slice(first, last - first)]
    return [array.flatten()] if pa.types.is_nested(array.type) and hasattr(array, "flatten") else []


def _bytes_of(array: Any) -> int:
    """Bytes of all values, those of a dictionary as often as they are referred to."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_dictionary(kind):
        if not _is_text(kind.value_type):
            return len(array) * _NUMBER_BYTES
        return pc.sum(pc.binary_length(array.dictionary).take(array.indices)).as_py() or 0
    if _is_text(kind):
        return pc.sum(pc.binary_length(array)).as_py() or 0
    children = _children(array)
    return sum(map(_bytes_of, children)) if children else int(array.nbytes)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    known = (pa.types.is_string, pa.types.is_binary, pa.types.is_large_string, pa.types.is_large_binary)
    return any(is_kind(kind) for is_kind in known)


def _cut(batch: Any) -> Iterator[Any]:
    """The batch in pieces that are small, or have one row."""
    if batch.num_rows < 2 or sum(map(_bytes_of, batch.columns)) <= _BATCH_BYTES:
        yield batch
        return
    half = batch.num_rows // 2
    yield from _cut(batch.slice(0, half))
    yield from _cut(batch.slice(half))


# --------------------------------------------------------------------------------------------------------------- values
def _records(piece: Any, position: int, reading: Reading, has_maps: bool) -> Iterator[RawRecord]:
    if piece.num_rows == 1 and (size := sum(map(_bytes_of, piece.columns))) > reading.record_bytes:
        yield dropped("record_too_long", size, position)
        return
    for number, row in enumerate(_rows(piece), position):
        if has_maps:
            row = {name: _maps_as_dicts(value) for name, value in row.items()}
        size = row_size(row)
        if size > reading.record_bytes:
            yield dropped("record_too_long", size, number)
        else:
            yield RawRecord(number, row, size)


def _rows(piece: Any) -> list[dict[str, Any]]:
    names = unique(piece.schema.names)
    lists = list(map(_values, piece.columns))
    if not lists:
        return [{} for _ in range(piece.num_rows)]
    return [
        {name: value for name, value in zip(names, values, strict=True) if value is not _MISSING}
        for values in zip(*lists, strict=True)
    ]


def _values(array: Any) -> list[Any]:
    """The array's values as Python's; a value of a dictionary is made once."""
    import pyarrow as pa

    if pa.types.is_dictionary(array.type):
        indices = array.indices.to_pylist()
        known = {None: None, **{index: _value(array.dictionary[index]) for index in set(indices) - {None}}}
        return [known[index] for index in indices]
    try:
        values: list[Any] = array.to_pylist()
        return values
    except Exception as error:  # of one value: OverflowError, UnicodeDecodeError, ArrowInvalid, …
        if not _of_the_file(error, pa):
            raise
        return [_value(item) for item in array]


def _value(scalar: Any) -> Any:
    """A value as Python's; what it cannot hold is left out of structs and lists."""
    import pyarrow as pa

    if not scalar.is_valid:
        return None
    if isinstance(scalar, pa.DictionaryScalar):
        return _value(scalar.value)
    if isinstance(scalar, pa.ExtensionScalar):
        return _value(scalar.value)
    if isinstance(scalar, pa.StructScalar):
        fields = {scalar.type.field(index).name: _value(scalar[index]) for index in range(scalar.type.num_fields)}
        return {name: value for name, value in fields.items() if value is not _MISSING}
    if isinstance(scalar, pa.MapScalar):
        pairs = [(_value(entry[0]), _value(entry[1])) for entry in scalar.values]
        return [pair for pair in pairs if _MISSING not in pair]
    if isinstance(scalar, pa.ListScalar):
        return [value for value in map(_value, scalar.values) if value is not _MISSING]
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return scalar.as_buffer().to_pybytes().decode("utf-8", errors="surrogateescape")
    except Exception as error:
        if not _of_the_file(error, pa):
            raise
        return _MISSING


def _maps_as_dicts(value: Any) -> Any:
    """Arrow gives maps as lists of pairs; those whose keys are strings, each once, become mappings for dotted paths."""
    if isinstance(value, dict):
        return {name: _maps_as_dicts(item) for name, item in value.items()}
    if not isinstance(value, list):
        return value
    if value and all(isinstance(item, tuple) for item in value):
        keys = [key for key, _ in value]
        if all(isinstance(key, str) for key in keys) and len(set(keys)) == len(keys):
            return {key: _maps_as_dicts(item) for key, item in value}
        return [[key, _maps_as_dicts(item)] for key, item in value]
    return [_maps_as_dicts(item) for item in value]


@contextmanager
def _seekable(stream: BinaryIO) -> Iterator[BinaryIO]:
    """Parquet is read from its end: what cannot be wound back is copied to a temporary file first."""
    if stream.seekable():
        yield stream
        return
    with tempfile.TemporaryFile() as unpacked:
        while chunk := stream.read(CHUNK_BYTES):
            unpacked.write(chunk)
        unpacked.seek(0)
        yield cast(BinaryIO, unpacked)
