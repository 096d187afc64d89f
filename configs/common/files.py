"""Writes files atomically (each is complete or absent) and computes fingerprints of their contents.

Every artifact in a run directory is written through this module: to a temporary name beside its final one, flushed
to disk, then renamed. A reader therefore never sees half a file, even if the writer was killed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from configs.safety.parsing import parse_json

TEMPORARY_SUFFIX = ".partial"
# Hashing terabytes of input before every run would cost more than the run; beyond this size the fingerprint takes
# evenly spaced samples of the content together with size and modification time.
FULL_HASH_LIMIT_BYTES = 256 * 2**20
_CHUNK_BYTES = 4 * 2**20
_SAMPLES = 64
_SURROGATES = re.compile("[\ud800-\udfff]")


def fsync_path(path: Path) -> None:
    """Flushes a file or a directory entry to disk, so that a rename survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_beside(path: Path) -> Path:
    """Returns a new name in the same directory, hence on the same file system; `remove_leftovers` recognises it."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}")


FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def says_full(error: BaseException) -> bool:
    """Tells whether an error means that a disk is full. Some libraries say so only in the message."""
    return getattr(error, "errno", None) in FULL or os.strerror(errno.ENOSPC) in str(error)


@contextmanager
def _named_when_full(path: Path) -> Iterator[None]:
    """Adds the path to a disk-full error, which has none when a write fails."""
    try:
        yield
    except Exception as error:
        if says_full(error) and getattr(error, "filename", None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def _refuse_special(path: Path) -> None:
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(
            f"{path} is a device or a pipe, and writing would put a file in its place; give the name of a file"
        )


def refuse_existing(path: Path, force: bool) -> None:
    """Raises `ValueError` for a file that is there already, unless `force` says that it may be replaced."""
    if path.exists() and not force:
        raise ValueError(f"{path} exists; give --force to replace it, or choose another --out")


def refuse_unwritable(path: Path) -> None:
    """Tells before long work whether a file can be made at `path`, whose directory need not exist.

    Raises:
        ValueError: when a directory, a device or a pipe is there, or files cannot be made in its directory.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a directory; give the name of a file")
    _refuse_special(path)
    above = next(one for one in path.absolute().parents if one.exists())
    if not above.is_dir():
        raise ValueError(f"{path}: {above} is not a directory; choose another place")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"{path}: no permission to write in {above}; choose another place")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write a file to; renames it to `path` on success, removes it on any failure.

    Raises:
        ValueError: when `path` is a device or a pipe, because the rename would replace it.
    """
    _refuse_special(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with _named_when_full(path):
            yield temporary
            fsync_path(temporary)
            temporary.replace(path)
            fsync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yields a temporary directory to fill; on success it replaces `path`.

    A mount point cannot be replaced, so the new entries are moved into it one by one.

    Raises:
        ValueError: when `path` is a link, because the rename would replace the link. Resolve it first.
    """
    if path.is_symlink():
        raise ValueError(f"{path} is a link; give the directory that it points to")
    mounted = path.is_mount()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path / path.name if mounted else path)
    temporary.mkdir()
    try:
        with _named_when_full(path):
            yield temporary
            for file in sorted(temporary.rglob("*")):
                fsync_path(file)
            fsync_path(temporary)
        if mounted:
            for entry in sorted(temporary.iterdir()):
                entry.replace(path / entry.name)
            fsync_path(path)
        elif path.exists():
            old = temporary_beside(path)
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
        fsync_path(path.parent)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def copy_directory(source: Path, target: Path) -> None:
    """Copies the files of a directory into a new one, with the modes that the umask gives: not those of `source`."""
    target.mkdir()
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir()
        else:
            shutil.copyfile(path, copy)


def write_text(path: Path, text: str, private: bool = False) -> None:
    """Writes `text` (UTF-8) to `path` atomically. Only the owner can read a `private` file (mode 0600)."""
    with atomic_path(path) as temporary:
        if private:
            temporary.touch(mode=0o600)
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` atomically as indented JSON with sorted keys. Equal values give equal bytes.

    Lone surrogates, by which Python represents file names that are not UTF-8, are written as JSON escapes.
    """
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    if not text.isascii():
        text = _SURROGATES.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """Reads JSON; raises `ValueError` naming the file when it is not JSON."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}). Delete it and run the stage again.") from error


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file of another program; raises `ValueError` naming the file when it is invalid."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); get the file again") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply; get the file again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__} where a JSON object is needed; get the file again")
    return content


def remove_leftovers(directory: Path) -> None:
    """Deletes temporary files and directories that a killed writer left directly inside `directory`."""
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        if path.name.startswith(".") and path.name.endswith(TEMPORARY_SUFFIX):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of the whole file, read in constant memory."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_identity(path: Path) -> dict[str, Any]:
    """Returns the entries that identify a file's content in a fingerprint: size and SHA-256.

    Above `FULL_HASH_LIMIT_BYTES` the hash covers evenly spaced samples, and the modification time is added.
    """
    stat = path.stat()
    if stat.st_size <= FULL_HASH_LIMIT_BYTES:
        return {"bytes": stat.st_size, "sha256": sha256_file(path)}
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for index in range(_SAMPLES):
            stream.seek((stat.st_size - _CHUNK_BYTES) * index // (_SAMPLES - 1))
            digest.update(stream.read(_CHUNK_BYTES))
    return {"bytes": stat.st_size, "sampled_sha256": digest.hexdigest(), "mtime_ns": stat.st_mtime_ns}


def fingerprint(value: Any) -> str:
    """Hex digest (16 bytes) of a JSON-serialisable value; independent of the order of mapping keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:32]
