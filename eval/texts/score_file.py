"""Scores documents one by one with a model of a run: nats, tokens, bits per byte. Writes them as a Parquet file.

Documents are scored in batches. Each batch is a file beside the result until all are done, so that an interrupted
command goes on after the last whole batch, and memory holds one batch.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from configs.common.files import atomic_path, read_json, write_json
from configs.common.locks import locked
from configs.common.notices import say
from data_prep.selection.score_files import ScoredBy, hash_of_text, read_scored_by, schema_of
from data_prep.tokens.vocab import Vocab
from eval.likelihood.conventions import Convention
from eval.likelihood.perplexity import LostBytes, SetScores, score_texts
from eval.reading.reader import Reader
from eval.reading.windows import Report
from eval.texts.documents import Text, batched_texts

_HEAD = "scored_by.json"
_HASHES = "hash"


def score_to_file(
    texts: Iterator[Text],
    file: Path,
    reader: Reader,
    vocab: Vocab,
    scored_by: ScoredBy,
    report: Report | None = None,
) -> Path:
    """Scores documents in sliding windows, half the context new in each; writes FILE, whole or not at all.

    The first token of a document follows the begin token, and its end is not scored, as in a perplexity set.

    Args:
        texts: not empty; the same again when the command goes on.
        file: ends in .parquet; scores that it has are replaced.
        reader: asked for all log-likelihoods.
        vocab: of its model.
        scored_by: goes into the file.
        report: told the bytes of text that are scored.

    Raises:
        ValueError: when FILE is something else than scores, another process writes it, the tokenizer cannot represent a
            document, the model's logits are NaN, or there is no document.
    """
    check_target(file)
    how = Convention(reader.context_length, max(1, reader.context_length // 2))
    with _partial(file, scored_by) as directory:
        done, number = 0, 0
        for number, batch in enumerate(batched_texts(texts), start=1):
            part = directory / f"{number:06d}.parquet"
            hashes = [hash_of_text(text.text) for text in batch]
            size = sum(len(text.text.encode()) for text in batch)
            if not _holds(part, hashes):
                told = None if report is None else _Share(report, done, size)
                table = _table(batch, hashes, _scored(batch, reader, vocab, how, told), scored_by)
                _write(part, [table])
            done += size
            if report is not None:
                report(done)
        if not number:
            raise ValueError("there is no document to score: all files are empty")
        parts = [directory / f"{index:06d}.parquet" for index in range(1, number + 1)]
        _write(file, (pq.read_table(part, partitioning=None) for part in parts), schema_of(scored_by))
    shutil.rmtree(directory)
    return file


class _Share:
    """Reports a batch as a share of all bytes."""

    def __init__(self, report: Report, done: int, size: int) -> None:
        self._report, self._done, self._size = report, done, size

    def __call__(self, completed: float, note: str = "", total: float | None = None) -> None:
        self._report(self._done + self._size * completed / (total or math.inf), note)


def check_target(file: Path) -> None:
    """Raises `ValueError` for a file that is not to be written: of another kind, or with other content than scores."""
    if file.suffix != ".parquet":
        raise ValueError(f"--out {file}: scores are written as Parquet; give a name that ends in .parquet")
    if file.exists():
        try:
            read_scored_by(file)
        except ValueError as error:
            raise ValueError(f"--out {file} is there already and holds something else; choose another name") from error


@contextmanager
def _partial(file: Path, scored_by: ScoredBy) -> Iterator[Path]:
    """The directory of the batches; those of another model are removed. It stays after an error where it has any."""
    directory = file.with_name(f"{file.name}.partial")
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory / ".lock", f"another process writes {file}; wait for it, or choose another --out"):
        head = directory / _HEAD
        content = json.loads(json.dumps(asdict(scored_by)))
        old = sorted(directory.glob("*.parquet"))
        if old and (not head.is_file() or read_json(head) != content):
            for part in old:
                part.unlink()
        elif old:
            say(f"{file.name}: goes on after {len(old):,} batches of an interrupted command")
        write_json(head, content)
        try:
            yield directory
        except BaseException:
            if not any(directory.glob("*.parquet")):
                shutil.rmtree(directory)
            raise


def _holds(part: Path, hashes: Sequence[str]) -> bool:
    """Tells whether a batch has been scored: these texts, and no other ones."""
    if not part.is_file():
        return False
    return bool(pq.read_table(part, columns=[_HASHES], partitioning=None)[_HASHES].to_pylist() == list(hashes))


def _scored(batch: Sequence[Text], reader: Reader, vocab: Vocab, how: Convention, report: Report | None) -> SetScores:
    try:
        return score_texts(reader, vocab, [text.text for text in batch], how, report)
    except LostBytes as error:
        text = batch[error.document]
        raise ValueError(
            f"{text.file}: the tokenizer lacks characters of document {text.id}, so its bits per byte would be wrong; "
            "take the document out, or use a model whose tokenizer has all bytes"
        ) from error


def _table(batch: Sequence[Text], hashes: Sequence[str], scores: SetScores, scored_by: ScoredBy) -> pa.Table:
    nats, tokens = (
        np.bincount(scores.document, weights=column, minlength=len(batch)) for column in (scores.nats, scores.tokens)
    )
    sizes = np.array([len(text.text.encode()) for text in batch])
    columns: dict[str, Any] = {
        "id": [text.id for text in batch],
        "source": [text.source for text in batch],
        "file": [text.file for text in batch],
        _HASHES: hashes,
        "nats": nats,
        "tokens": tokens.astype(np.int64),
        "bytes": sizes,
        "characters": [len(text.text) for text in batch],
        "bits_per_byte": nats / math.log(2) / sizes,
    }
    schema = schema_of(scored_by)
    return pa.Table.from_arrays(
        [pa.array(columns[name], schema.field(name).type) for name in schema.names], schema=schema
    )


def _write(file: Path, tables: Any, schema: pa.Schema | None = None) -> None:
    with atomic_path(file) as temporary:
        tables = iter(tables)
        first = next(tables)
        with pq.ParquetWriter(temporary, schema or first.schema, compression="zstd") as writer:
            writer.write_table(first)
            for table in tables:
                writer.write_table(table)
