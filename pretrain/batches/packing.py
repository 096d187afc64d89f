"""Packs documents side by side into windows (best fit), cut only where one is longer than a window.

Ding et al., "Fewer truncations improve language modeling" (arXiv:2404.10830). Documents are cut into pieces of at most
a window; a piece goes into the fullest window that still has room for it, longest pieces first. What room is left is
padding. Pieces are packed in batches along the stream, so that memory does not grow with it.

The packing is a pure function of the shards and the window's length. It is computed once and kept beside the data, as
arrays that are mapped into memory: 10 bytes a piece and 8 a window. Free of torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.common.files import atomic_directory, fingerprint, read_json, write_json
from configs.common.progress import progress_bar
from data_prep.tokens.shards import DataManifest, ShardIndex, SourceShards, TokenStream

Int64 = NDArray[np.int64]

DIRECTORY = "packing"
PACKING_VERSION = 1  # raise it when the same shards come to mean other windows: a run cannot go on across that
PACKING_BATCH = 2**20
# Documents are looked at so many at a time, or fewer where they are long.
_READ_DOCUMENTS, _READ_TOKENS = 2**16, 2**27
_SUMMARY = "packing.json"


@dataclass(frozen=True)
class Packing:
    """The windows of one source. A piece covers targets; its inputs are the tokens one place before them."""

    starts: Int64  # (pieces,) first token of each in the stream
    lengths: NDArray[np.unsignedinteger[Any]]  # (pieces,) tokens
    offsets: Int64  # (windows + 1,) first piece of each window
    context: int
    documents: int
    cut_documents: int  # longer than a window
    cut_by_windows: int  # that lie in more than one window where the stream is cut without regard to them
    tokens: int

    @property
    def windows(self) -> int:
        """Windows an epoch has."""
        return max(0, len(self.offsets) - 1)

    @property
    def utilisation(self) -> float:
        """The share of positions that is not padding."""
        return self.tokens / max(1, self.windows * self.context)

    def pieces(self, window: int) -> list[tuple[int, int]]:
        """(start, length) of each piece of a window, in order."""
        rows = slice(*self.offsets[window : window + 2].tolist())
        return list(zip(self.starts[rows].tolist(), self.lengths[rows].tolist(), strict=True))


def best_fit(lengths: Int64, capacity: int) -> Int64:
    """The bin of each piece, (n,), by best-fit decreasing: the fullest bin with room, or a new one.

    `lengths` (n,) from 1 to `capacity`. Pieces of one length go into all bins with one room at once: the fullest bin
    that takes a piece stays the fullest one until it takes no more. So time is at most a few steps for each pair of
    length and room, whatever n.

    For example pieces of 5, 3, 3 and 2 tokens in bins of 8, longest first; `some` are the rooms that bins have:

        5     no bin is open: bin 0, room 3                                         some = {3}
        3     fits best into bin 0, which is full with it                           some = {}
        3     no bin has room: bin 1, room 5                                        some = {5}
        2     `some >> 2` has its lowest bit at 3, so the least room is 2 + 3 = 5: bin 1, room 3
    """
    order = np.argsort(-lengths, kind="stable")
    sizes, counts = np.unique(lengths, return_counts=True)
    rooms: list[list[int]] = [[] for _ in range(capacity + 1)]  # bins by the room they have
    some = 0  # bit r: some bin has room r
    opened = 0
    chosen: list[int] = []  # bin of each piece, longest first

    def put(bins: list[int], room: int) -> None:
        nonlocal some
        if room and bins:
            rooms[room] += bins
            some |= 1 << room

    for size, left in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while left:
            fitting = some >> size
            # The lowest bit that is set: the least room that is enough.
            room = size + (fitting & -fitting).bit_length() - 1 if fitting else capacity
            each = room // size
            bins = -(-left // each)
            if fitting:
                taken = rooms[room][-bins:]
                del rooms[room][-bins:]
                if not rooms[room]:
                    some ^= 1 << room
            else:
                taken = list(range(opened, opened + bins))
                opened += bins
            full = min(len(taken), left // each)  # bins that take as many pieces as they can; one more takes the rest
            chosen += taken[:full] if each == 1 else np.repeat(taken[:full], each).tolist()
            put(taken[:full], room - each * size)
            left -= full * each
            if full < len(taken):
                chosen += taken[full:] * left
                put(taken[full:], room - left * size)
                left = 0
    found = np.empty(len(lengths), dtype=np.int64)
    found[order] = chosen
    return found


# ------------------------------------------------------------------------------------------------------------ on disk
def _directory(data: DataManifest, source: SourceShards, context: int) -> Path:
    key = fingerprint([data.fingerprint, source.name, source.tokens, context, PACKING_VERSION, PACKING_BATCH])
    return data.directory / DIRECTORY / f"best-fit-{context}-{key[:16]}"


def is_packed(data: DataManifest, source: SourceShards, context: int) -> bool:
    """Whether the packing of a source lies beside the data already."""
    return (_directory(data, source, context) / _SUMMARY).is_file()


def load_packing(data: DataManifest, source: SourceShards, context: int) -> Packing:
    """The packing of a source, made first where it does not lie beside the data yet.

    Raises:
        ValueError: when it cannot be written there.
    """
    directory = _directory(data, source, context)
    if not (directory / _SUMMARY).is_file():
        try:
            with atomic_directory(directory) as temporary:
                write_json(temporary / _SUMMARY, _write(temporary, source, context))
        except PermissionError as error:
            raise ValueError(
                f"the packing of `{source.name}` cannot be written to {directory} ({error}); run `replica data` as "
                "someone who may, or use train.packing=stream"
            ) from error
    facts = read_json(directory / _SUMMARY)

    def mapped(name: str, kind: Any) -> Any:
        file = directory / name
        return np.memmap(file, kind, mode="r") if file.stat().st_size else np.zeros(0, kind)

    return Packing(
        mapped("starts", "<i8"), mapped("lengths", _length_type(context)), mapped("offsets", "<i8"), context, **facts
    )


def _length_type(context: int) -> str:
    return "<u2" if context < 2**16 else "<u4"


def _write(directory: Path, source: SourceShards, context: int) -> dict[str, int]:
    """Writes the arrays of a packing, one batch after the other; returns what `Packing` counts."""
    facts = {"documents": 0, "cut_documents": 0, "cut_by_windows": 0, "tokens": 0}
    pieces = 0
    with ExitStack() as stack:
        starts, lengths, offsets = (stack.enter_context((directory / n).open("wb")) for n in _ARRAYS)
        bar = stack.enter_context(progress_bar(f"packing {source.name}", source.tokens))
        offsets.write(np.zeros(1, "<i8").tobytes())

        def write(piece_starts: Int64, piece_lengths: Int64, in_window: Int64) -> None:
            nonlocal pieces
            starts.write(piece_starts.astype("<i8").tobytes())
            lengths.write(piece_lengths.astype(_length_type(context)).tobytes())
            offsets.write((pieces + np.cumsum(in_window)).astype("<i8").tobytes())
            pieces += len(piece_starts)

        waiting: list[tuple[Int64, Int64]] = []  # ends of documents, and documents shorter than a window
        for begins, sizes in _documents(source):
            whole, rest = np.divmod(sizes, context)
            numbers = np.arange(whole.sum()) - np.repeat(np.cumsum(whole) - whole, whole)
            write(np.repeat(begins, whole) + numbers * context, np.full(len(numbers), context), np.ones_like(numbers))
            waiting.append(((begins + whole * context)[rest > 0], rest[rest > 0]))
            if sum(len(part) for part, _ in waiting) >= PACKING_BATCH:
                write(*_packed(waiting, context))
                waiting = []
            facts["documents"] += len(sizes)
            facts["tokens"] += int(sizes.sum())
            facts["cut_documents"] += int((sizes > context).sum())
            first, last = np.maximum(begins - 1, 0), begins + sizes - 2
            facts["cut_by_windows"] += int((first // context != last // context).sum())
            bar.update(facts["tokens"])
        if waiting:
            write(*_packed(waiting, context))
    return facts


_ARRAYS = ("starts", "lengths", "offsets")


def _documents(source: SourceShards) -> Iterator[tuple[Int64, Int64]]:
    """First token in the stream, and tokens, of the documents that have any, some at a time."""
    stream = TokenStream(source.prefixes, source.name)
    for prefix, shard_start in zip(source.prefixes, stream.starts, strict=True):
        index = ShardIndex.open(prefix)
        row, width = 0, index.dtype.itemsize
        while row < index.documents:
            limit = int(index.pointers[row]) + _READ_TOKENS * width
            far = int(np.searchsorted(index.pointers[row : row + _READ_DOCUMENTS], limit))
            starts, sizes = index.rows(row, row + max(1, far))
            yield (shard_start + starts)[sizes > 0], sizes[sizes > 0]
            row += max(1, far)


def _packed(pieces: list[tuple[Int64, Int64]], context: int) -> tuple[Int64, Int64, Int64]:
    """Starts and lengths of the pieces in the order of their windows, and the pieces in each window."""
    starts, lengths = (np.concatenate(part) for part in zip(*pieces, strict=True))
    bins = best_fit(lengths, context)
    order = np.argsort(bins, kind="stable")
    return starts[order], lengths[order], np.bincount(bins)


def packing_lines(data: DataManifest, context: int) -> list[str]:
    """One line for each source that says how full its windows are and how many documents are cut, for the terminal."""
    lines = []
    for source in data.train:
        packing = load_packing(data, source, context)
        count = max(1, packing.documents)
        lines.append(
            f"packing {source.name}: {packing.windows:,} windows, {packing.utilisation:.2%} full; "
            f"{packing.cut_documents / count:.2%} of {packing.documents:,} documents are cut "
            f"(by packing=stream: {packing.cut_by_windows / count:.2%})"
        )
    return lines
