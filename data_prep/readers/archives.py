"""Reads members of .tar and .zip files, each by its own ending. Never writes a file under a member's name."""

from __future__ import annotations

import io
import re
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from fnmatch import translate
from functools import cache
from typing import Any, BinaryIO, cast

from data_prep.readers.records import Damage, RawRecord, Reading, dropped
from data_prep.readers.streams import CHUNK_BYTES
from data_prep.sources.places import shown
from data_prep.sources.unreadable import UnreadableFile, concerns_one, describe

# A directory is held whole, some ten times as large as it is in the file.
_MAX_DIRECTORY_BYTES = 32 * 2**20
_FREE_BYTES = 2**20
# Of one extended header of a .tar, and of all that hold for the whole archive; names have some 4 kB at most.
_MAX_HEADER_BYTES = 2**20
# Of one member: a long name, a long link, a global and an own header are four.
_MAX_EXTENDED_HEADERS = 16
_EXTENDED_TYPES = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE
)  # fmt: skip

# name of a member, its stream, its size in the archive -> its records
ReadMember = Callable[[str, BinaryIO, int], Iterator[RawRecord]]


def is_unsafe(name: str) -> bool:
    """Tells whether a member's name leads out of the directory it would be unpacked to."""
    parts = name.replace("\\", "/").split("/")
    return ".." in parts or name.startswith(("/", "\\")) or (len(name) > 1 and name[1] == ":") or "\0" in name


@cache
def _pattern(glob: str) -> re.Pattern[str]:
    """`**` matches any number of directories, as in paths."""
    text = translate(glob.replace("**/", "\1").replace("**", "\2"))
    return re.compile(text.replace("\1", "(?:.*/)?").replace("\2", ".*"), re.DOTALL)


def is_wanted(name: str, glob: str) -> bool:
    """Tells whether the glob `members` takes this member."""
    return _pattern(glob).match(name) is not None


# ------------------------------------------------------------------------------------------------------------------ tar
class _TarInfo(tarfile.TarInfo):
    """A member's header; remembers why the archive ended, and takes no header that has no end.

    `tarfile` takes a damaged header for the end of the archive. Extended headers (pax, GNU's long names, sparse maps)
    are as long as they say, or go on for as long as they say: it reads them whole, before any of it is counted.
    """

    @classmethod
    def fromtarfile(cls, archive: Any) -> _TarInfo:
        archive.headers = getattr(archive, "headers", 0) + 1
        try:
            if archive.headers > _MAX_EXTENDED_HEADERS:
                raise tarfile.HeaderError(f"more than {_MAX_EXTENDED_HEADERS} headers of one member")
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            archive.ended_by = error
            raise
        except (ValueError, OverflowError) as error:  # numbers that are none, or too long for `int`
            if isinstance(error, UnreadableFile):
                raise
            archive.ended_by = tarfile.InvalidHeaderError(str(error))  # type: ignore[attr-defined]
            raise archive.ended_by from error
        finally:
            archive.headers -= 1

    def _proc_member(self, archive: Any) -> tarfile.TarInfo:
        extended = self.type in _EXTENDED_TYPES
        if self.type == tarfile.XGLTYPE:  # these stay until the end of the archive
            archive.global_bytes = getattr(archive, "global_bytes", 0) + self.size
        if self.size < 0 or (extended and max(self.size, getattr(archive, "global_bytes", 0)) > _MAX_HEADER_BYTES):
            raise tarfile.InvalidHeaderError(f"a header of {self.size:,} bytes")  # type: ignore[attr-defined]
        member: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        if member.size < 0:  # as pax headers may say
            raise tarfile.InvalidHeaderError(f"a member of {member.size:,} bytes")  # type: ignore[attr-defined]
        return member

    def _proc_sparse(self, archive: Any) -> _TarInfo:
        """Passes over the map of a sparse file, which is not read; it goes on for as long as its blocks say."""
        _, more, size = self._sparse_structs  # type: ignore[attr-defined]
        blocks = 0
        while more:
            block = archive.fileobj.read(tarfile.BLOCKSIZE)
            blocks += 1
            if len(block) < tarfile.BLOCKSIZE or blocks * tarfile.BLOCKSIZE > _MAX_HEADER_BYTES:
                raise tarfile.InvalidHeaderError("a sparse file's map has no end")  # type: ignore[attr-defined]
            more = bool(block[504])
        self.sparse: Any = []
        self.offset_data = archive.fileobj.tell()
        archive.offset = self.offset_data + self._block(self.size)  # type: ignore[attr-defined]
        self.size = size
        return self

    def _proc_gnusparse_10(self, member: Any, pax_headers: Any, archive: Any) -> None:
        """The same of the pax form, whose map lies before the data."""
        member.sparse = []


def tar_records(stream: BinaryIO, reading: Reading, damage: Damage, read: ReadMember) -> Iterator[RawRecord]:
    """Records of the members in their order."""
    try:
        with tarfile.open(
            fileobj=stream, mode="r|", tarinfo=_TarInfo, bufsize=CHUNK_BYTES, encoding="utf-8"
        ) as archive:
            while (info := archive.next()) is not None:
                yield from _tar_member(archive, info, reading, read)
                archive.members = []  # type: ignore[attr-defined]  # it would remember them all
            end = getattr(archive, "ended_by", None)
            if not isinstance(end, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
                lost = isinstance(end, tarfile.InvalidHeaderError)  # type: ignore[attr-defined]
                damage.set("damaged_file" if lost else "truncated_file", end)
    except Exception as error:
        if not concerns_one(error):
            raise
        damage.set("truncated_file" if "unexpected end" in str(error) else "damaged_file", describe(error))


def _tar_member(
    archive: tarfile.TarFile, info: tarfile.TarInfo, reading: Reading, read: ReadMember
) -> Iterator[RawRecord]:
    name = shown(info.name)
    if info.isdir() or not is_wanted(name, reading.members):
        return
    unsafe = is_unsafe(info.name)
    if unsafe or not info.isreg() or info.issparse():
        what = "a path out of the archive" if unsafe else "a link, a device or a sparse file"
        yield dropped("unsafe_member", info.size, detail=what, member=name)
        return
    stream = archive.extractfile(info)
    assert stream is not None
    yield from read(name, cast(BinaryIO, _Forward(stream)), info.size)


class _Forward(io.RawIOBase):
    """A member's bytes in their order: `tarfile` says of members of a stream that they can be wound back, or raises."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


# ------------------------------------------------------------------------------------------------------------------ zip
def zip_records(stream: BinaryIO, reading: Reading, damage: Damage, read: ReadMember) -> Iterator[RawRecord]:
    """Records of the members in the order of the directory."""
    with tempfile.TemporaryFile() as unpacked:
        if not stream.seekable():
            while chunk := stream.read(CHUNK_BYTES):
                unpacked.write(chunk)
            stream = cast(BinaryIO, unpacked)
        size = _directory_bytes(stream)
        if size > _MAX_DIRECTORY_BYTES:
            damage.set("damaged_file", f"a directory of {size:,} bytes is too large; pack the files as .tar")
            return
        try:
            archive = zipfile.ZipFile(stream)
        except Exception as error:
            if not concerns_one(error):
                raise
            damage.set("damaged_file", error)
            return
        with archive:
            for info in archive.infolist():
                if not info.is_dir() and is_wanted(info.filename, reading.members):
                    yield from _zip_member(archive, info, reading, read)


def _zip_member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, reading: Reading, read: ReadMember
) -> Iterator[RawRecord]:
    name, size = info.filename, info.compress_size
    link = info.create_system == 3 and (info.external_attr >> 28) == 0o12
    if is_unsafe(name) or link:
        yield dropped("unsafe_member", size, detail="a link or a path out of the archive", member=name)
        return
    if info.flag_bits & 1:
        yield dropped("encrypted_member", size, member=name)
        return
    try:
        with archive.open(info) as stream:
            limited = _Member(stream, max(_FREE_BYTES, reading.expansion * max(1, size)))
            yield from read(name, cast(BinaryIO, io.BufferedReader(limited, CHUNK_BYTES)), size)
            if limited.problem:
                yield dropped(*limited.problem, member=name)
    except NotImplementedError as error:
        yield dropped("unknown_format", size, detail=error, member=name)
    except Exception as error:  # of a hostile header: BadZipFile, EOFError, struct.error, ValueError, …
        if not concerns_one(error):
            raise
        yield dropped("damaged_file", size, detail=describe(error), member=name)


class _Member(io.RawIOBase):
    """A member's bytes; ends early, with a `problem`, where they are damaged or too many."""

    def __init__(self, stream: Any, allowance: float) -> None:
        self._stream, self._left = stream, allowance
        self.problem: tuple[str, int, int, object] | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.problem:
            return 0
        try:
            data = self._stream.read(len(buffer))
        except Exception as error:  # BadZipFile, EOFError, and what the codecs raise
            if not concerns_one(error):
                raise
            reason = "truncated_file" if isinstance(error, EOFError) else "damaged_file"
            self.problem = (reason, 0, 0, error)
            return 0
        self._left -= len(data)
        if self._left < 0:
            self.problem = ("expands_too_much", 0, 0, "")
            return 0
        buffer[: len(data)] = data
        return len(data)


def _directory_bytes(stream: BinaryIO) -> int:
    """Bytes of a .zip file's directory, from the record at its end; 0 where that is not found."""
    end = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, end - 65557))
    tail = stream.read(65557)
    stream.seek(0)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < 22:
        return 0
    size: int = struct.unpack_from("<L", tail, at + 12)[0]
    if size != 0xFFFFFFFF:
        return size
    at = tail.rfind(b"PK\6\6", 0, at)
    return struct.unpack_from("<Q", tail, at + 40)[0] if at >= 0 and len(tail) - at >= 56 else 0
