"""Finds files by local paths, globs and fsspec URLs, always in the same order and under the same names."""

from __future__ import annotations

import glob
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from io import SEEK_CUR, SEEK_END, SEEK_SET, RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import unquote, urlsplit

from configs.common.files import content_identity, fingerprint
from configs.common.stores import is_url, open_store, protocol_of
from configs.safety.hide_secrets import mask_urls
from data_prep.sources.unreadable import UnreadableFile

# Seconds before the second try of a read; twice as long before every further one.
FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
_INFO_ATTEMPTS = 3
_ASKED_AT_ONCE = 8
_ESCAPED = re.compile(r"\[([*?[])\]")  # what `glob.escape` makes
# What stores say about a file that changes with its content.
_REMOTE_IDENTITY = (
    "ETag", "etag", "Content-MD5", "Digest", "md5Hash", "crc32c", "checksum", "generation", "VersionId",
    "Last-Modified", "LastModified", "last_modified", "updated", "mtime", "created",
)  # fmt: skip


@dataclass(frozen=True)
class Remote:
    """A file behind an fsspec URL."""

    url: str
    options: str = "{}"  # `storage_options` as JSON, so that places can be compared

    @property
    def name(self) -> str:
        """The last part of the path."""
        return unquote(urlsplit(self.url).path).rpartition("/")[2] or self.url

    def __str__(self) -> str:
        return mask_urls(self.url)  # for messages

    @cached_property
    def store(self) -> tuple[Any, str]:
        """The file system and the path in it."""
        return open_store(self.url, json.loads(self.options))

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "options": self.options}

    def info(self) -> dict[str, Any]:
        """Size, modification time and other facts from the store.

        Raises:
            ValueError: naming the URL, when it cannot be asked.
        """
        store, path = self.store
        info: dict[str, Any] = _tried(lambda: store.info(path), self.url, _INFO_ATTEMPTS)
        return info


Location = Path | Remote
Answer = TypeVar("Answer")


def expand(paths: str | Sequence[str], options: Mapping[str, Any] | None = None) -> list[Location]:
    """Files of a path, glob or URL, or of a list of them: globs sorted, doubles left out.

    Args:
        paths: as the recipe has them.
        options: passed to fsspec with URLs.

    Raises:
        ValueError: when a path or glob matches nothing, or a URL cannot be reached.
    """
    files: dict[Location, None] = {}
    for pattern in [paths] if isinstance(paths, str) else paths:
        found = _remote_files(pattern, dict(options or {})) if is_url(pattern) else _local_files(pattern)
        files.update(dict.fromkeys(found))
    return list(files)


def as_pattern(place: Location) -> str:
    """A pattern that matches this file alone, whatever signs its name has."""
    return glob.escape(str(place)) if isinstance(place, Path) else place.url


def _local_files(pattern: str) -> list[Location]:
    literal = Path(_literal(pattern))
    if literal.is_dir():
        raise ValueError(f"{literal}: is a directory; say which files in it, as in {literal / '**' / '*.jsonl.gz'}")
    if literal.is_file():
        return [literal]
    found: list[Location] = [Path(name) for name in sorted(set(_glob(pattern))) if os.path.lexists(name)]
    # A link to nowhere stays: opening it fails, and that is counted with its name.
    files = [path for path in found if isinstance(path, Path) and not path.is_dir()]
    if not files:
        raise ValueError(f"{literal}: no such file; correct the `path` of the source (globs must match something)")
    return [*files]


def _literal(pattern: str) -> str:
    """The path that the pattern is, read as a name: without the brackets of `glob.escape`, where all are such."""
    plain = _ESCAPED.sub(r"\1", pattern)
    return pattern if Path(pattern).exists() else plain


def _glob(pattern: str) -> Iterator[str]:
    """Like `glob.glob`, but `**` comes to an end where symbolic links lead back up."""
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from glob.glob(pattern)  # noqa: PTH207
        return
    at = parts.index("**")
    rest = str(Path(*parts[at + 1 :])) if parts[at + 1 :] else "*"
    start = str(Path(*parts[:at])) if at else "."
    for base in sorted(glob.glob(start)):  # noqa: PTH207
        for directory in _directories(base, ()):
            place = "" if not at and directory == "." else glob.escape(directory)
            yield from _glob(os.path.join(place.removeprefix("./"), rest))  # noqa: PTH118


def _directories(directory: str, above: tuple[str, ...]) -> Iterator[str]:
    real = os.path.realpath(directory)
    if real in above:
        warnings.warn(f"{directory} is a symbolic link to a directory above it and is not followed", stacklevel=2)
        return
    yield directory
    try:
        entries = sorted(entry.path for entry in os.scandir(directory) if entry.is_dir() and entry.name[0] != ".")
    except OSError as error:
        warnings.warn(f"{directory} cannot be listed ({error.strerror}); what is in it is not read", stacklevel=2)
        return
    for entry in entries:
        yield from _directories(entry, (*above, real))


def _remote_files(pattern: str, options: dict[str, Any]) -> list[Location]:
    protocol_of(pattern)
    text = json.dumps(options, sort_keys=True)
    wild = "*" if pattern.startswith("http") else "*?["  # a `?` begins the query of a web address
    if not any(sign in pattern for sign in wild):
        return [Remote(pattern, text)]
    store, path = open_store(pattern, options)
    try:
        found = sorted(store.glob(path))
    except Exception as error:
        raise _unreachable(pattern, error) from error
    if not found:
        raise ValueError(f"{pattern}: no such file; correct the `path` of the source (globs must match something)")
    return [Remote(store.unstrip_protocol(name), text) for name in found]


def _tried(work: Callable[[], Any], url: str, attempts: int) -> Any:
    pause = FIRST_PAUSE
    for attempt in range(attempts):
        if attempt:
            time.sleep(min(pause, _LONGEST_PAUSE))
            pause *= 2
        try:
            return work()
        except Exception as error:  # every store's client raises types of its own
            if attempt + 1 == attempts or isinstance(error, FileNotFoundError | PermissionError):
                raise _unreachable(url, error) from error
    raise AssertionError("attempts is at least 1")


def _unreachable(url: str, error: Exception) -> UnreadableFile:
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    what = mask_urls(f"{url} cannot be read ({what})")
    return UnreadableFile(
        f"{what}; check the address, the network and the source's `storage_options`, "
        "and run again: finished work is kept"
    )


def names_within(files: Sequence[Location]) -> list[str]:
    """Names of the files relative to their common directory: the same wherever the directory lies.

    A URL's query may be a secret, so 8 hexadecimal digits stand for it; its user information is left out.
    """
    local = [file.absolute() for file in files if isinstance(file, Path)]
    split = [urlsplit(file.url) for file in files if isinstance(file, Remote)]
    remote = [part._replace(netloc=part.netloc.rpartition("@")[2]) for part in split]
    addresses = [Path(f"/{part.scheme}/{part.netloc}/{unquote(part.path).lstrip('/')}") for part in remote]
    ours, theirs = _relative(local), _relative(addresses)
    queries = [f"?{fingerprint(part.query)[:8]}" if part.query else "" for part in remote]
    theirs = [name + query for name, query in zip(theirs, queries, strict=True)]
    if set(ours) & set(theirs):
        theirs = [f"{part.netloc}/{name}" for name, part in zip(theirs, remote, strict=True)]
    names = {Path: map(shown, ours), Remote: map(shown, theirs)}
    return [next(names[Remote if isinstance(file, Remote) else Path]) for file in files]


def shown(name: str) -> str:
    r"""A name as the system gives it, so that it can be an id and be written: bytes that are not UTF-8 as `\xe9`."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _relative(paths: list[Path]) -> list[str]:
    if not paths:
        return []
    common = Path(os.path.commonpath([path.parent for path in paths]))
    return [path.relative_to(common).as_posix() for path in paths]


def size_of(place: Location) -> int:
    """Bytes at rest; 0 where unknown."""
    if isinstance(place, Remote):
        return _remote_size(place)
    try:
        return place.stat().st_size
    except OSError:
        return 0


@lru_cache(maxsize=2**17)
def _remote_size(place: Remote) -> int:
    """Asked once: several stages plan their work by it."""
    return int(place.info().get("size") or 0)


def ask_all(question: Callable[[Location], Answer], places: Sequence[Location]) -> list[Answer]:
    """The answers for all places, in their order; URLs are asked about several at a time."""
    if not any(isinstance(place, Remote) for place in places):
        return [question(place) for place in places]
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        return list(pool.map(question, places))


def place_identity(place: Location) -> dict[str, Any]:
    """Identifies the content: of a local file by `content_identity`, of a URL by the facts of its store."""
    if isinstance(place, Remote):
        info = place.info()
        known = {key: str(info[key]) for key in _REMOTE_IDENTITY if info.get(key)}
        identity = {"bytes": info.get("size"), **known}
        return identity if known else {**identity, "url": fingerprint(place.url)}
    try:
        return content_identity(place)
    except OSError as error:
        return {"unreadable": error.strerror or str(error)}


class RemoteStream(RawIOBase):
    """The bytes of a URL; a read that fails is tried again from where it stopped, with growing pauses.

    Raises:
        UnreadableFile: naming the URL, after `attempts` tries that brought nothing.
    """

    def __init__(self, place: Remote, attempts: int) -> None:
        self._place, self._attempts = place, attempts
        self._size = place.info().get("size")
        self._stream: Any = None
        self._seeks = False
        self._offset = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        if self._size is None:
            return False
        self._opened()
        return self._seeks

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        base = {SEEK_SET: 0, SEEK_CUR: self._offset, SEEK_END: self._size}[whence]
        self._offset = int(base or 0) + offset
        return self._offset

    def readinto(self, buffer: Any) -> int:
        data = _tried(lambda: self._read(len(buffer)), self._place.url, self._attempts)
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)

    def _read(self, size: int) -> bytes:
        try:
            data: bytes = self._opened().read(size)
        except Exception:  # what was open is of no use any more, whatever happened
            self._drop()
            raise
        if not data and self._size is not None and self._offset < self._size:
            self._drop()
            raise OSError(f"the data ended after {self._offset:,} of {self._size:,} bytes")
        return data

    def close(self) -> None:
        self._drop()
        super().close()

    def _opened(self) -> Any:
        if self._stream is None:
            store, path = self._place.store
            self._stream = stream = store.open(path, "rb")
            try:
                # Streams of servers without ranges say that they are seekable, and then raise.
                stream.seek(self._offset or 1)
                stream.seek(self._offset)
                self._seeks = True
            except (ValueError, OSError):
                self._seeks = False
                left = self._offset
                while left and (data := stream.read(min(left, 2**20))):
                    left -= len(data)
        elif self._seeks and self._stream.tell() != self._offset:
            self._stream.seek(self._offset)
        return self._stream

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()


def open_place(place: Location, attempts: int) -> BinaryIO:
    """The file's bytes as they are stored.

    Raises:
        OSError: for a local file that may not be read.
        UnreadableFile: for a URL that cannot be reached.
    """
    return cast(BinaryIO, RemoteStream(place, attempts)) if isinstance(place, Remote) else place.open("rb", buffering=0)
