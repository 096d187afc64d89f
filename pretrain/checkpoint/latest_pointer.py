"""Moves the `latest` pointer of a run to the checkpoint that was just committed or chosen."""

from __future__ import annotations

from pathlib import Path

from configs.common.files import write_text
from pretrain.checkpoint.manifest import LATEST


def point_latest_at(directory: Path) -> None:
    """Makes `checkpoints/latest` name this checkpoint, for people and for programs that are not ours."""
    pointer = directory.parent / LATEST
    if not pointer.is_file() or pointer.read_text(encoding="utf-8").strip() != directory.name:
        write_text(pointer, directory.name + "\n")
