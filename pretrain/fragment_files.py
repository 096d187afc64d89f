"""Pieces of parameters in safetensors files: each rank writes its own, anyone reads any range of any parameter."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from configs.files import content_identity, fsync_path
from pretrain.engine import Engine


def write_fragments(engine: Engine, directory: Path) -> dict[str, dict[str, Any]]:
    """Writes this rank's weights and moments; returns size and SHA-256 of each file by its name."""
    pieces = engine.own_fragments()
    tensors = {
        "weights": {f"{piece.name}@{piece.offset}": piece.weight for piece in pieces},
        "optimizer": {
            f"{key}/{piece.name}@{piece.offset}": moment for piece in pieces for key, moment in piece.moments.items()
        },
    }
    written = {}
    for kind, values in tensors.items():
        file = directory / f"{kind}-{engine.ranks.rank:05d}-of-{engine.ranks.count:05d}.safetensors"
        # Pieces are views into shared buffers, which safetensors refuses: one copy each, on the CPU.
        save_file({key: value.to("cpu", copy=True) for key, value in values.items()}, file)
        fsync_path(file)
        written[file.name] = content_identity(file)
    return written


class FragmentReader:
    """All files of one kind in a checkpoint, mapped and read by parameter and range."""

    def __init__(self, directory: Path, kind: str) -> None:
        self._directory = directory
        self._pieces: dict[str, list[tuple[int, int, Any]]] = defaultdict(list)  # name -> (offset, numel, slice)
        self._files: list[Any] = [
            safe_open(file, framework="pt") for file in sorted(directory.glob(f"{kind}-*.safetensors"))
        ]
        for file in self._files:
            for key in file.keys():  # noqa: SIM118 (no mapping)
                name, _, offset = key.rpartition("@")
                piece = file.get_slice(key)
                self._pieces[name].append((int(offset), piece.get_shape()[0], piece))

    def part(self, name: str, start: int, count: int) -> Tensor:
        """Numbers [start, start + count) of a flattened parameter, fp32; raises `ValueError` when some are missing."""
        values = torch.empty(count, dtype=torch.float32)
        filled = 0
        for offset, numel, piece in self._pieces[name]:
            first, last = max(start, offset), min(start + count, offset + numel)
            if first < last:
                values[first - start : last - start] = piece[first - offset : last - offset]
                filled += last - first
        if filled != count:
            raise ValueError(f"{self._directory}: {count - filled} of {count} numbers of `{name}` are missing")
        return values

    def whole(self, name: str, shape: list[int]) -> Tensor:
        """A whole parameter."""
        return self.part(name, 0, torch.Size(shape).numel()).view(shape)
