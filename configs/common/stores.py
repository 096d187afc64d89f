"""Object stores and web servers behind fsspec: which protocols may be named, and how one is opened.

fsspec knows some fifty protocols. Some of them write files (`filecache::`, `simplecache::`), run templates or programs
(`reference://`, `git://`) or log in elsewhere (`ssh://`, `smb://`), and a `::` chains several. A recipe is data, so it
may name only those that read and write the bytes of the place itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Protocol -> the package that brings it, None for what comes with fsspec.
PROTOCOLS: dict[str, str | None] = {
    "file": None,
    "memory": None,
    "http": "aiohttp",
    "https": "aiohttp",
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "hf": "huggingface_hub",
}


def is_url(path: str) -> bool:
    """Whether a path is a URL: a protocol, `://` and what it names."""
    return "://" in path


def protocol_of(url: str) -> str:
    """The protocol of a URL.

    Raises:
        ValueError: for one that is not in `PROTOCOLS`, which a chain (`filecache::https://…`) never is.
    """
    protocol = url.partition("://")[0].lower()
    if protocol not in PROTOCOLS:
        raise ValueError(
            f"{url}: the protocol {protocol!r} is not read here, nor are chains with `::`; use one of "
            f"{', '.join(f'{name}://' for name in PROTOCOLS)}, or a path"
        )
    return protocol


def open_store(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Args:
        url: with one of `PROTOCOLS`.
        options: for the file system's constructor, such as `{anon: true}`.

    Raises:
        ValueError: for another protocol, options that the file system does not take, or a package that is missing.
    """
    protocol = protocol_of(url)
    try:
        import fsspec

        kind = fsspec.get_filesystem_class(protocol)
        # Not `url_to_fs`: it would take a chain from the URL, and another protocol from the options.
        path = kind._strip_protocol(url)
        store = fsspec.filesystem(protocol, **{**kind._get_kwargs_from_urls(url), **options})
    except ImportError as error:
        package = "fsspec" if error.name == "fsspec" else PROTOCOLS[protocol] or "fsspec"
        raise ValueError(f"{url}: {error}; {protocol}:// needs the package {package}: pip install {package}") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{url}: {error}; correct the URL or the options given with it") from error
    return store, path
