"""Bytes of a file, decompressed, in constant memory.

Damage never raises here: the stream ends early and says why in its `Damage`, so that what was readable stays. A
compressed file may unfold to `expansion` times its size and no further.
"""

from __future__ import annotations

import bz2
import io
import lzma
from collections.abc import Callable
from typing import Any, BinaryIO, cast

from data_prep.readers.records import Damage

COMPRESSIONS = (".gz", ".zst", ".lz4", ".bz2", ".xz")
CHUNK_BYTES = 2**20
_BITE = 64 * 1024
# A zstd block of a few bytes may unfold to 128 KiB: small bites keep what one call returns small.
_ZSTD_BITE = 4096
_XZ_MEMORY = 2**30  # dictionaries may claim 4 GiB
# Small files may be all repetition: the limit holds from here on.
_FREE_BYTES = 2**20
_GZIP_MAGIC = b"\x1f\x8b\x08"
_MAGIC = {_GZIP_MAGIC: ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"\x04\x22\x4d\x18": ".lz4", b"\xfd7zXZ\0": ".xz"}


class _Zstd:
    """The same interface for zstandard; its output cannot be limited, so its input must be small."""

    needs_input = True

    def __init__(self) -> None:
        import zstandard

        self._frame = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()

    @property
    def eof(self) -> bool:
        return bool(self._frame.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._frame.unused_data)

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return bytes(self._frame.decompress(data))


def _decompressor(ending: str) -> tuple[Callable[[], Any], tuple[type[Exception], ...]]:
    """How to begin a frame (all with the interface of `bz2.BZ2Decompressor`), and the errors that mean damage."""
    if ending == ".gz":
        # ISA-L unpacks gzip at some three times zlib's speed, and with the interface wanted here.
        from isal import igzip_lib

        gzip_member = igzip_lib.IgzipDecompressor
        damage = cast(type[Exception], igzip_lib.IsalError)
        return lambda: gzip_member(flag=igzip_lib.DECOMP_GZIP), (damage,)
    if ending == ".zst":
        import zstandard

        return _Zstd, (zstandard.ZstdError,)
    if ending == ".lz4":
        import lz4.frame

        return lz4.frame.LZ4FrameDecompressor, (RuntimeError,)
    if ending == ".bz2":
        return bz2.BZ2Decompressor, (OSError,)
    assert ending == ".xz", ending
    return lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY), (lzma.LZMAError,)


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
    """Decompressed bytes of a stream of frames.

    Args:
        stream: compressed bytes.
        ending: names the compression.
        damage: told of damage, and of a file that unfolds to too much.
        allowance: how many bytes may have come out by now.
        resume: go on with the next gzip member after a damaged one.
    """

    def __init__(
        self, stream: BinaryIO, ending: str, damage: Damage, allowance: Callable[[], float], resume: bool = False
    ) -> None:
        self._stream, self._damage, self._allowance = stream, damage, allowance
        self._new, self._errors = _decompressor(ending)
        self._bite = _ZSTD_BITE if ending == ".zst" else _BITE
        self._resume = resume and ending == ".gz"
        self._zeros = ending in (".gz", ".xz")  # that tapes and `xz` may pad files with
        self._frame: Any = None
        self._input = self._fed = b""
        self._output = memoryview(b"")
        self._written = 0
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output and not self._ended:
            self._step()
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def _step(self) -> None:
        if not self._input and (self._frame is None or self._frame.needs_input):
            self._input = self._stream.read(self._bite)
            if not self._input:
                if self._frame is not None:
                    self._damage.set("truncated_file", "the compressed data ends in the middle")
                self._ended = True
                return
        if self._frame is None:
            if self._zeros and self._written and not (rest := self._input.lstrip(b"\0")):
                self._input = rest
                return
            self._frame = self._new()
        data, self._input = self._input, b""
        self._fed = data or self._fed
        try:
            output = self._frame.decompress(data, CHUNK_BYTES)
        except self._errors as error:
            self._broken(self._fed, error)
            return
        if self._frame.eof:
            rest = self._frame.unused_data or b""
            self._input = rest.lstrip(b"\0") if self._zeros else rest
            self._frame = None
        self._written += len(output)
        if self._written > _FREE_BYTES and self._written > self._allowance():
            self._damage.set("expands_too_much", f"unfolds to more than {self._written:,} bytes")
            self._ended = True
            return
        self._output = memoryview(output)

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
        stream: as it is stored.
        endings: of the layers, the outermost first.
        damage: told why, when the stream ends early.
        counted: the outermost file, which is what sizes are compared with.
        expansion: how many times its size may come out.
        resume: go on after a damaged gzip member.
        slack: bytes of the outermost file that may have been read ahead.
    """
    start = counted.taken

    def layer(below: BinaryIO, ending: str) -> BinaryIO:
        allowance = lambda: expansion * (counted.taken - start + slack)  # noqa: E731
        return io.BufferedReader(Unpacked(below, ending, damage, allowance, resume), CHUNK_BYTES)

    for ending in endings:
        stream = layer(stream, ending)
    if isinstance(stream, io.BufferedReader):
        # Stores and crawlers give files names that do not tell how they are packed.
        head = stream.peek(8)[:8]
        for magic, ending in _MAGIC.items():
            if head.startswith(magic):
                return layer(stream, ending)
    return stream
