"""Readers: fsspec URLs, and servers that fail midway."""

from __future__ import annotations

import gzip
import io
import pickle
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.readers import Reading, read_records
from data_prep.sources.places import Remote, expand, names_within, place_identity, size_of
from data_prep.sources.unreadable import UnreadableFile
from tests.parts.reading import jsonl, read, texts

ROWS = [{"id": str(n), "text": f"text {n} " * 40} for n in range(3000)]


@pytest.fixture
def memory() -> Iterator[Any]:
    store = fsspec.filesystem("memory")
    yield store
    store.rm("/corpus", recursive=True)


def test_globs_names_and_identity_on_a_store(memory: Any, tmp_path: Path) -> None:
    for name in ("b/2.jsonl.gz", "a/1.jsonl.gz", "a/skip.csv"):
        memory.pipe(f"/corpus/{name}", gzip.compress(jsonl([{"text": name}])))
    files = expand("memory://corpus/**/*.jsonl.gz")
    assert [str(file) for file in files] == ["memory:///corpus/a/1.jsonl.gz", "memory:///corpus/b/2.jsonl.gz"]
    assert names_within(files) == ["a/1.jsonl.gz", "b/2.jsonl.gz"]
    documents, rejected = read("memory://corpus/**/*.jsonl.gz")
    assert [(d.id, d.text) for d in documents] == [(f"{d.text}:0", d.text) for d in documents]
    assert [d.text for d in documents] == ["a/1.jsonl.gz", "b/2.jsonl.gz"]
    assert not rejected
    assert size_of(files[0]) == len(gzip.compress(jsonl([{"text": "a/1.jsonl.gz"}])))
    before = place_identity(files[0])
    assert place_identity(files[0]) == before
    memory.pipe("/corpus/a/1.jsonl.gz", b"other")
    assert place_identity(files[0]) != before
    assert pickle.loads(pickle.dumps(files[0])) == files[0]
    (tmp_path / "own.jsonl").write_bytes(jsonl([{"text": "here"}]))
    assert names_within([*files, tmp_path / "own.jsonl"]) == ["a/1.jsonl.gz", "b/2.jsonl.gz", "own.jsonl"]


def test_formats_that_seek(memory: Any) -> None:
    with memory.open("/corpus/f.parquet", "wb") as sink:
        pq.write_table(pa.table({"text": ["a", "b"]}), sink)
    assert texts("memory://corpus/f.parquet") == ["a", "b"]
    with pytest.raises(ValueError, match="no such file"):
        expand("memory://corpus/*.zip")
    with pytest.raises(UnreadableFile, match=r"memory://corpus/absent\.txt cannot be read"):
        read("memory://corpus/absent.txt")


class Server(ThreadingHTTPServer):
    """Serves one content; breaks off answers after some bytes as often as told."""

    daemon_threads = True
    content = b""
    failures = 0
    ranges = True
    requests: list[str]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_HEAD(self) -> None:
        self.answer(b"" if self.path.startswith("/gone") else self.server.content, head=True)

    def do_GET(self) -> None:
        self.answer(self.server.content)

    def answer(self, content: bytes, head: bool = False) -> None:
        server = self.server
        server.requests.append(f"{self.command} {self.headers.get('Range', '')}")
        if self.path.startswith("/gone"):
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start, end = 0, len(content)
        wanted = self.headers.get("Range") if server.ranges else None
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(len(content), int(last) + 1 if last else len(content))
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(end - start))
        self.send_header("ETag", f'"{hash(content)}"')
        self.send_header("Accept-Ranges", "bytes" if server.ranges else "none")
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.end_headers()
        if head:
            return
        if server.failures:
            server.failures -= 1
            self.wfile.write(content[start : start + (end - start) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(content[start:end])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("data_prep.sources.places.FIRST_PAUSE", 0.01)
    made = Server(("127.0.0.1", 0), Handler)
    made.requests = []
    made.content = gzip.compress(jsonl(ROWS))
    thread = threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


def url(server: Server, path: str = "dir/f.jsonl.gz") -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/{path}"


@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_that_fails_midway_is_asked_again(server: Server, ranges: bool) -> None:
    server.ranges = ranges
    server.failures = 2
    assert texts(url(server)) == [row["text"] for row in ROWS]
    assert server.failures == 0


@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_that_keeps_failing_is_named(server: Server, ranges: bool) -> None:
    server.ranges = ranges
    server.failures = 1000
    with pytest.raises(UnreadableFile, match=r"http://127\.0\.0\.1:\d+/dir/f\.jsonl\.gz cannot be read"):
        list(read_records(Remote(url(server)), Reading(attempts=4)))
    asked = sum(request.startswith("GET") for request in server.requests)
    assert asked >= 4


@pytest.mark.parametrize("ranges", [True, False])
def test_a_table_behind_an_address(server: Server, ranges: bool) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["a", "b"]}), sink)
    server.content, server.ranges = sink.getvalue(), ranges
    assert texts(url(server, "f.parquet")) == ["a", "b"]


def test_pauses_grow(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("data_prep.sources.places.time.sleep", pauses.append)
    server.failures, server.ranges = 1000, False
    with pytest.raises(UnreadableFile):
        list(read_records(Remote(url(server)), Reading(attempts=4)))
    assert pauses[-3:] == [0.01, 0.02, 0.04]


def test_a_page_that_is_not_there(server: Server) -> None:
    with pytest.raises(UnreadableFile, match=r"/gone/f\.jsonl cannot be read"):
        read(url(server, "gone/f.jsonl"))


def test_names_and_identity_of_an_address(server: Server) -> None:
    (file,) = expand(url(server, "dir/f.jsonl.gz?version=2"))
    assert file.name == "f.jsonl.gz"
    (name,) = names_within([file])
    assert re.fullmatch(r"f\.jsonl\.gz\?[0-9a-f]{8}", name), "the query may be a secret"
    identity = place_identity(file)
    assert identity["bytes"] == len(server.content)
    assert "ETag" in identity
    server.content = gzip.compress(b"x")
    assert place_identity(Remote(url(server, "dir/f.jsonl.gz?version=2"))) != identity
