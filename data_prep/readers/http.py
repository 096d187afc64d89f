"""What a web server answered: status, fields and body, without the encodings it was sent in (RFC 9110, RFC 9112)."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable

_STATUS = re.compile(rb"HTTP/\d(?:\.\d)?\s+(\d{3})")
_END = re.compile(rb"\r?\n\r?\n")
_CHUNK = re.compile(rb"\s*([0-9A-Fa-f]{1,16})[^\n]{0,1024}\n")
TEXT_TYPES = frozenset(
    {"text/html", "application/xhtml+xml", "text/plain", "text/markdown", "text/xml", "application/xml"}
)


def plain_type(media_type: str) -> str:
    """A media type without its parameters."""
    return media_type.partition(";")[0].strip().lower()


def split_response(data: bytes) -> tuple[int, dict[str, str], bytes] | None:
    """Status, fields (names in lower case, the first of each) and body; None where that is no answer."""
    status = _STATUS.match(data)
    if status is None:
        return None
    end = _END.search(data)
    head, body = (data[: end.start()], data[end.end() :]) if end else (data, b"")
    fields: dict[str, str] = {}
    for line in head.decode("latin-1").splitlines()[1:]:
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip().lower(), value.strip())
    return int(status.group(1)), fields, body


def decoded(body: bytes, fields: dict[str, str], limit: int) -> bytes:
    """The body as the server meant it. Archives often keep it decoded beside fields that say otherwise.

    Raises:
        OverflowError: when it unfolds to more than `limit` bytes.
        ValueError: when it is damaged, or encoded in a way that is not known here.
    """
    if "chunked" in fields.get("transfer-encoding", "").lower():
        body = _dechunked(body)
    encodings = [name.strip().lower() for name in fields.get("content-encoding", "").split(",")]
    for name in reversed(encodings):
        if name and name != "identity":
            body = _unpacked(body, name, limit)
    return body


def _dechunked(body: bytes) -> bytes:
    pieces: list[bytes] = []
    at = 0
    while match := _CHUNK.match(body, at):
        length = int(match.group(1), 16)
        if not length:
            break
        at = match.end() + length
        pieces.append(body[match.end() : at])
    return b"".join(pieces) if pieces else body


def _unpacked(body: bytes, name: str, limit: int) -> bytes:
    work = {"gzip": _gunzip, "x-gzip": _gunzip, "deflate": _deflated, "br": _brotli, "zstd": _zstd}.get(name)
    if work is None:
        raise ValueError(f"content encoding {name} is not known")
    try:
        return work(body, limit)
    except ValueError:
        if body[:512].lstrip().startswith(b"<") and not body.startswith(b"\x1f\x8b"):
            return body
        raise


def _gunzip(body: bytes, limit: int) -> bytes:
    return _inflate(body, zlib.MAX_WBITS | 16, limit) if body.startswith(b"\x1f\x8b") else body


def _deflated(body: bytes, limit: int) -> bytes:
    """With zlib's header, as the standard has it, or without, as many servers do."""
    has_header = len(body) >= 2 and body[0] & 15 == 8 and int.from_bytes(body[:2]) % 31 == 0
    return _inflate(body, zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS, limit)


def _inflate(body: bytes, window: int, limit: int) -> bytes:
    inflater = zlib.decompressobj(window)
    return _limited(lambda: inflater.decompress(body, limit + 1), zlib.error, limit)


def _brotli(body: bytes, limit: int) -> bytes:
    import brotli

    decompressor = brotli.Decompressor()
    return _limited(lambda: decompressor.process(body, output_buffer_limit=limit + 1), brotli.error, limit)


def _zstd(body: bytes, limit: int) -> bytes:
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=2**27)
    return _limited(lambda: decompressor.stream_reader(body).read(limit + 1), zstandard.ZstdError, limit)


def _limited(work: Callable[[], bytes], error: type[Exception], limit: int) -> bytes:
    try:
        data = work()
    except error as problem:
        raise ValueError(f"its content encoding is damaged: {problem}") from problem
    if len(data) > limit:
        raise OverflowError
    return data
