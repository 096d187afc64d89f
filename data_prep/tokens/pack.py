"""Encodes the documents that stayed into token shards by split, and samples text for training the tokenizer.

Parts are encoded independently, then joined in order; a shard is closed with the part that brings it to
`data.shard_tokens`. So shards do not depend on who encoded what when.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from configs.common.files import atomic_path
from configs.schema.data import Data
from configs.schema.sources import Source
from data_prep.documents.document import parent_id
from data_prep.tokens.encode import Encode, segments, splitter, worker_encoder
from data_prep.tokens.shards import beside, write_index
from data_prep.workers.manifests import Count
from data_prep.workers.parts import read_part
from data_prep.workers.stage import Stage, describe_file
from data_prep.workers.verdicts import Part, dropped, remaining

SPLITS = ("train", "validation")
SIDECAR = pa.schema(
    [
        ("id", pa.string()),
        ("url", pa.string()),
        ("source", pa.string()),
        ("offset", pa.int64()),  # UTF-8 bytes before this part in the original text
        ("bytes", pa.int32()),  # of the normalised text as UTF-8
        ("tokens", pa.int32()),  # with the end-of-document id
        ("first_token", pa.int64()),  # position in the shard
    ]
)
_SAMPLE_CHARACTERS = 2**16
_COPY_BYTES = 4 * 2**20


def split_of(identifier: str, source: Source, validation_fraction: float) -> str:
    """`train` or `validation`: the source's own, else by a hash of the document's id (of the whole, for a part)."""
    if source.split != "hash":
        return source.split
    return "validation" if unit_interval(identifier.encode()) < validation_fraction else "train"


def unit_interval(data: bytes) -> float:
    """A number in [0, 1) that depends on the bytes alone."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest()) / 2**64


@dataclass(frozen=True)
class SplitPart:
    """One part of the documents, with the settings that decide the split of each."""

    stage: Stage
    data: Data
    source: Source
    part: Part

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
    for _, fields in remaining(task.part, ["id", "part", *columns]):
        whole = parent_id(fields["id"], fields["part"])
        yield split_of(whole, task.source, task.data.validation_fraction), fields


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
            yield row["text"]


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
    end = np.array([vocab.eod_id], dtype=dtype).tobytes()
    stage, name = task.part.stage, task.part.name
    rows: dict[str, list[tuple[Any, ...]]] = {split: [] for split in SPLITS}
    lost = Count()
    with ExitStack() as stack:
        streams: dict[str, Any] = {}
        for split, row in by_split(task.part, ["text", "url", "offset", "bytes"]):
            if split not in streams:
                path = stack.enter_context(atomic_path(stage.unit_file(name, f".{split}.bin")))
                streams[split] = stack.enter_context(path.open("wb"))
            ids = encode(row["text"])
            streams[split].write(ids + end)
            if not vocab.lossless and (gone := vocab.lost(row["text"], np.frombuffer(ids, dtype))):
                lost = lost.plus(1, gone)
            rows[split].append(
                (
                    row["id"],
                    row["url"],
                    task.part.source.name,
                    row["offset"],
                    row["bytes"],
                    len(ids) // dtype.itemsize + 1,
                )
            )
    content: dict[str, Any] = {"lost": lost} if lost.documents else {}
    for split, found in rows.items():
        if found:
            columns = [
                pa.array(column, kind.type) for column, kind in zip(zip(*found, strict=True), SIDECAR, strict=False)
            ]
            table = pa.Table.from_arrays(columns, names=SIDECAR.names[:-1])
            with atomic_path(stage.unit_file(name, f".{split}.parquet")) as temporary:
                pq.write_table(table, temporary, compression="zstd", compression_level=1)
            content[split] = {
                "documents": len(found),
                "bytes": sum(row[4] for row in found),
                "tokens": sum(row[5] for row in found),
            }
    if task.part.data.keep_dropped:
        content["dropped_tokens"] = _dropped_tokens(task.part.part, encode, dtype)
    stage.commit(name, content)


def _dropped_tokens(part: Part, encode: Encode, dtype: np.dtype[Any]) -> dict[str, int]:
    """Tokens of the documents that did not stay, by stage/reason, with their end-of-document ids."""
    tokens: dict[str, int] = defaultdict(int)
    aside = (
        (row["key"], row["text"])
        for _, table in read_part(part.documents, f"{part.name}.dropped", ["key", "text"])
        for row in table.to_pylist()
    )
    for key, text in chain(aside, dropped(part)):
        tokens[key] += len(encode(text)) // dtype.itemsize + 1
    return dict(tokens)


# ----------------------------------------------------------------------------------------------------------- assembling
@dataclass(frozen=True)
class ShardTask:
    """Join parts to one shard."""

    stage: Stage
    split: str
    shard: str  # its name
    parts: tuple[str, ...]
    bytes: int  # of the parts' text
    dtype: str
    token_bytes: np.ndarray | None  # of a vocabulary that loses nothing

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
    """Writes a shard's three files from its parts' files, commits it, and only then deletes those.

    Raises:
        ValueError: when the ids do not stand for as many bytes as the text has.
    """
    dtype = np.dtype(task.dtype)
    decoded = 0
    inputs = {
        suffix: [task.stage.unit_file(part, f".{task.split}{suffix}") for part in task.parts]
        for suffix in (".bin", ".parquet")
    }
    with atomic_path(beside(task.prefix, ".bin")) as temporary, temporary.open("wb") as stream:
        for file in inputs[".bin"]:
            with file.open("rb") as piece:
                while data := piece.read(_COPY_BYTES):
                    stream.write(data)
                    if task.token_bytes is not None:
                        decoded += int(task.token_bytes[np.frombuffer(data, dtype)].sum())
    lengths = []
    first = size = 0
    with (
        atomic_path(beside(task.prefix, ".parquet")) as temporary,
        pq.ParquetWriter(temporary, SIDECAR, compression="zstd", compression_level=1) as writer,
    ):
        for file in inputs[".parquet"]:
            table = pq.read_table(file, partitioning=None)
            tokens = table["tokens"].to_numpy().astype(np.int64)
            begins = first + np.cumsum(tokens) - tokens
            writer.write_table(table.append_column(SIDECAR.field("first_token"), pa.array(begins)))
            lengths.append(tokens)
            first += int(tokens.sum())
            size += int(table["bytes"].to_numpy().astype(np.int64).sum())
    if task.token_bytes is not None and decoded != size:
        raise ValueError(
            f"{task.prefix}: the tokens stand for {decoded} bytes of {size}; this is a fault of the encoder"
        )
    with atomic_path(beside(task.prefix, ".idx")) as temporary, temporary.open("wb") as stream:
        write_index(stream, np.concatenate(lengths), dtype)
    files = [beside(task.prefix, suffix) for suffix in (".bin", ".idx", ".parquet")]
    described = {file.relative_to(task.stage.directory).as_posix(): describe_file(file) for file in files}
    task.stage.commit(
        task.name, {"documents": sum(map(len, lengths)), "tokens": first, "bytes": size, "files": described}
    )
    for file in inputs[".bin"] + inputs[".parquet"]:
        file.unlink(missing_ok=True)
