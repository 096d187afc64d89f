"""Decompresses the bytes of a file in constant memory.

How something is packed is told by its bytes, whatever it is called. Damage never raises here: the stream ends early and
says why in its `Damage`, so that what was readable stays. What follows a complete stream and is none is no damage. A
compressed file may unfold to `expansion` times its size and no further.
"""

from __future__ import annotations

import bz2
import io
import lzma
import re
from collections.abc import Callable
from typing import Any, BinaryIO, cast

from data_prep.readers.records import Damage
from data_prep.text.charset import wide

COMPRESSIONS = (".gz", ".zst", ".lz4", ".bz2", ".xz")
CHUNK_BYTES = 2**20
_BITE = 64 * 1024
# A zstd block of a few bytes may unfold to 128 KiB: small bites keep what one call returns small.
_ZSTD_BITE = 4096
_XZ_MEMORY = 2**30  # dictionaries may claim 4 GiB
# Small files may be all repetition: the limit holds from here on.
_FREE_BYTES = 2**20
_GATHERED_BYTES = 65_536  # that one read gives at least: enough to tell what it is, though members are small
_MAX_LAYERS = 8
_MAX_DICTIONARY_BYTES = 2**25
_GZIP_MAGIC = b"\x1f\x8b\x08"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_MAGIC = {
    ".gz": re.compile(rb"\x1f\x8b\x08"),
    ".zst": re.compile(rb"\x28\xb5\x2f\xfd"),
    ".lz4": re.compile(rb"\x04\x22\x4d\x18"),
    ".bz2": re.compile(rb"BZh[1-9](?:\x31\x41\x59\x26\x53\x59|\x17\x72\x45\x38\x50\x90)"),
    ".xz": re.compile(rb"\xfd7zXZ\0"),
}
_LONGEST_MAGIC = 10
_SHORTEST = {".gz": _GZIP_MAGIC, ".zst": _ZSTD_MAGIC, ".lz4": b"\x04\x22\x4d\x18", ".bz2": b"BZh", ".xz": b"\xfd7zXZ\0"}
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18(.{4})", re.DOTALL)  # a frame of zstd and LZ4 that holds no data
_DICTIONARY = b"\x5d\x2a\x4d\x18"  # https://iipc.github.io/warc-specifications/specifications/warc-zstd/
_DICTIONARY_MAGIC = b"\x37\xa4\x30\xec"
# What begins with signs that no text has, and is no compressed file all the same.
_CONTAINERS = re.compile(rb"PAR1|PK\x03\x04|PK\x05\x06|\xff\xfe|\xfe\xff|.{257}ustar", re.DOTALL)
_CONTROLS = bytes([*range(9), *range(14, 27), *range(28, 32), 127])


class _Zstd:
    """The same interface for zstandard; its output cannot be limited, so its input must be small."""

    needs_input = True

    def __init__(self, dictionary: bytes, window: int) -> None:
        import zstandard

        known = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
        self._frame = zstandard.ZstdDecompressor(dict_data=known, max_window_size=window).decompressobj()

    @property
    def eof(self) -> bool:
        return bool(self._frame.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._frame.unused_data)

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return bytes(self._frame.decompress(data))


def _decompressor(ending: str, window: int) -> tuple[Callable[[bytes], Any], tuple[type[Exception], ...]]:
    """How to begin a frame, with a dictionary or none, and the errors that mean damage.

    What is begun has the interface of `bz2.BZ2Decompressor`.
    """
    if ending == ".gz":
        # ISA-L unpacks gzip at some three times zlib's speed, and with the interface wanted here.
        from isal import igzip_lib

        gzip_member = igzip_lib.IgzipDecompressor
        damage = cast(type[Exception], igzip_lib.IsalError)
        return lambda _: gzip_member(flag=igzip_lib.DECOMP_GZIP), (damage,)
    if ending == ".zst":
        import zstandard

        return lambda dictionary: _Zstd(dictionary, window), (zstandard.ZstdError,)
    if ending == ".lz4":
        import lz4.frame

        return lambda _: lz4.frame.LZ4FrameDecompressor(), (RuntimeError,)
    if ending == ".bz2":
        return lambda _: bz2.BZ2Decompressor(), (OSError,)
    assert ending == ".xz", ending
    return lambda _: lzma.LZMADecompressor(memlimit=_XZ_MEMORY), (lzma.LZMAError,)


class Counted(io.RawIOBase):
    """A stream that counts what was read of it: the measure of what a compressed file unfolds to."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.taken = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._stream.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.taken += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class Unpacked(io.RawIOBase):
    """Decompressed bytes of a stream of members: gzip members, zstd and LZ4 frames, bzip2 and xz streams.

    Args:
        stream: compressed bytes.
        ending: names the compression.
        damage: told of damage, of bytes behind the last member, and of a file that unfolds to too much.
        allowance: how many bytes may have come out by now.
        resume: go on with the next gzip member after a damaged one.
        window: bytes that a zstd frame may look back.
    """

    def __init__(
        self,
        stream: BinaryIO,
        ending: str,
        damage: Damage,
        allowance: Callable[[], float],
        resume: bool = False,
        window: int = 2**31,
    ) -> None:
        self._stream, self._damage, self._allowance = stream, damage, allowance
        self._ending = ending
        self._new, self._errors = _decompressor(ending, window)
        self._bite = _ZSTD_BITE if ending == ".zst" else _BITE
        self._resume = resume and ending == ".gz"
        self._zeros = ending in (".gz", ".xz")  # that tapes and `xz` may pad files with
        self._frame: Any = None
        self._input = self._fed = b""
        self._output = memoryview(b"")
        self._written = 0
        self._complete = 0  # members read to their end
        self._dictionary = b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        filled = 0
        while filled < min(len(buffer), _GATHERED_BYTES):
            while not self._output and not self._ended:
                self._step()
            count = min(len(buffer) - filled, len(self._output))
            if not count:
                break
            buffer[filled : filled + count] = self._output[:count]
            self._output = self._output[count:]
            filled += count
        return filled

    def _step(self) -> None:
        if self._frame is None and not self._begun():
            return
        if not self._input and self._frame.needs_input:
            self._input = self._stream.read(self._bite)
            if not self._input:
                self._damage.set("truncated_file", "the compressed data ends in the middle")
                self._ended = True
                return
        data, self._input = self._input, b""
        self._fed = data or self._fed
        try:
            output = self._frame.decompress(data, CHUNK_BYTES)
        except self._errors as error:
            self._broken(self._fed, error)
            return
        if self._frame.eof:
            self._input = self._frame.unused_data or b""
            self._frame = None
            self._complete += 1
        self._written += len(output)
        if self._written > _FREE_BYTES and self._written > self._allowance():
            self._damage.set("expands_too_much", f"unfolds to more than {self._written:,} bytes")
            self._ended = True
            return
        self._output = memoryview(output)

    # ------------------------------------------------------------------------------------------------ between members
    def _have(self, size: int) -> bool:
        """Tells whether that many bytes of input are there, read if need be."""
        while len(self._input) < size and (more := self._stream.read(self._bite)):
            self._input += more
        return len(self._input) >= size

    def _begun(self) -> bool:
        """Tells whether a member begins here; padding and frames without data are passed over."""
        while self._have(1):
            if self._complete and self._zeros and not self._input[0]:
                self._input = self._input.lstrip(b"\0")
                continue
            self._have(_LONGEST_MAGIC)
            if self._ending in (".zst", ".lz4") and (frame := _SKIPPABLE.match(self._input)):
                if not self._skipped(int.from_bytes(frame.group(1), "little")):
                    return False
                continue
            break
        if not self._input:
            self._ended = True
        elif _MAGIC[self._ending].match(self._input) or not self._complete:
            try:
                self._frame = self._new(self._dictionary)
            except self._errors as error:
                self._broken(self._input, error)
        else:
            self._behind()
        return self._frame is not None

    def _skipped(self, size: int) -> bool:
        is_dictionary = self._ending == ".zst" and not self._complete and self._input.startswith(_DICTIONARY)
        self._input = self._input[8:]
        if is_dictionary and size <= _MAX_DICTIONARY_BYTES and self._have(size):
            self._dictionary = _dictionary(self._input[:size])
        while size > len(self._input):
            size -= len(self._input)
            self._input = self._stream.read(self._bite)
            if not self._input:
                self._damage.set("truncated_file", "the compressed data ends in the middle")
                self._ended = True
                return False
        self._input = self._input[size:]
        return True

    def _behind(self) -> None:
        """What follows a complete member and begins none: a cut one, a hole before others, or no part of the file."""
        shortest = _SHORTEST[self._ending]
        if shortest.startswith(self._input) or (self._input.startswith(shortest) and not self._have(_LONGEST_MAGIC)):
            self._damage.set("truncated_file", "the compressed data ends in the middle")
            self._ended = True
            return
        skipped = 0
        while not (self._resume and (start := self._input.find(_GZIP_MAGIC)) >= 0):
            skipped += max(0, len(self._input) - 2)
            rest = self._input[-2:]
            more = self._stream.read(self._bite)
            if not more:
                self._damage.garbage += skipped + len(rest)
                self._ended = True
                return
            self._input = rest + more
        self._damage.holes += 1
        self._input = self._input[start:]

    def _broken(self, data: bytes, error: Exception) -> None:
        """Ends the stream, or looks for the next member in what follows the beginning of the broken one."""
        self._frame = None
        if not self._resume:
            self._damage.set("damaged_file", error)
            self._ended = True
            return
        self._damage.holes += 1
        data = data[1:]
        while (start := data.find(_GZIP_MAGIC)) < 0:
            more = self._stream.read(self._bite)
            if not more:
                self._ended = True
                return
            data = data[-2:] + more
        self._input = data[start:]


def _dictionary(data: bytes) -> bytes:
    """A dictionary that stands in a stream, which may be packed itself; empty for other data."""
    import zstandard

    if data.startswith(_ZSTD_MAGIC):
        try:
            unpacked = zstandard.ZstdDecompressor().stream_reader(data).read(_MAX_DICTIONARY_BYTES)
        except zstandard.ZstdError:
            return b""
        data = unpacked
    return data if data.startswith(_DICTIONARY_MAGIC) else b""


def unpack_bytes(data: bytes, ending: str, limit: int, damage: Damage, window: int) -> bytes:
    """All members of packed bytes, up to one byte more than `limit`."""
    stream = Unpacked(io.BytesIO(data), ending, damage, lambda: float("inf"), window=window)
    return io.BufferedReader(stream, CHUNK_BYTES).read(limit + 1)


def packing(head: bytes, named: str | None = None) -> str | None:
    """How the bytes are packed that begin so, as the ending of a file would say it; None where they are not.

    Args:
        head: the beginning, as much as is known.
        named: what a name says, which counts where frames without data come first.
    """
    at, skipped = 0, False
    while frame := _SKIPPABLE.match(head, at):
        at, skipped = frame.end() + int.from_bytes(frame.group(1), "little"), True
    for ending, magic in _MAGIC.items():
        if magic.match(head, at) and not (skipped and ending not in (".zst", ".lz4")):
            return ending
    if skipped:
        return named if named in (".zst", ".lz4") else ".zst"
    return None


def unpack(
    stream: BinaryIO,
    endings: list[str],
    damage: Damage,
    counted: Counted,
    expansion: float,
    resume: bool = False,
    slack: int = 0,
) -> BinaryIO:
    """The stream without its layers of compression, buffered.

    Args:
        stream: as it is stored, buffered.
        endings: of the layers that its name promises, the outermost first.
        damage: told why, when the stream ends early.
        counted: the outermost file, which is what sizes are compared with.
        expansion: how many times its size may come out.
        resume: go on after a damaged gzip member.
        slack: bytes of the outermost file that may have been read ahead.
    """
    start = counted.taken
    allowance = lambda: expansion * (counted.taken - start + slack)  # noqa: E731
    for depth in range(_MAX_LAYERS):
        assert isinstance(stream, io.BufferedReader)
        named = endings[depth] if depth < len(endings) else None
        head = stream.peek(_LONGEST_MAGIC)
        found = packing(head, named)
        if found is None:
            if named and _is_binary(head):
                damage.set("damaged_file", f"does not begin as {named} does, nor as a text")
                return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, io.BytesIO())))
            break
        stream = cast(BinaryIO, io.BufferedReader(Unpacked(stream, found, damage, allowance, resume), CHUNK_BYTES))
    return stream


def _is_binary(head: bytes) -> bool:
    """Tells whether bytes are neither text nor a container; UTF-16 has a zero for a byte at every other place."""
    head = head[:512]
    if _CONTAINERS.match(head) or wide(head):
        return False
    return len(head) - len(head.translate(None, _CONTROLS)) > 0.1 * len(head)
