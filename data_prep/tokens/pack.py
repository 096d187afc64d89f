"""Encodes the documents that stayed into token shards by split, and samples text for training the tokenizer.

Parts are encoded independently, then joined in order; a shard is closed with the part that brings it to
`data.shard_tokens`. So shards do not depend on who encoded what when.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from configs.common.files import atomic_path
from configs.schema.chat import Unit
from configs.schema.data import Data
from configs.schema.sources import Source
from data_prep.tokens.encode import Encode, segments, splitter, worker_encoder
from data_prep.tokens.shards import KINDS, beside, write_index
from data_prep.tokens.splits import SPLITS, Split, unit_interval
from data_prep.tokens.unit_encoder import EARLIER_TURNS, Refused, UnitEncoder, unit_of_row
from data_prep.tokens.vocab import Vocab
from data_prep.workers.manifests import Count
from data_prep.workers.parts import read_part
from data_prep.workers.stage import Stage, describe_file
from data_prep.workers.verdicts import Part, dropped, remaining

SIDECAR = pa.schema(
    [
        ("id", pa.string()),
        ("url", pa.string()),
        ("source", pa.string()),
        ("offset", pa.int64()),  # UTF-8 bytes before this part in the original text
        ("bytes", pa.int32()),  # of the normalised text as UTF-8, without the source's prefix
        ("tokens", pa.int32()),  # with the prefix and the end-of-document id
        ("first_token", pa.int64()),  # position in the shard
    ]
)
# Of conversations, pairs and prompts there is more to say, and each token has a kind.
UNIT_SIDECAR = pa.schema([("reference", pa.string()), ("metadata", pa.string()), ("margin", pa.float64())])
_SAMPLE_CHARACTERS = 2**16
_COPY_BYTES = 4 * 2**20


def sidecar_schema(unit: Unit) -> pa.Schema:
    """Columns of the sidecar of such shards."""
    *first, place = SIDECAR
    return SIDECAR if unit == "document" else pa.schema([*first, *UNIT_SIDECAR, place])


def shard_suffixes(unit: Unit) -> tuple[str, ...]:
    """Endings of the files that one shard of such units has."""
    return (".bin", ".idx", ".parquet") if unit == "document" else (".bin", ".idx", KINDS, ".parquet")


@dataclass(frozen=True)
class SplitPart:
    """One part of the documents, with the settings that decide the split of each."""

    stage: Stage
    data: Data
    source: Source
    part: Part
    unit: Unit = "document"
    room: int = 0  # tokens of the longest unit
    system: str | None = None  # text of a system message for units that have none

    @property
    def name(self) -> str:
        """Name of the part, and of its unit."""
        return self.part.name

    @property
    def bytes(self) -> float:
        """Bytes of the part's text."""
        return self.part.bytes


def by_split(task: SplitPart, columns: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(split, row) of the part's documents that stay, in order."""
    split = Split(task.source, task.data.validation_fraction, task.unit)
    for _, fields in remaining(task.part, split.with_needed(columns)):
        yield split(fields), fields


# --------------------------------------------------------------------------------------------------------------- sample
@dataclass(frozen=True)
class _OfPart:
    """A task over one part; its unit has the part's name."""

    part: SplitPart

    @property
    def name(self) -> str:
        """Name of the unit: that of the part."""
        return self.part.name

    @property
    def bytes(self) -> float:
        """Bytes of the part's text."""
        return self.part.part.bytes


@dataclass(frozen=True)
class SampleTask(_OfPart):
    """Take a sample of the training text of one part: `fraction` of its documents."""

    fraction: float


def sample_pieces(task: SampleTask) -> None:
    """Writes the part's share of the BPE training text, in chunks, without pieces longer than `max_piece_bytes`."""
    settings = task.part.data.tokenizer
    split, limit = splitter(settings.pattern), settings.max_piece_bytes
    file = task.part.stage.unit_file(task.part.name, ".parquet")
    schema = pa.schema([("text", pa.string())])
    with (
        atomic_path(file) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", compression_level=1) as writer,
    ):
        for text in _training_texts(task):
            chunks = [without_long(chunk, list(split(chunk)), limit) for chunk in segments(text, _SAMPLE_CHARACTERS)]
            writer.write_table(pa.table({"text": pa.array(chunks, pa.string())}))
    task.part.stage.commit(task.part.name, {})


def sample_characters(task: SampleTask) -> None:
    """Writes all characters of the part's training text."""
    alphabet = sorted(set().union(*map(set, _training_texts(task))))
    task.part.stage.commit(task.part.name, {"alphabet": "".join(alphabet)})


def _training_texts(task: SampleTask) -> Iterator[str]:
    for split, row in by_split(task.part, ["text"]):
        # Another hash than that of the split, or the sample would be taken from one end of it.
        if split == "train" and (task.fraction >= 1 or unit_interval(b"sample " + row["id"].encode()) < task.fraction):
            yield task.part.source.prefix + row["text"]


def without_long(chunk: str, pieces: list[str], limit: int) -> str:
    """The chunk without those of its pieces that are longer than `limit` bytes."""
    if max(map(len, pieces), default=0) * 4 <= limit:
        return chunk
    return "".join([piece for piece in pieces if len(piece) * 4 <= limit or len(piece.encode()) <= limit])


def sample_chunks(stage: Stage, parts: list[str]) -> Iterator[str]:
    """The chunks that `sample_pieces` wrote, in order."""
    for part in parts:
        with pq.ParquetFile(stage.unit_file(part, ".parquet")) as file:
            for group in range(file.num_row_groups):
                yield from file.read_row_group(group, use_threads=False)["text"].to_pylist()


# ------------------------------------------------------------------------------------------------------------- encoding
@dataclass(frozen=True)
class EncodeTask(_OfPart):
    """Encode one part."""

    tokenizer: str
    tokenizer_fingerprint: str
    dtype: str
    fast: bool


def encode_part(task: EncodeTask) -> None:
    """Writes the ids (`.SPLIT.bin`) and the sidecar rows (`.SPLIT.parquet`) of one part.

    Raises:
        ValueError: when the tokenizer changed meanwhile.
    """
    vocab, encode = worker_encoder(task.tokenizer, task.tokenizer_fingerprint, task.dtype, task.fast)
    dtype = np.dtype(task.dtype)
    with ExitStack() as stack:
        files = _PartFiles(task.part, dtype, stack)
        write = _write_documents if task.part.unit == "document" else _write_units
        content = write(task, vocab, encode, files)
    content |= files.finish()
    if task.part.data.keep_dropped:
        content["dropped_tokens"] = _dropped_tokens(task.part, encode, dtype)
    task.part.stage.commit(task.part.name, content)


class _PartFiles:
    """Files of one part by split: ids, kinds where there are some, and rows of the sidecar."""

    def __init__(self, part: SplitPart, dtype: np.dtype[Any], stack: ExitStack) -> None:
        self._part, self._stack = part, stack
        self.width = dtype.itemsize
        self._streams: dict[str, BinaryIO] = {}
        self._rows: dict[str, list[tuple[Any, ...]]] = {split: [] for split in SPLITS}

    def add(self, split: str, ids: bytes, row: dict[str, Any], size: int, kinds: bytes = b"", extra: Any = ()) -> None:
        """Appends a document; `ids` end with the end of document, `size` is the bytes that they stand for."""
        self._stream(f".{split}.bin").write(ids)
        if kinds:
            self._stream(f".{split}{KINDS}").write(kinds)
        start = (row["id"], row["url"], self._part.source.name, row["offset"], size, len(ids) // self.width)
        self._rows[split].append((*start, *extra))

    def _stream(self, suffix: str) -> BinaryIO:
        if suffix not in self._streams:
            path = self._stack.enter_context(atomic_path(self._part.stage.unit_file(self._part.name, suffix)))
            self._streams[suffix] = self._stack.enter_context(path.open("wb"))
        return self._streams[suffix]

    def finish(self) -> dict[str, Any]:
        """Writes the sidecars; returns the totals of each split that has documents."""
        content: dict[str, Any] = {}
        schema = sidecar_schema(self._part.unit)
        for split, found in self._rows.items():
            if not found:
                continue
            columns = [
                pa.array(column, kind.type) for column, kind in zip(zip(*found, strict=True), schema, strict=False)
            ]
            table = pa.Table.from_arrays(columns, names=schema.names[:-1])
            with atomic_path(self._part.stage.unit_file(self._part.name, f".{split}.parquet")) as temporary:
                pq.write_table(table, temporary, compression="zstd", compression_level=1)
            content[split] = {
                "documents": len(found),
                "bytes": sum(row[4] for row in found),
                "tokens": sum(row[5] for row in found),
            }
        return content


def _write_documents(task: EncodeTask, vocab: Vocab, encode: Encode, files: _PartFiles) -> dict[str, Any]:
    dtype = np.dtype(task.dtype)
    end = np.array([vocab.eod_id], dtype=dtype).tobytes()
    lost = Count()
    for split, row in by_split(task.part, ["text", "url", "offset", "bytes"]):
        text = task.part.source.prefix + row["text"]
        ids = encode(text)
        files.add(split, ids + end, row, row["bytes"])
        if not vocab.lossless and (gone := vocab.lost(text, np.frombuffer(ids, dtype))):
            lost = lost.plus(1, gone)
    return {"lost": lost} if lost.documents else {}


def _write_units(task: EncodeTask, vocab: Vocab, encode: Encode, files: _PartFiles) -> dict[str, Any]:
    """As `_write_documents`; what is refused, and what stays, is counted in units of text for the funnel."""
    dtype, unit = np.dtype(task.dtype), task.part.unit
    part = task.part
    encoder = UnitEncoder(vocab, unit, part.room, part.system, lambda text: np.frombuffer(encode(text), dtype).tolist())
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])  # units, bytes of their text, tokens
    lost = Count()

    def count(key: str, *numbers: int) -> None:
        counts[key] = [have + more for have, more in zip(counts[key], numbers, strict=True)]

    for split, row in by_split(task.part, ["text", "url", "offset", "bytes", "metadata"]):
        try:
            documents, stored = encoder(unit_of_row(unit, row["metadata"]))
        except Refused as refused:
            count(str(refused), 1, row["bytes"], 0)
            continue
        size = len(stored.text.encode())
        if size != row["bytes"]:
            count(EARLIER_TURNS, 0, row["bytes"] - size, 0)
        count(split, 1, size, sum(len(document.rendered.ids) for document in documents))
        for document in documents:
            content = "".join(document.contents)
            ids = np.array(document.rendered.ids, dtype=dtype)
            kinds = bytes(document.rendered.kinds)
            files.add(split, ids.tobytes(), row, len(content.encode()), kinds, document.row)
            if not vocab.lossless and (gone := vocab.lost(content, ids)):
                lost = lost.plus(1, gone)
    return {"units": dict(counts), **({"lost": lost} if lost.documents else {})}


def _dropped_tokens(task: SplitPart, encode: Encode, dtype: np.dtype[Any]) -> dict[str, int]:
    """Tokens of the documents that did not stay, by stage/reason, with prefixes and end-of-document ids."""
    part = task.part
    tokens: dict[str, int] = defaultdict(int)
    aside = (
        (row["key"], row["text"])
        for _, table in read_part(part.documents, f"{part.name}.dropped", ["key", "text"])
        for row in table.to_pylist()
    )
    for key, text in chain(aside, dropped(part)):
        tokens[key] += len(encode(task.source.prefix + text)) // dtype.itemsize + 1
    return dict(tokens)


# ----------------------------------------------------------------------------------------------------------- assembling
@dataclass(frozen=True)
class ShardTask:
    """Join parts to one shard."""

    stage: Stage
    split: str
    shard: str  # its name
    parts: tuple[str, ...]
    bytes: int  # of the parts' text, without prefixes
    dtype: str
    token_bytes: np.ndarray | None  # of a vocabulary that loses nothing
    unit: Unit = "document"
    tag_bytes: int = 0  # of the source's prefix before each document

    @property
    def prefix(self) -> Path:
        """The shard's files without their endings."""
        return self.stage.directory / self.split / self.shard

    @property
    def name(self) -> str:
        """Name of the unit."""
        return f"shard.{self.split}.{self.shard}"


def plan_shards(counts: dict[str, int], shard_tokens: int) -> list[tuple[str, ...]]:
    """Groups parts in order; a group is closed when it has `shard_tokens` tokens.

    Args:
        counts: tokens of each part, in order; parts without any are left out.
        shard_tokens: `data.shard_tokens`.
    """
    groups: list[list[str]] = []
    tokens = shard_tokens
    for part, count in counts.items():
        if not count:
            continue
        if tokens >= shard_tokens:
            groups.append([])
            tokens = 0
        groups[-1].append(part)
        tokens += count
    return [tuple(group) for group in groups]


def assemble_shard(task: ShardTask) -> None:
    """Writes a shard's files from its parts' files, commits it, and only then deletes those.

    Raises:
        ValueError: when the ids do not stand for as many bytes as the text has.
    """
    dtype = np.dtype(task.dtype)
    decoded = 0
    inputs = {
        suffix: [task.stage.unit_file(part, f".{task.split}{suffix}") for part in task.parts]
        for suffix in shard_suffixes(task.unit)
        if suffix != ".idx"
    }
    with atomic_path(beside(task.prefix, ".bin")) as temporary, temporary.open("wb") as stream:
        for file in inputs[".bin"]:
            with file.open("rb") as piece:
                while data := piece.read(_COPY_BYTES):
                    stream.write(data)
                    if task.token_bytes is not None:
                        decoded += int(task.token_bytes[np.frombuffer(data, dtype)].sum())
    if KINDS in inputs:
        with atomic_path(beside(task.prefix, KINDS)) as temporary, temporary.open("wb") as stream:
            for file in inputs[KINDS]:
                with file.open("rb") as piece:
                    shutil.copyfileobj(piece, stream, _COPY_BYTES)
    lengths = []
    first = size = 0
    schema = sidecar_schema(task.unit)
    with (
        atomic_path(beside(task.prefix, ".parquet")) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", compression_level=1) as writer,
    ):
        for file in inputs[".parquet"]:
            table = pq.read_table(file, partitioning=None)
            tokens = table["tokens"].to_numpy().astype(np.int64)
            begins = first + np.cumsum(tokens) - tokens
            writer.write_table(table.append_column(schema.field("first_token"), pa.array(begins)))
            lengths.append(tokens)
            first += int(tokens.sum())
            size += int(table["bytes"].to_numpy().astype(np.int64).sum())
    expected = size + task.tag_bytes * sum(map(len, lengths))
    if task.token_bytes is not None and decoded != expected:
        raise ValueError(
            f"{task.prefix}: the tokens stand for {decoded} bytes of {expected}; this is a fault of the encoder"
        )
    with atomic_path(beside(task.prefix, ".idx")) as temporary, temporary.open("wb") as stream:
        write_index(stream, np.concatenate(lengths), dtype)
    files = [beside(task.prefix, suffix) for suffix in shard_suffixes(task.unit)]
    described = {file.relative_to(task.stage.directory).as_posix(): describe_file(file) for file in files}
    task.stage.commit(
        task.name, {"documents": sum(map(len, lengths)), "tokens": first, "bytes": size, "files": described}
    )
    for file in chain.from_iterable(inputs.values()):
        file.unlink(missing_ok=True)
