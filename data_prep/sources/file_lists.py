"""Lists the files of a source: by paths and globs, or from a list such as Common Crawl's. Takes a sample of them.

A choice among them hangs on their names alone, so every machine and every run makes the same one, and a smaller
`sample` is part of a larger one.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import urljoin

from configs.common.stores import is_url, protocol_of
from configs.schema.data import Limits
from configs.schema.sources import Source
from data_prep.sources.places import Location, Remote, expand, names_within, open_place

# A snapshot of Common Crawl has 90,000 paths: 13 MB, 200 kB packed.
_MAX_LIST_BYTES = 256 * 2**20
_FROM_ELSEWHERE = ("http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf")


def source_files(source: Source) -> list[tuple[str, Location]]:
    """Name and place of every file that a source is read from, in order; names do not depend on where the files lie.

    Raises:
        ValueError: when a path or the list matches nothing or cannot be read, or a line of the list is no place.
    """
    if source.paths_file is not None:
        prefix = str(source.paths_prefix) if source.paths_prefix is not None else None
        places = listed(source.paths_file, prefix, source.storage_options)
    else:
        assert source.path is not None
        places = expand(source.path, source.storage_options)
    found = list(zip(names_within(places), places, strict=True))
    if source.sample is not None:
        count = max(1, round(source.sample * len(found)))
        chosen = set(sorted((_place_in_order(name), at) for at, (name, _) in enumerate(found))[:count])
        found = [item for at, item in enumerate(found) if (_place_in_order(item[0]), at) in chosen]
    return found[: source.max_files]


def _place_in_order(name: str) -> bytes:
    return hashlib.blake2b(f"file {name}".encode(errors="surrogateescape"), digest_size=8).digest()


def listed(place: str, prefix: str | None, options: Mapping[str, Any]) -> list[Location]:
    """The places that a list names, a line each, in its order without doubles.

    Args:
        place: path or URL of the list, plain or gzipped; blank lines and those that begin with `#` do not count.
        prefix: stands before every line that is no URL; None: such lines lie beside the list.
        options: passed to fsspec with URLs.

    Raises:
        ValueError: for a list that cannot be read, is empty or no list, or has a line that may not be read.
    """
    text = json.dumps(dict(options), sort_keys=True)
    if is_url(place):
        lines = _fetched(place, text)
    else:
        if not Path(place).is_file():
            raise ValueError(f"{place}: no such file; correct the `paths_file` of the source")
        lines = _lines(place, Path(place), 1)
    places: dict[Location, None] = {}
    for number, line in lines:
        made = _placed(place, number, line, prefix)
        places[Remote(made, text) if is_url(made) else Path(made)] = None
    return list(places)


@lru_cache(maxsize=16)
def _fetched(url: str, options: str) -> tuple[tuple[int, str], ...]:
    return _lines(url, Remote(url, options), Limits().attempts)


def _lines(name: str, place: Location, attempts: int) -> tuple[tuple[int, str], ...]:
    try:
        with open_place(place, attempts) as raw:
            stream = io.BufferedReader(cast(io.RawIOBase, raw))
            packed = stream.peek(2)[:2] == b"\x1f\x8b"
            unpacked = cast(io.BufferedReader, gzip.GzipFile(fileobj=stream)) if packed else stream
            data = unpacked.read(_MAX_LIST_BYTES + 1)
        text = data.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{name}: the list of files cannot be read ({error}); fetch it again") from error
    if len(data) > _MAX_LIST_BYTES:
        raise ValueError(f"{name}: the list of files has more than {_MAX_LIST_BYTES:,} bytes; give a shorter one")
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not lines:
        raise ValueError(f"{name}: the list of files is empty; it needs a path or URL a line")
    if lines[0][1].startswith("<") or "\0" in text:
        raise ValueError(f"{name} is not a list of files with a path or URL a line; it begins {lines[0][1][:60]!r}")
    return tuple(lines)


def _placed(name: str, number: int, line: str, prefix: str | None) -> str:
    """The place that a line means. A list from elsewhere names no files of this machine.

    Raises:
        ValueError: naming the line.
    """
    where, remote = f"{name}, line {number}", is_url(name)
    if is_url(line):
        protocol = protocol_of(line)
        if remote and protocol not in _FROM_ELSEWHERE:
            raise ValueError(
                f"{where}: a list from elsewhere may not name {protocol}:// places; read it first, from a copy"
            )
        return line
    if prefix is not None:
        if remote and not is_url(prefix) and ".." in line.split("/"):
            raise ValueError(f"{where}: {line!r} leads out of `paths_prefix`")
        return f"{prefix.rstrip('/')}/{line.lstrip('/')}"
    if remote:
        example = urljoin(name, "/")
        raise ValueError(
            f"{where}: {line!r} is not a URL; set `paths_prefix` to what stands before it, such as {example}"
        )
    return str(Path(name).parent / line)
