"""Parses an HTTP response into status, fields and decoded body (RFC 9110, RFC 9112).

Archives often keep a body decoded beside fields that say otherwise, and servers name codings that are none. So what the
fields say is believed where the bytes bear it out, and the body stands as it is where they do not. Either all of a
body's bytes become text, or what is missing is an error; a body that was cut is read as far as it goes.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

from data_prep.readers.records import Damage
from data_prep.readers.streams import packing, unpack_bytes

_STATUS = re.compile(rb"HTTP/\d(?:\.\d)?\s+(\d{3})")
_END = re.compile(rb"\r?\n\r?\n")
# The size of a chunk, its extensions and the line end (RFC 9112, 7.1); some servers pad sizes with blanks.
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n]{0,4096})?\r?\n")
_CHUNK_END = re.compile(rb"\r?\n")
_HEX = b"0123456789abcdefABCDEF\r\n"
_LINE = re.compile(rb"\r?\n|\r")
_CODINGS = ("gzip", "x-gzip", "deflate", "br", "zstd")
_UNKNOWN_CODINGS = frozenset(
    {"bzip2", "compress", "dcb", "dcz", "exi", "lzma", "pack200-gzip", "sdch", "x-compress", "xz"}
)
_ZSTD_WINDOW = 2**27
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_MEDIA_TYPE = re.compile(rf"\s*({_TOKEN}/{_TOKEN})\s*(;.*)?\s*", re.DOTALL)
_CHARSET = re.compile(r";\s*charset\s*=", re.IGNORECASE)
_BETWEEN_VALUES = re.compile(r',(?=(?:[^"]*"[^"]*")*[^"]*$)')
_MAX_FIELD_CHARACTERS = 1024
_CONTROLS = bytes([*range(9), 11, *range(14, 27), *range(28, 32)])
# How a page begins that states no type (https://mimesniff.spec.whatwg.org/, 7.1).
_PAGE = re.compile(
    rb"\s*<(?:!doctype html|html|head|script|iframe|h1|div|font|table|a|style|title|b|body|br|p|!--)(?:[\s>]|(?<=!--))",
    re.IGNORECASE,
)
TEXT_TYPES = frozenset(
    {"text/html", "application/xhtml+xml", "text/plain", "text/markdown", "text/xml", "application/xml"}
)


@dataclass(frozen=True)
class Body:
    """A body without its codings."""

    data: bytes
    is_cut: bool = False


def plain_type(media_type: str) -> str:
    """A media type without its parameters."""
    return media_type.partition(";")[0].strip().lower()


def media_type_of(field: str) -> str:
    """The one media type of a field that may hold several; empty where none is one (Fetch, extract a MIME type).

    The last counts; a charset stays in force for the same type without one.
    """
    chosen, charset = "", ""
    for value in _BETWEEN_VALUES.split(field[:_MAX_FIELD_CHARACTERS]):
        found = _MEDIA_TYPE.fullmatch(value)
        if found is None or found.group(1) == "*/*":
            continue
        if plain_type(found.group(1)) != plain_type(chosen):
            charset = ""
        chosen = value.strip()
        charset = value.strip() if _CHARSET.search(value) else charset
    return charset or chosen


def sniffed_type(data: bytes) -> str:
    """The media type of a body that states none: HTML or XML by its beginning, else empty."""
    head = data[:2048].removeprefix(b"\xef\xbb\xbf")
    if head.lstrip()[:5].lower() == b"<?xml":
        return "application/xhtml+xml" if b"<html" in head.lower() else "text/xml"
    return "text/html" if _PAGE.match(head) or b"<html" in head.lower() else ""


def split_response(data: bytes) -> tuple[int, dict[str, str], bytes] | None:
    """Status, fields (names in lower case, values of one name joined by commas) and body; None for no answer."""
    status = _STATUS.match(data)
    if status is None:
        return None
    end = _END.search(data)
    head, body = (data[: end.start()], data[end.end() :]) if end else (data, b"")
    fields: dict[str, str] = {}
    name = ""
    for line in _LINE.split(head)[1:]:
        text = line.decode("latin-1")
        if text[:1] in (" ", "\t") and name:  # a line that goes on, as it was allowed once
            fields[name] += " " + text.strip()
            continue
        name, colon, value = text.partition(":")
        name = name.strip().lower() if colon else ""
        if name:
            fields[name] = f"{fields[name]}, {value.strip()}" if name in fields else value.strip()
    return int(status.group(1)), fields, body


def decoded(body: bytes, fields: dict[str, str], limit: int) -> Body:
    """The body as the server meant it.

    Raises:
        OverflowError: when it unfolds to more than `limit` bytes.
        ValueError: when it is damaged, or encoded in a way that is not known here.
    """
    found = Body(body)
    transfer = [name for name in _names(fields.get("transfer-encoding", "")) if name != "identity"]
    if "chunked" in transfer:
        found = _dechunked(body)
    codings = [*_names(fields.get("content-encoding", "")), *(name for name in transfer if name in _CODINGS)]
    for name in reversed(codings):
        unpacked = _unpacked(found.data, name, limit)
        found = Body(unpacked.data, found.is_cut or unpacked.is_cut)
    return found


def _names(field: str) -> list[str]:
    return [name.partition(";")[0].strip().strip("\"'").lower() for name in field.split(",")]


def _dechunked(body: bytes) -> Body:
    """The chunks put together; the body as it stands where it does not begin with one."""
    pieces: list[bytes] = []
    first = at = len(body) - len(body.lstrip(b"\r\n"))
    while match := _CHUNK.match(body, at):
        start, length = match.end(), int(match.group(1), 16)
        if not length:
            # What follows the last chunk are fields; a text may begin with a line that is 0.
            return Body(b"".join(pieces)) if pieces or not body[start:].strip() else Body(body)
        end = _CHUNK_END.match(body, start + length)
        if end is None:
            break
        pieces.append(body[start : start + length])
        at = end.end()
    if match is None and not body[at:].strip(_HEX) and pieces:
        return Body(b"".join(pieces), is_cut=True)  # no more chunks, or the beginning of a size
    rest = body[match.end() :] if match else b""
    if match and match.end() + int(match.group(1), 16) >= len(body) and (pieces or packing(rest) or _PAGE.match(rest)):
        return Body(b"".join([*pieces, rest]), is_cut=True)
    if pieces and b"\r\n" in body[first : first + 40]:
        raise ValueError("its chunks are damaged")
    return Body(body)


def _unpacked(body: bytes, name: str, limit: int) -> Body:
    """The body without one coding; a name that is none, such as `UTF-8` or `none`, changes nothing."""
    if name in ("gzip", "x-gzip"):
        return _members(body, ".gz", limit)
    if name == "zstd":
        return _members(body, ".zst", limit)
    if name not in _CODINGS:
        if name in _UNKNOWN_CODINGS and not _is_plain(body):
            raise ValueError(f"content encoding {name} is not known")
        return Body(body)
    try:
        found = _deflated(body, limit) if name == "deflate" else _brotli(body, limit)
    except ValueError:
        if _is_plain(body):
            return Body(body)
        raise
    return Body(body) if found.is_cut and _is_plain(body) else found


def _members(body: bytes, ending: str, limit: int) -> Body:
    """All members of a coding whose beginning is known; what does not begin so, was stored without it."""
    if packing(body[:1024], ending) != ending:
        if ending == ".gz" and body.startswith(b"\x1f\x8b"):
            raise ValueError("its content encoding is damaged: no gzip header")
        return Body(body)
    damage = Damage()
    data = unpack_bytes(body, ending, limit, damage, _ZSTD_WINDOW)
    if len(data) > limit:
        raise OverflowError
    if damage.reason and damage.reason != "truncated_file":
        raise ValueError(f"its content encoding is damaged: {damage.detail}")
    return Body(data, damage.reason is not None)


def _deflated(body: bytes, limit: int) -> Body:
    """With zlib's header, as the standard has it, or without, as many servers do; one stream or more."""
    pieces: list[bytes] = []
    size = 0
    while body:
        has_header = len(body) >= 2 and body[0] & 15 == 8 and int.from_bytes(body[:2]) % 31 == 0
        if pieces and not has_header:
            break  # what follows a stream and is none
        inflater = zlib.decompressobj(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)
        try:
            pieces.append(inflater.decompress(body, limit + 1 - size))
        except zlib.error as problem:
            raise ValueError(f"its content encoding is damaged: {problem}") from problem
        size += len(pieces[-1])
        if size > limit:
            raise OverflowError
        if not inflater.eof:
            return Body(b"".join(pieces), True)
        body = inflater.unused_data
    return Body(b"".join(pieces))


def _brotli(body: bytes, limit: int) -> Body:
    import brotli

    decompressor = brotli.Decompressor()
    try:
        data = decompressor.process(body, output_buffer_limit=limit + 1)
        while len(data) <= limit and not decompressor.can_accept_more_data():
            more = decompressor.process(b"", output_buffer_limit=limit + 1 - len(data))
            if not more:
                break
            data += more
    except brotli.error as problem:
        raise ValueError(f"its content encoding is damaged: {problem}") from problem
    if len(data) > limit:
        raise OverflowError
    return Body(data, not decompressor.is_finished())


def _is_plain(body: bytes) -> bool:
    """Tells whether a body looks like text as it stands: no byte at its beginning that no text has."""
    head = body[:512]
    return head == head.translate(None, _CONTROLS)
