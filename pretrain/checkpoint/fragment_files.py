"""Writes each rank's pieces of parameters to safetensors files; reads any range of any parameter back."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from configs.common.files import fsync_path, sha256_file
from pretrain.parallel.fragments import Fragment
from pretrain.parallel.ranks import Ranks


class HostCopy:
    """Copies of this rank's pieces in host memory, in buffers that the next copy uses again.

    Weights and moments in fp32: for AdamW 12 bytes for each number that this rank keeps. There is one copy at a time.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, dict[str, Tensor]] = {}

    def take(self, pieces: list[Fragment]) -> dict[str, dict[str, Tensor]]:
        """Copies `pieces` as they are now: kind of file -> name in it -> fp32 on the CPU."""
        tensors = {
            "weights": {piece.key: piece.weight for piece in pieces},
            "optimizer": {f"{key}/{piece.key}": values for piece in pieces for key, values in piece.moments.items()},
        }
        if {kind: list(values) for kind, values in tensors.items()} != {k: list(v) for k, v in self._buffers.items()}:
            self._buffers = {
                kind: {key: _host_like(value) for key, value in values.items()} for kind, values in tensors.items()
            }
        for kind, values in tensors.items():
            for key, value in values.items():
                self._buffers[kind][key].copy_(value, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self._buffers


def _host_like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)


def save_tensors(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file with the mode that the umask gives any other (the library's own is 0600).

    Raises:
        OSError: when it cannot be written; names the file.
    """
    file.touch()
    mode = file.stat().st_mode & 0o777
    try:
        save_file(tensors, file, metadata)
    except SafetensorError as error:  # how the library wraps a full disk
        raise OSError(errno.EIO, str(error), str(file)) from error
    file.chmod(mode)


def write_pieces(tensors: dict[str, dict[str, Tensor]], directory: Path, ranks: Ranks) -> dict[str, dict[str, Any]]:
    """Writes a `HostCopy` to this rank's files; returns size and SHA-256 of each file by its name.

    Raises:
        OSError: when a file cannot be written.
    """
    written = {}
    for kind, values in tensors.items():
        file = directory / f"{kind}-{ranks.rank:05d}-of-{ranks.count:05d}.safetensors"
        save_tensors(values, file)
        fsync_path(file)
        written[file.name] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    return written


def _fill_rows(values: Tensor, piece: Any, offset: int, rows: int, width: int, stride: int) -> int:
    """Copies the overlap of a strided piece into `values`; returns the number of elements copied."""
    first = max(0, (-offset - width) // stride + 1)
    last = min(rows, (len(values) - 1 - offset) // stride + 1)
    if first >= last:
        return 0
    at = offset + torch.arange(first, last).view(-1, 1) * stride + torch.arange(width)
    inside = (at >= 0) & (at < len(values))
    values[at[inside]] = piece[first:last][inside]
    return int(inside.sum())


class _Piece(NamedTuple):
    """A piece of a parameter: its key in a file, confirmed by its shape there."""

    offset: int  # of its first number in the flattened parameter
    rows: int
    width: int
    stride: int  # numbers between the beginnings of rows
    values: Any  # a slice of safetensors: nothing is read before it is asked for


class FragmentReader:
    """All files of one kind in a checkpoint, mapped and read by parameter and range."""

    def __init__(self, directory: Path, kind: str) -> None:
        """Reads the headers alone; raises `ValueError` when a file is not what was written."""
        self._directory = directory
        self._pieces: dict[str, list[_Piece]] = {}
        for path in sorted(directory.glob(f"{kind}-*.safetensors")):
            try:
                file: Any = safe_open(path, framework="pt")
            except Exception as error:  # safetensors and the file system raise different ones
                raise ValueError(f"{path} cannot be read as safetensors ({error}); use another checkpoint") from error
            for key in file.keys():  # noqa: SIM118 (no mapping)
                name, piece = _piece(path, key, file.get_slice(key))
                if piece.rows * piece.width:
                    self._pieces.setdefault(name, []).append(piece)

    def expect(self, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> None:
        """Compares names and sizes of parameters with what the files hold; nothing is read.

        Stops at the first that differs, so that `shapes` may come one at a time from settings that nobody has checked.

        Raises:
            ValueError: naming the first parameter that differs.
        """
        count = 0
        for name, shape in shapes:
            count += 1
            there = sum(piece.rows * piece.width for piece in self._pieces.get(name, []))
            if there != math.prod(shape):
                raise ValueError(
                    f"{self._directory}: its settings make `{name}` {' x '.join(map(str, shape))} numbers, its files "
                    f"hold {there:,}; they do not belong together, use another checkpoint"
                )
        if count != len(self._pieces):
            raise ValueError(
                f"{self._directory}: its settings make {count} parameters, its files hold {len(self._pieces)}; "
                "they do not belong together, use another checkpoint"
            )

    def part(self, name: str, start: int, count: int) -> Tensor:
        """Elements [start, start + count) of a flattened parameter, fp32; raises `ValueError` when some are missing."""
        pieces = self._pieces.get(name, [])
        there = sum(piece.rows * piece.width for piece in pieces)
        if there < count:  # before memory is asked for
            raise ValueError(f"{self._directory}: {count - there} of {count} numbers of `{name}` are missing")
        values = torch.empty(count, dtype=torch.float32)
        filled = 0
        for offset, rows, width, stride, piece in pieces:
            if rows > 1:
                filled += _fill_rows(values, piece, offset - start, rows, width, stride)
                continue
            first, last = max(start, offset), min(start + count, offset + width)
            if first < last:
                values[first - start : last - start] = piece[first - offset : last - offset]
                filled += last - first
        if filled != count:
            raise ValueError(f"{self._directory}: {count - filled} of {count} numbers of `{name}` are missing")
        return values

    def whole(self, name: str, shape: Sequence[int]) -> Tensor:
        """A whole parameter."""
        return self.part(name, 0, math.prod(shape)).view(*shape)


def _piece(file: Path, key: str, values: Any) -> tuple[str, _Piece]:
    """Parses a key `name@offset` or `name@offset+stride`, and compares it with the piece's shape."""
    name, _, place = key.rpartition("@")
    offset, plus, stride = place.partition("+")
    shape = values.get_shape()
    numbers = [offset, stride] if plus else [offset]
    if not name or not all(text.isascii() and text.isdecimal() and len(text) < 19 for text in numbers):
        raise ValueError(f"{file}: `{key}` names no piece of a parameter (name@offset); use another checkpoint")
    if not 1 <= len(shape) <= 2:
        raise ValueError(f"{file}: `{key}` has the shape {shape}, which no piece has; use another checkpoint")
    rows, width = [1, *shape][-2:]
    if (step := int(stride) if plus else width) < width:
        raise ValueError(f"{file}: `{key}` has rows of {width} numbers that overlap; use another checkpoint")
    return name, _Piece(int(offset), rows, width, step, values)
