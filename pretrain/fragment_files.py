"""Pieces of parameters in safetensors files: each rank writes its own, anyone reads any range of any parameter."""

from __future__ import annotations

import errno
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from configs.files import fsync_path, sha256_file
from pretrain.partition import Fragment
from pretrain.ranks import Ranks


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


def write_pieces(tensors: dict[str, dict[str, Tensor]], directory: Path, ranks: Ranks) -> dict[str, dict[str, Any]]:
    """Writes a `HostCopy` to this rank's files; returns size and SHA-256 of each file by its name.

    Raises:
        OSError: when a file cannot be written.
    """
    written = {}
    for kind, values in tensors.items():
        file = directory / f"{kind}-{ranks.rank:05d}-of-{ranks.count:05d}.safetensors"
        try:
            save_file(values, file)
        except SafetensorError as error:  # how the library wraps a full disk
            raise OSError(errno.EIO, str(error), str(file)) from error
        fsync_path(file)
        written[file.name] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    return written


def _fill_rows(values: Tensor, piece: Any, offset: int, rows: int, width: int, stride: int) -> int:
    """Writes what of a piece of several rows belongs into `values`, from a number that may be negative; counts it."""
    first = max(0, (-offset - width) // stride + 1)
    last = min(rows, (len(values) - 1 - offset) // stride + 1)
    if first >= last:
        return 0
    at = offset + torch.arange(first, last).view(-1, 1) * stride + torch.arange(width)
    inside = (at >= 0) & (at < len(values))
    values[at[inside]] = piece[first:last][inside]
    return int(inside.sum())


class FragmentReader:
    """All files of one kind in a checkpoint, mapped and read by parameter and range."""

    def __init__(self, directory: Path, kind: str) -> None:
        self._directory = directory
        # name -> (offset, rows, width, numbers between the beginnings of rows, slice)
        self._pieces: dict[str, list[tuple[int, int, int, int, Any]]] = defaultdict(list)
        self._files: list[Any] = [
            safe_open(file, framework="pt") for file in sorted(directory.glob(f"{kind}-*.safetensors"))
        ]
        for file in self._files:
            for key in file.keys():  # noqa: SIM118 (no mapping)
                name, _, place = key.rpartition("@")
                offset, _, stride = place.partition("+")
                piece = file.get_slice(key)
                *rows, width = piece.get_shape()
                self._pieces[name].append((int(offset), *(rows or [1]), width, int(stride or width), piece))

    def part(self, name: str, start: int, count: int) -> Tensor:
        """Numbers [start, start + count) of a flattened parameter, fp32; raises `ValueError` when some are missing."""
        values = torch.empty(count, dtype=torch.float32)
        filled = 0
        for offset, rows, width, stride, piece in self._pieces[name]:
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

    def whole(self, name: str, shape: list[int]) -> Tensor:
        """A whole parameter."""
        return self.part(name, 0, torch.Size(shape).numel()).view(shape)
