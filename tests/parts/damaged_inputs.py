"""Damaged files for every reader, and what must hold for each of them.

    python -m tests.parts.damaged_inputs                       all readers, a minute
    python -m tests.parts.damaged_inputs --seconds 600         longer
    python -m tests.parts.damaged_inputs --reader csv --seed 7 one input again, which is kept for a look

An input follows from its reader's name and seed alone. It goes through the stage `documents` as in `replica data`:
reading, extraction and all steps on documents. No error leaves the stage; what was read is what stays and what was
dropped, by reason, in documents and bytes; and the files written are the same for any number of workers.
"""

from __future__ import annotations

import argparse
import bz2
import contextlib
import gzip
import io
import json
import lzma
import random
import re
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import lz4.frame
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from configs.schema.data import Data
from configs.schema.sources import Source
from data_prep.documents.parts_writer import FileTask, collect_file
from data_prep.funnel.tally import KEPT, READ, check
from data_prep.readers.origins import origins
from data_prep.workers.stage import Stage

LONGEST_SECONDS = 20.0  # of processor time for one input of some kilobytes
# Errors of code, not of data: where one was caught and counted, a reader of ours has something to learn.
_OURS = (
    "AssertionError", "AttributeError", "IndexError", "KeyError", "NameError", "TypeError", "UnboundLocalError",
    "ZeroDivisionError", "RecursionError",
)  # fmt: skip
WORDS = (
    "the", "naïve", "中文", "quick", '"quoted"', "x@example.org", "1.5", "{}", "<b>", "a,b", "tab\there", "=", "🙂",
)  # fmt: skip


def _sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randrange(1, 25))) + rng.choice([".", "", "\n", "?\n\nNext."])


# ----------------------------------------------------------------------------------------------------------- good files
def _json_rows(rng: random.Random) -> list[dict[str, Any]]:
    return [
        {"id": n, "text": _sentence(rng), "more": {"n": n, "list": [1, {"a": "b"}]}} for n in range(rng.randrange(12))
    ]


def _jsonl(rng: random.Random) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in _json_rows(rng)).encode()


def _json(rng: random.Random) -> bytes:
    return json.dumps(_json_rows(rng), indent=rng.choice([None, 0, 2])).encode() if rng.random() < 0.7 else _jsonl(rng)


def _table(rng: random.Random, delimiter: str) -> bytes:
    def value(text: str) -> str:
        if rng.random() < 0.3 or delimiter in text or "\n" in text:
            return '"' + text.replace('"', '""') + '"'
        return text

    rows = [["id", "text", "note"], *([str(n), _sentence(rng), "x"] for n in range(rng.randrange(12)))]
    end = rng.choice(["\n", "\r\n", "\r"])
    return end.join(delimiter.join(map(value, row)) for row in rows[rng.randrange(2) :]).encode()


def _text(rng: random.Random) -> bytes:
    return "\n".join(_sentence(rng) for _ in range(rng.randrange(30))).encode(
        rng.choice(["utf-8", "utf-16", "utf-8-sig"])
    )


def _markdown(rng: random.Random) -> bytes:
    front = rng.choice(
        ["title: A\ndate: 2024-01-02\ntags: [a, b]", "draft: !!bool maybe", "a: &a [*a]", "- x", "x: 0x1f"]
    )
    return (f"---\n{front}\n---\n# Head\n" + _text(rng).decode(errors="replace")).encode()


def _html(rng: random.Random) -> bytes:
    body = "".join(f"<div class='c{n}'><p>{_sentence(rng)}<i>x</i></p><table><tr><td>1</table>" for n in range(8))
    return f"<!doctype html><html><head><title>T</title><meta charset=utf-8></head><body>{body}</body></html>".encode()


def _xml(rng: random.Random) -> bytes:
    body = "".join(f"<section id='{n}'><p>words {n} &amp; <em>more</em><![CDATA[<x>]]></p></section>" for n in range(9))
    return f'<?xml version="1.0" encoding="utf-8"?><article xmlns:m="urn:m">{body}<m:math/></article>'.encode()


def _fasta(rng: random.Random) -> bytes:
    return b"".join(
        b">seq%d name\n%s\n" % (n, bytes(rng.choices(b"ACGTN-* \n", k=60))) for n in range(rng.randrange(9))
    )


def _fastq(rng: random.Random) -> bytes:
    return b"".join(b"@s%d\n%s\n+\n%s\n" % (n, b"ACGT" * 4, bytes(rng.choices(b"!I@+", k=16))) for n in range(7))


def _parquet(rng: random.Random) -> bytes:
    rows = _json_rows(rng) or [{"id": 0, "text": "a", "more": {"n": 1, "list": []}}]
    table = pa.table(
        {
            "text": pa.array([row["text"] for row in rows]),
            "id": pa.array([row["id"] for row in rows]),
            "lines": pa.array([[row["text"], "x"] for row in rows]),
            "map": pa.array([[("k", row["text"])] for row in rows], pa.map_(pa.string(), pa.string())),
            "day": pa.array([row["id"] * 10**6 for row in rows], pa.date32()),
        }
    )
    sink = io.BytesIO()
    compression = rng.choice(["none", "snappy", "gzip", "zstd"])
    pq.write_table(table, sink, row_group_size=4, compression=compression, write_page_checksum=rng.random() < 0.3)
    return sink.getvalue()


def _warc(rng: random.Random) -> bytes:
    out = b""
    for number in range(rng.randrange(1, 6)):
        page = _html(rng) if rng.random() < 0.7 else _text(rng)
        kind = rng.choice(["text/html", "text/html; charset=gbk", "text/plain", ""])
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n"
        packed = rng.choice(["", "gzip", "deflate", "br", "zstd", "chunked"])
        if packed == "gzip":
            page, head = gzip.compress(page), head + "Content-Encoding: gzip\r\n"
        elif packed == "chunked":
            page, head = b"%x\r\n%s\r\n0\r\n\r\n" % (len(page), page), head + "Transfer-Encoding: chunked\r\n"
        elif packed:
            head += f"Content-Encoding: {packed}\r\n"
        body = head.encode() + b"\r\n" + page
        out += (
            (
                f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://example.org/{number}\r\n"
                f"WARC-Record-ID: <urn:{number}>\r\nContent-Type: application/http\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            ).encode()
            + body
            + b"\r\n\r\n"
        )
    return out


def _members(rng: random.Random) -> list[tuple[str, bytes]]:
    kinds = [kind for kind in GOOD if kind not in ("tar", "zip")]
    return [(f"d/{n}.{kind}", GOOD[kind](rng)) for n, kind in enumerate(rng.choices(kinds, k=rng.randrange(1, 5)))]


def _tar(rng: random.Random) -> bytes:
    sink = io.BytesIO()
    form = rng.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    with tarfile.open(fileobj=sink, mode="w", format=form) as archive:
        for name, data in _members(rng):
            info = tarfile.TarInfo(name if form == tarfile.USTAR_FORMAT else name * 30 + "é" + name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def _zip(rng: random.Random) -> bytes:
    sink = io.BytesIO()
    method = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    with zipfile.ZipFile(sink, "w", method) as archive:
        for name, data in _members(rng):
            archive.writestr(name, data)
    return sink.getvalue()


GOOD: dict[str, Callable[[random.Random], bytes]] = {
    "jsonl": _jsonl, "json": _json, "csv": lambda rng: _table(rng, rng.choice(",;|")),
    "tsv": lambda rng: _table(rng, "\t"), "txt": _text, "md": _markdown, "html": _html, "xml": _xml, "fasta": _fasta,
    "fastq": _fastq, "parquet": _parquet, "warc": _warc, "tar": _tar, "zip": _zip,
}  # fmt: skip
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, ".gz": gzip.compress, ".zst": zstandard.compress, ".lz4": lz4.frame.compress, ".bz2": bz2.compress,
    ".xz": lzma.compress,
}  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- damage
def _place(rng: random.Random, data: bytes) -> slice:
    start = rng.randrange(len(data) + 1)
    return slice(start, min(len(data), start + rng.choice([1, 2, 4, 16, 200, 5000])))


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _out(rng: random.Random, data: bytes) -> bytes:
    place = _place(rng, data)
    return data[: place.start] + data[place.stop :]


def _doubled(rng: random.Random, data: bytes) -> bytes:
    place = _place(rng, data)
    return data[: place.stop] + data[place.start :]


def _shuffled(rng: random.Random, data: bytes) -> bytes:
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(3))
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    rng.shuffle(pieces)
    return b"".join(pieces)


def _flipped(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 3, 20])):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwritten(rng: random.Random, data: bytes) -> bytes:
    place = _place(rng, data)
    junk = rng.choice(
        [rng.randbytes(place.stop - place.start), b"\0" * 8, b'"', b"\xff" * 4, b"\xef\xbb\xbf", b"\x1b]0;"]
    )
    return data[: place.start] + junk + data[place.start + len(junk) * rng.randrange(2) :]


def _coded(rng: random.Random, data: bytes) -> bytes:
    coding = rng.choice(
        ["utf-16", "utf-16-be", "utf-32", "latin-1", "cp1252", "gb18030", "shift_jis", "utf-7", "cp037"]
    )
    text = data.decode("utf-8", errors="replace")
    return text.encode(coding, errors="replace") if rng.random() < 0.7 else data.decode("latin-1").encode("utf-8")


def _ends(rng: random.Random, data: bytes) -> bytes:
    return data.replace(b"\n", rng.choice([b"\r", b"\r\n", b"", b"\n\r", b"\0", "\u2028".encode()]))


def _sizes(rng: random.Random, data: bytes) -> bytes:
    """Numbers in text and in binary headers become hostile ones."""
    if rng.random() < 0.5 and (found := list(re.finditer(rb"\d+", data))):
        place = rng.choice(found)
        number = rng.choice([b"0", b"-1", b"9" * 19, b"9" * 30, b"1" + b"0" * 5000, b"2147483648", b"1e999", b"0x10"])
        return data[: place.start()] + number + data[place.end() :]
    number = struct.pack(rng.choice(["<I", ">I", "<Q"]), rng.choice([0, 2**31 - 1, 2**31, 2**32 - 1]))
    start = rng.randrange(len(data) + 1)
    return data[:start] + number + data[start + len(number) :]


def _nested(rng: random.Random, data: bytes) -> bytes:
    piece = rng.choice([b"[", b'{"a":', b"<div>", b"<a x=", b'"', b"(", b"&amp;", b"- ", b"a: "]) * rng.choice(
        [50, 3000]
    )
    start = rng.randrange(len(data) + 1)
    return data[:start] + piece + data[start:]


def _empty(_rng: random.Random, _data: bytes) -> bytes:
    return b""


DAMAGE = (
    _cut,
    _out,
    _doubled,
    _shuffled,
    _flipped,
    _flipped,
    _overwritten,
    _coded,
    _ends,
    _sizes,
    _sizes,
    _nested,
    _empty,
)
# What says of a whole file what it is: of a record within, it would be believed of the others too.
OF_FILES = (_coded, _empty)


def damaged(reader: str, seed: int) -> tuple[str, bytes, dict[str, Any]]:
    """The name, the bytes and the settings of a source, for the seed."""
    rng = random.Random(f"{reader} {seed}")
    data = GOOD[reader](rng)
    packing = rng.choice([*PACK, "", "", ""])
    before = rng.random() < 0.6  # damage what is packed, or the packed file
    rounds = rng.choice([1, 1, 2, 4])
    for _ in range(rounds if before else 0):
        data = rng.choice(DAMAGE)(rng, data)
    data = PACK[packing](data)
    if packing and rng.random() < 0.2:
        data += rng.choice([b"garbage", PACK[packing](GOOD[reader](rng)), b"\0" * 600])
    for _ in range(0 if before else rounds):
        data = rng.choice(DAMAGE)(rng, data)
    name = f"a.{reader}{packing}" if rng.random() < 0.9 else f"a.{rng.choice([*GOOD])}{rng.choice([*PACK])}"
    settings: dict[str, Any] = {
        "text_documents": rng.choice(["file", "line", "paragraph"]),
        "text_field": rng.choice(["text", "text", "*", ["text", "lines", "map.k"], "more.list.a"]),
        "markup": rng.choice(["auto", "auto", "none", "html", "xml"]),
        "header": rng.choice([None, None, True, False]),
    }
    if rng.random() < 0.1:
        settings["format"] = rng.choice(["text", "jsonl", "json", "csv", "parquet", "html", "xml", "warc", "fasta"])
    return name, data, settings


# ----------------------------------------------------------------------------------------------------------- invariants
def _data(source: Source, rng: random.Random) -> Data:
    return Data.model_validate(
        {
            "sources": [source],
            "extract": {"html": rng.choice(["trafilatura", "resiliparse", "text"])},
            "lines": {"boilerplate": True},
            "quality": {"rules": [{"rule": "gopher_repetition"}, {"rule": "c4"}]} if rng.random() < 0.3 else {},
            "privacy": {"emails": True, "ip_addresses": True, "phone_numbers": rng.random() < 0.2, "keys": True},
            "limits": {"record_bytes": rng.choice([2**28, 1024, 4096]), "expansion": rng.choice([1000, 20])},
            "unit_bytes": rng.choice([1024, 2**20]),
            "max_document_bytes": rng.choice([1024, 16_000_000]),
            "keep_dropped": True,
        }
    )


def _outcome(task: FileTask, stride: int) -> dict[str, Any]:
    """What so many workers make of a file: counts, examples, sizes and hashes of all that is written."""
    counts = {
        collect_file(FileTask(task.stage, task.data, task.origin, task.number, first, stride))
        for first in range(stride)
    }
    assert len(counts) == 1, f"workers disagree on how many parts there are: {counts}"
    names = sorted(task.stage.committed())
    assert len(names) == counts.pop()
    return {name: task.stage.unit(name) for name in names}


def examine(reader: str, seed: int, place: Path) -> int:
    """Prepares one input in this directory; returns how many records it had.

    Raises:
        AssertionError: what must hold does not.
    """
    name, content, settings = damaged(reader, seed)
    place.mkdir(parents=True, exist_ok=True)
    (place / name).write_bytes(content)
    source = Source(name="s", path=str(place / name), **settings)
    data = _data(source, random.Random(seed))
    (origin,) = origins(source)
    started = time.process_time()
    outcomes = []
    for stride in (1, 3):
        stage = Stage(place / f"out{stride}", {"stride": stride})
        stage.begin()
        outcomes.append(_outcome(FileTask(stage, data, origin, "000-00000", 0, stride), stride))
    seconds = (time.process_time() - started) / 2
    assert outcomes[0] == outcomes[1], "other files with more workers"
    assert seconds < LONGEST_SECONDS, f"{seconds:.0f} s"
    rows: dict[str, list[int]] = {}
    for unit in outcomes[0].values():
        for example in unit["examples"]:
            said = example.get("detail", "") + example["excerpt"]
            assert not said.startswith(_OURS), f"{example['key']} {example['id']}: {said}"
        for key, values in unit["counts"].items():
            entry = rows.setdefault(key, [0, 0])
            entry[0], entry[1] = entry[0] + values[0], entry[1] + values[1]
    listed = [
        {"source": "s", "reason": "read" if key == READ else key, "documents": n, "bytes": size, "tokens": 0}
        for key, (n, size) in rows.items()
    ]
    check(listed)
    assert all(row["documents"] >= 0 for row in listed)
    assert rows.get(KEPT, [0])[0] == sum(unit["documents"] for unit in outcomes[0].values())
    return rows.get(READ, [0])[0]


@contextlib.contextmanager
def quickly() -> Iterator[None]:
    """Without waiting for disks."""
    with mock.patch("configs.common.files.fsync_path"):
        yield


def explore(seconds: float, seeds: Iterator[int], readers: list[str]) -> tuple[dict[str, int], list[str]]:
    """Tries inputs of all readers in turn until the time is over; returns how many of each, and what failed."""
    tried = dict.fromkeys(readers, 0)
    failed: list[str] = []
    end = time.monotonic() + seconds
    with quickly():
        for seed in seeds:
            for reader in readers:
                if time.monotonic() > end:
                    return tried, failed
                with tempfile.TemporaryDirectory() as directory:
                    try:
                        examine(reader, seed, Path(directory))
                    except Exception:
                        again = f"python -m tests.parts.damaged_inputs --reader {reader} --seed {seed}"
                        failed.append(f"{again}\n{traceback.format_exc()}")
                tried[reader] += 1
    return tried, failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", choices=[*GOOD], help="this one alone")
    parser.add_argument("--seed", type=int, help="this input alone; what is made of it stays in damaged-input/")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    readers = [arguments.reader] if arguments.reader else [*GOOD]
    if arguments.seed is not None:
        print(examine(readers[0], arguments.seed, Path("damaged-input")), "records")
        return 0
    tried, failed = explore(arguments.seconds, iter(range(arguments.first, sys.maxsize)), readers)
    print("\n".join(failed))
    print(f"{sum(tried.values())} inputs, {len(failed)} failed:", ", ".join(f"{name} {n}" for name, n in tried.items()))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
