"""Checks that a run directory holds only files and directories: no links, named pipes, sockets or devices."""

from __future__ import annotations

import os
from pathlib import Path

# Weights & Biases keeps links of its own in there.
_FOREIGN = {"wandb"}


def refuse_links(directory: Path) -> None:
    """Refuses links in a run or data directory. An archive from somebody else may contain some.

    Through a link, a command would overwrite, or read and show, another file of the user who runs it.

    Args:
        directory: its own path must be resolved; it need not exist.

    Raises:
        ValueError: naming the first symbolic link, named pipe, socket or device in it.
    """
    if directory.is_symlink():
        raise ValueError(_refusal(directory))
    pending = [directory]
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except (FileNotFoundError, NotADirectoryError):  # not there yet, or removed meanwhile
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                pending += [] if entry.name in _FOREIGN else [Path(entry.path)]
            elif not entry.is_file(follow_symlinks=False) and os.path.lexists(entry.path):
                raise ValueError(_refusal(Path(entry.path)))


def _refusal(path: Path) -> str:
    if path.is_symlink():
        return (
            f"{path} is a link to {path.readlink()}: nothing in a run directory may lead out of it; remove the link, "
            "and choose other directories with --out and data.directory"
        )
    return f"{path} is neither a file nor a directory; remove it: a run directory holds nothing else"
