"""Reads and writes token shards: Megatron-LM's `.bin`/`.idx` pairs, Parquet sidecars, and their manifest.

`PREFIX.bin` holds the token ids of all documents, one after the other, little-endian. `PREFIX.idx` is Megatron-LM's
`MMapIndexedDataset` index (megatron/core/datasets/indexed_dataset.py, version 1). `PREFIX.parquet` has one row per
document: id, url, part offset and tokens. Every document ends with the end-of-document id, which its length includes.
Conversations, pairs and prompts have `PREFIX.kinds` too: one byte for each token, saying what it is.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from configs.common.files import read_json
from configs.common.layout import MANIFEST
from configs.schema.chat import Unit
from data_prep.tokens.vocab import Vocab

MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")  # magic, version, type code, sequences, document indices
_TYPE_CODES = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    6: np.float64,
    7: np.float32,
    8: np.uint16,
}
_CODES = {np.dtype(kind): code for code, kind in _TYPE_CODES.items()}
# Megatron-LM keeps a margin below 2**16 (DType.optimal_dtype).
_UINT16_LIMIT = 65500
KINDS = ".kinds"  # beside shards of conversations, pairs and prompts: one byte a token
_OPEN_FILES = 128


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Type of the ids in a `.bin`: uint16 below 65500 ids, int32 above (Megatron-LM's rule)."""
    return np.dtype(np.uint16 if vocab_size < _UINT16_LIMIT else np.int32)


def beside(prefix: Path, suffix: str) -> Path:
    """The file of a shard: prefix + `.bin`, `.idx` or `.parquet`."""
    return prefix.with_name(prefix.name + suffix)


# -------------------------------------------------------------------------------------------------------------- writing
def write_index(stream: BinaryIO, lengths: np.ndarray, dtype: np.dtype[Any]) -> None:
    """Writes a `.idx`.

    Args:
        stream: opened for binary writing.
        lengths: (documents,) tokens of each document.
        dtype: type of the ids in the `.bin`.
    """
    lengths = lengths.astype(np.int64)
    stream.write(_HEADER.pack(MAGIC, _VERSION, _CODES[dtype], len(lengths), len(lengths) + 1))
    stream.write(lengths.astype("<i4").tobytes())
    pointers = (np.cumsum(lengths) - lengths) * dtype.itemsize
    stream.write(pointers.astype("<i8").tobytes())
    stream.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())


# -------------------------------------------------------------------------------------------------------------- reading
@dataclass(frozen=True)
class ShardIndex:
    """The header of a `.idx`, and access to its arrays without reading them whole."""

    prefix: Path
    dtype: np.dtype[Any]
    documents: int

    @classmethod
    def open(cls, prefix: Path) -> ShardIndex:
        """Reads the header; raises `ValueError` for what is not a Megatron index, or shorter than it says."""
        file = beside(prefix, ".idx")
        if not file.is_file() or not beside(prefix, ".bin").is_file():
            raise ValueError(
                f"{prefix}: the shard needs both a .bin and a .idx; run `replica data RECIPE` to make it again"
            )
        with file.open("rb") as stream:
            header = stream.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(MAGIC):
            raise ValueError(
                f"{file} is not a Megatron index (wrong first bytes); run `replica data RECIPE` to make it again"
            )
        _, version, code, sequences, documents = _HEADER.unpack(header)
        if version != _VERSION or code not in _TYPE_CODES:
            raise ValueError(f"{file}: version {version} and type code {code} of a Megatron index are not known here")
        needed, found = _HEADER.size + 12 * sequences + 8 * documents, file.stat().st_size
        if found < needed:
            raise ValueError(
                f"{file} has {found:,} bytes, but {sequences:,} documents need {needed:,}: it was cut short or is "
                "damaged; run `replica data RECIPE` to make it again"
            )
        return cls(prefix, np.dtype(_TYPE_CODES[code]), sequences)

    def _array(self, dtype: str, start: int) -> np.ndarray:
        if not self.documents:
            return np.zeros(0, dtype)
        return np.memmap(beside(self.prefix, ".idx"), dtype, mode="r", offset=start, shape=(self.documents,))

    @property
    def lengths(self) -> np.ndarray:
        """(documents,) int32: tokens of each."""
        return self._array("<i4", _HEADER.size)

    @property
    def pointers(self) -> np.ndarray:
        """(documents,) int64: first byte of each in the `.bin`."""
        return self._array("<i8", _HEADER.size + 4 * self.documents)

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """First token in the shard and number of tokens of the documents `start` … `stop - 1`.

        Returns:
            Two arrays of shape (documents,), int64; fewer where the shard ends.

        Raises:
            ValueError: when the documents do not lie one after the other in the `.bin`, as the format has them.
        """
        stop, width = min(stop, self.documents), self.dtype.itemsize
        sizes = self.lengths[start:stop].astype(np.int64)
        begins = self.pointers[start : stop + 1].astype(np.int64)
        if stop == self.documents:
            begins = np.append(begins, beside(self.prefix, ".bin").stat().st_size)
        if (sizes < 0).any() or begins[0] < 0 or (np.diff(begins) != sizes * width).any() or (not start and begins[0]):
            raise self.damaged(start, stop)
        return begins[:-1] // width, sizes

    def damaged(self, start: int, stop: int) -> ValueError:
        """The error for documents that cannot be found in the `.bin`."""
        return ValueError(
            f"{beside(self.prefix, '.idx')}: documents {start:,} to {stop:,} do not lie one after the other in the "
            ".bin; the shard is damaged: run `replica data RECIPE` to make it again"
        )


@dataclass(frozen=True)
class DocumentSpan:
    """Tokens of one document: where they came from."""

    id: str
    source: str
    url: str | None
    offset_in_document: int  # tokens before the span
    tokens: int


class TokenStream:
    """All shards of one source and split as one stream of token ids.

    Opening costs one small read per shard; memory does not grow with the shards' size, for nothing is mapped: reads are
    `pread`s, safe from several threads and after a fork.

    Args:
        prefixes: shards in order.
        source: name repeated in `documents`.
        vocab_size: when given, an id at or above it raises `ValueError` (shards of another tokenizer).
    """

    def __init__(self, prefixes: Sequence[Path], source: str = "", vocab_size: int | None = None) -> None:
        self.prefixes = [Path(prefix) for prefix in prefixes]
        self.source = source
        self._vocab_size = vocab_size
        self._indexes = [ShardIndex.open(prefix) for prefix in self.prefixes]
        sizes = [beside(index.prefix, ".bin").stat().st_size // index.dtype.itemsize for index in self._indexes]
        self._borders: list[int] = [0, *accumulate(sizes)]  # first token of each shard, and the stream's length
        self._files: OrderedDict[tuple[int, str], int] = OrderedDict()

    @property
    def starts(self) -> list[int]:
        """The place of each shard's first token in the stream."""
        return self._borders[:-1]

    @property
    def length(self) -> int:
        """Tokens in the stream."""
        return self._borders[-1]

    def __len__(self) -> int:
        return self.length

    def read(self, start: int, count: int) -> np.ndarray:
        """(count,) int64: the tokens from position `start` on; raises `IndexError` beyond the end."""
        self._check(start, count)
        tokens = np.empty(count, dtype=np.int64)
        for shard, first, amount, position in self._pieces(start, count):
            tokens[position : position + amount] = self._read_shard(shard, first, amount)
        # Unsigned, a negative id is a large one: one pass sees both.
        if self._vocab_size is not None and count and not tokens.view(np.uint64).max() < self._vocab_size:
            raise ValueError(
                f"{self.prefixes[0].parent}: token id {tokens.max()} at position {start + int(tokens.argmax())}, but "
                f"the vocabulary has {self._vocab_size} ids: these shards belong to another tokenizer; "
                "run `replica data RECIPE`"
            )
        return tokens

    def kinds(self, start: int, count: int) -> np.ndarray:
        """(count,) uint8: the kind of each token from position `start` on, of shards that have `PREFIX.kinds`.

        Raises:
            ValueError: when there is none: these are documents, and no conversations.
        """
        self._check(start, count)
        kinds = np.empty(count, dtype=np.uint8)
        for shard, first, amount, position in self._pieces(start, count):
            kinds[position : position + amount] = self._read_file(shard, KINDS, np.dtype(np.uint8), first, amount)
        return kinds

    def documents(self, start: int, count: int) -> list[DocumentSpan]:
        """The documents that the tokens `start` … `start + count - 1` belong to, in order."""
        self._check(start, count)
        spans: list[DocumentSpan] = []
        for shard, first, amount, _ in self._pieces(start, count):
            spans += self._shard_documents(shard, first, amount)
        return spans

    def close(self) -> None:
        """Closes the files; reading opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}

    def _check(self, start: int, count: int) -> None:
        if start < 0 or count < 0 or start + count > self.length:
            raise IndexError(f"tokens {start}..{start + count} of a stream of {self.length}")

    def _pieces(self, start: int, count: int) -> list[tuple[int, int, int, int]]:
        """(shard, first token in it, tokens, position in the answer) of each stretch."""
        pieces = []
        shard = bisect_right(self._borders, start) - 1
        done = 0
        while done < count:
            first = start + done - self._borders[shard]
            amount = min(count - done, self._borders[shard + 1] - start - done)
            if amount > 0:
                pieces.append((shard, first, amount, done))
            done += max(amount, 0)
            shard += 1
        return pieces

    def _read_shard(self, shard: int, first: int, count: int) -> np.ndarray:
        return self._read_file(shard, ".bin", self._indexes[shard].dtype, first, count)

    def _read_file(self, shard: int, suffix: str, dtype: np.dtype[Any], first: int, count: int) -> np.ndarray:
        data = os.pread(self._descriptor(shard, suffix), count * dtype.itemsize, first * dtype.itemsize)
        if len(data) != count * dtype.itemsize:
            raise ValueError(f"{beside(self.prefixes[shard], suffix)} became shorter; run `replica data RECIPE` again")
        return np.frombuffer(data, dtype)

    def _descriptor(self, shard: int, suffix: str) -> int:
        key = shard, suffix
        if key not in self._files:
            if len(self._files) >= _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            file = beside(self.prefixes[shard], suffix)
            try:
                self._files[key] = os.open(file, os.O_RDONLY)
            except FileNotFoundError as error:
                raise ValueError(f"{file} is missing; run `replica data RECIPE` to make it") from error
        self._files.move_to_end(key)
        return self._files[key]

    def _shard_documents(self, shard: int, first: int, count: int) -> list[DocumentSpan]:
        index = self._indexes[shard]
        begins = index.pointers
        width = index.dtype.itemsize
        row = int(np.searchsorted(begins, first * width, side="right")) - 1
        last = int(np.searchsorted(begins, (first + count) * width, side="left"))
        placed, sizes = index.rows(max(row, 0), last)
        if not len(placed) or placed[0] > first or placed[-1] + sizes[-1] < first + count:
            raise index.damaged(row, last)  # pointers that do not rise were searched
        names = _sidecar_rows(beside(self.prefixes[shard], ".parquet"), max(row, 0), last)
        spans = []
        for begin, size, (identifier, url) in zip(placed.tolist(), sizes.tolist(), names, strict=True):
            end, start = begin + size, max(begin, first)
            spans.append(DocumentSpan(identifier, self.source, url, start - begin, min(end, first + count) - start))
        return spans


def _sidecar_rows(file: Path, start: int, stop: int) -> list[tuple[str, str | None]]:
    """(id, url) of the rows `start` … `stop - 1`; shards made elsewhere have no sidecar and get `document N`."""
    if not file.is_file():
        return [(f"document {row}", None) for row in range(start, stop)]
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(file)
    rows: list[tuple[str, str | None]] = []
    begin = 0
    for group in range(parquet.num_row_groups):
        end = begin + parquet.metadata.row_group(group).num_rows
        if begin < stop and start < end:
            table = parquet.read_row_group(group, columns=["id", "url"])
            part = table.slice(max(start - begin, 0), min(stop, end) - max(start, begin))
            rows += zip(part["id"].to_pylist(), part["url"].to_pylist(), strict=True)
        begin = end
    return rows


# ------------------------------------------------------------------------------------------------------------- manifest
@dataclass(frozen=True)
class SourceShards:
    """The shards of one source and split."""

    name: str
    weight: float | None
    prefixes: list[Path]
    tokens: int
    documents: int
    bytes: int  # UTF-8 bytes of normalised text


@dataclass(frozen=True)
class DataManifest:
    """Prepared data, as training and evaluation read it."""

    directory: Path
    fingerprint: str  # of the shards' contents and the tokenizer
    tokenizer: Path  # directory with tokenizer.json
    tokenizer_fingerprint: str
    vocab_size: int
    eod_id: int
    train: list[SourceShards]
    validation: list[SourceShards]
    funnel: list[dict[str, Any]]
    unit: Unit = "document"  # what the shards hold; a pair is two documents: chosen, rejected

    @cached_property
    def vocab(self) -> Vocab:
        """The tokenizer, read at the first use only."""
        return Vocab.load(self.tokenizer)


def load_manifest(data_directory: Path) -> DataManifest:
    """Reads the manifest of a prepared data directory.

    Raises:
        ValueError: when there is none, a shard is missing or has another size, or the tokenizer is not the one the
            shards were made with.
    """
    file = data_directory / MANIFEST
    if not file.is_file():
        raise ValueError(f"{data_directory} holds no prepared data (no {MANIFEST}); run `replica data RECIPE` first")
    content = read_json(file)
    unit: Unit = content.get("unit", "document")
    tokenizer = data_directory / "tokenizer"
    vocab = Vocab.load(tokenizer)
    if vocab.fingerprint != content["tokenizer_fingerprint"]:
        raise ValueError(
            f"{tokenizer} is not the tokenizer that the shards in {data_directory} were made with; "
            "run `replica data RECIPE` to make them again"
        )
    return DataManifest(
        directory=data_directory,
        fingerprint=content["fingerprint"],
        tokenizer=tokenizer,
        tokenizer_fingerprint=vocab.fingerprint,
        vocab_size=vocab.size,
        eod_id=vocab.eod_id,
        train=_load_sources(data_directory, content["splits"]["train"], unit),
        validation=_load_sources(data_directory, content["splits"]["validation"], unit),
        funnel=content["funnel"],
        unit=unit,
    )


def _load_sources(directory: Path, sources: list[dict[str, Any]], unit: Unit) -> list[SourceShards]:
    loaded = []
    for source in sources:
        for shard in source["shards"]:
            if unit != "document" and not (kinds := beside(directory / shard["prefix"], KINDS)).is_file():
                raise ValueError(f"{kinds} is missing; run `replica data RECIPE` again")
            file = beside(directory / shard["prefix"], ".bin")
            size = file.stat().st_size if file.is_file() else None
            if size != shard["bin_bytes"]:
                found = "missing" if size is None else f"{size} bytes long"
                raise ValueError(f"{file} is {found}, not {shard['bin_bytes']} bytes; run `replica data RECIPE` again")
        loaded.append(
            SourceShards(
                name=source["name"],
                weight=source["weight"],
                prefixes=[directory / shard["prefix"] for shard in source["shards"]],
                tokens=source["tokens"],
                documents=source["documents"],
                bytes=source["bytes"],
            )
        )
    return loaded
