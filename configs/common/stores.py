"""Opens object stores and web servers through fsspec, for an allowed list of protocols.

fsspec knows about fifty protocols. Some write files (`filecache::`, `simplecache::`), run templates or programs
(`reference://`, `git://`) or log in to other machines (`ssh://`, `smb://`). A `::` chains several. A recipe is data, so
it may name only protocols that read and write bytes at the URL itself.
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
    """Tells whether a path is a URL, with `://` in it."""
    return "://" in path


def protocol_of(url: str) -> str:
    """Returns the protocol of a URL.

    Raises:
        ValueError: for a protocol that is not in `PROTOCOLS`, and for every chain (`filecache::https://…`).
    """
    protocol = url.partition("://")[0].lower()
    if protocol not in PROTOCOLS:
        raise ValueError(
            f"{url}: the protocol {protocol!r} is not read here, nor are chains with `::`; use one of "
            f"{', '.join(f'{name}://' for name in PROTOCOLS)}, or a path"
        )
    return protocol


def open_store(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """Returns the fsspec file system of a URL, and the path in it.

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
