"""Sources from a list of files, such as Common Crawl's, over HTTP; and which of the files are read."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from configs.schema.recipe import load
from configs.schema.sources import Source
from data_prep.documents.conversion import read_documents
from data_prep.readers.origins import origins
from data_prep.sources.file_lists import _fetched, source_files
from data_prep.sources.places import _remote_size
from data_prep.sources.unreadable import UnreadableFile
from data_prep.stages import text_needed
from data_prep.stages.graph import Plan
from data_prep.stages.pipeline import prepare_inline
from data_prep.stages.sample import sample
from data_prep.stages.text_needed import say_what_is_too_much

NAMES = [f"crawl-data/CC-MAIN/segments/{n // 4}/warc/CC-{n:05d}.jsonl.gz" for n in range(40)]

TENTH = ["00023", "00031", "00036", "00038"]


class Server(ThreadingHTTPServer):
    """Serves files by their paths; counts what is asked."""

    daemon_threads = True
    files: dict[str, bytes]
    asked: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        content = self.server.files.get(self.path)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.send_header("ETag", f'"{hash(content)}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content or b"")

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Forty files, and the list of their paths, packed."""
    monkeypatch.setattr("data_prep.sources.places.FIRST_PAUSE", 0.01)
    for known in (_fetched, _remote_size):  # ports come again
        known.cache_clear()
    made = Server(("127.0.0.1", 0), Handler)
    made.asked = []
    made.files = {f"/{name}": gzip.compress(json.dumps({"text": f"text of {name}"}).encode()) for name in NAMES}
    made.files["/warc.paths.gz"] = gzip.compress("\n".join(NAMES).encode() + b"\n")
    thread = threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def crawl(server: Server, **settings: Any) -> Source:
    paths = {"paths_file": f"{server.url}warc.paths.gz", "paths_prefix": server.url}
    return Source.model_validate({"name": "crawl", **paths, **settings})


def test_a_list_over_http(server: Server) -> None:
    source = crawl(server)
    assert [str(place) for _, place in source_files(source)] == [server.url + name for name in NAMES]
    assert [name for name, _ in source_files(source)] == [
        name.removeprefix("crawl-data/CC-MAIN/segments/") for name in NAMES
    ]
    assert server.asked.count("GET /warc.paths.gz") == 1  # once …
    assert not any("/crawl-data/" in item for item in server.asked)  # … and none of the files
    few = crawl(server, max_files=3, paths_prefix=server.url.rstrip("/"))
    assert [document.text for document in read_documents(few)] == [f"text of {name}" for name in NAMES[:3]]
    assert len(origins(few)) == 3


def test_a_sample_is_the_same_everywhere_and_part_of_a_larger_one(server: Server, tmp_path: Path) -> None:
    def names(**settings: Any) -> list[str]:
        return [name for name, _ in source_files(crawl(server, **settings))]

    every, half, tenth = names(), names(sample=0.5), names(sample=0.1)
    assert (len(half), len(tenth)) == (20, 4)
    assert set(tenth) < set(half) < set(every)
    assert half == [name for name in every if name in half]  # in the order of the list
    assert names(sample=0.5, max_files=2) == half[:2]
    assert names(sample=1e-9) != [] and len(names(sample=1e-9)) == 1
    assert [name[-14:-9] for name in tenth] == TENTH
    # The same files on a disk.
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    local = Source(name="s", path=str(tmp_path / "**" / "*.gz"), sample=0.1)
    assert [name for name, _ in source_files(local)] == tenth


def test_lists_on_a_disk(tmp_path: Path, server: Server) -> None:
    (tmp_path / "in [1]").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "in [1]" / name).write_text(f"text of {name}")
    places = tmp_path / "in [1]" / "list.txt"
    places.write_bytes("\ufeff# two files\r\n\r\nb.txt\r\na.txt\r\nb.txt\r\n".encode())
    source = Source(name="s", paths_file=str(places))
    assert [document.text for document in read_documents(source)] == ["text of b.txt", "text of a.txt"]
    (tmp_path / "in [1]" / "mixed.txt").write_text(f"x.txt\n{server.url}{NAMES[0]}\n{tmp_path}/in [1]/a.txt\n")
    mixed = Source(name="s", paths_file=str(tmp_path / "in [1]" / "mixed.txt"), paths_prefix="memory://bucket/")
    assert [str(place) for _, place in source_files(mixed)][:2] == ["memory://bucket/x.txt", server.url + NAMES[0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"the list of files is empty; it needs a path or URL a line"),
        (gzip.compress(b"a.txt\n" * 1000)[:-20], r"the list of files cannot be read"),
        (b"\xff\xfe\x00bad", r"the list of files cannot be read"),
        (b"<html><body>Not here</body></html>", r"is not a list of files .* it begins '<html>"),
        (b"a.txt\nfile:///etc/passwd\n", r"line 2: a list from elsewhere may not name file:// places"),
        (b"memory://x/a.txt\n", r"line 1: a list from elsewhere may not name memory:// places"),
        (b"filecache::http://x/a.txt\n", r"the protocol 'filecache::http' is not read here"),
    ],
    ids=["empty", "cut", "no text", "a page", "file", "memory", "chain"],
)
def test_lists_that_are_none(server: Server, content: bytes, message: str) -> None:
    server.files["/warc.paths.gz"] = content
    with pytest.raises(ValueError, match=message):
        source_files(crawl(server))


def test_mistakes_are_said(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match=r"/gone\.gz cannot be read"):
        source_files(Source(name="s", paths_file=f"{server.url}gone.gz"))
    with pytest.raises(
        ValueError, match=r"line 1: 'crawl-data.*' is not a URL; set `paths_prefix` .* such as http://127"
    ):
        source_files(crawl(server, paths_prefix=None))
    with pytest.raises(ValueError, match=r"absent\.txt: no such file; correct the `paths_file`"):
        source_files(Source(name="s", paths_file=str(tmp_path / "absent.txt")))
    server.files["/up"] = b"../../etc/passwd\n"
    with pytest.raises(ValueError, match=r"line 1: '\.\./\.\./etc/passwd' leads out of `paths_prefix`"):
        source_files(Source(name="s", paths_file=f"{server.url}up", paths_prefix=str(tmp_path)))
    for settings, message in (
        ({"path": "a", "paths_file": "b"}, "give exactly one of `path`"),
        ({"path": "a", "paths_prefix": "b"}, "`paths_prefix` needs `paths_file`"),
        ({"hub": {"path": "x"}, "max_files": 2}, "`sample` and `max_files` choose among files"),
        ({"path": "a", "sample": 0}, "greater than 0"),
        ({"path": "a", "sample": 1.5}, "less than or equal to 1"),
    ):
        with pytest.raises(ValidationError, match=message):
            Source.model_validate({"name": "s", **settings})


def recipe_of(directory: Path, source: dict[str, Any], **train: Any) -> Path:
    content = {
        "name": "case",
        "data": {"sources": [{"name": "crawl", **source}], "tokenizer": {"kind": "byte"}, "validation_fraction": 0},
        "model": {"family": "llama", "num_layers": 1, "hidden_size": 16, "num_heads": 1, "context_length": 16},
        "train": {"tokens": 1600, "global_batch_size": 1, **train},
        "out": str(directory / "run"),
    }
    (directory / "recipe.yaml").write_text(json.dumps(content))
    return directory / "recipe.yaml"


def test_from_a_recipe_to_shards(server: Server, tmp_path: Path) -> None:
    """Paths in the recipe resolve beside it; another choice of files is another stage, the same choice none."""
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "warc.paths").write_text("\n".join(NAMES))
    source = {"paths_file": "lists/warc.paths", "paths_prefix": server.url, "max_files": 2}
    recipe = load(recipe_of(tmp_path, source))
    manifest = prepare_inline(recipe)
    assert manifest.train[0].documents == 2
    assert [name for name in server.asked if "GET" in name] == [f"GET /{name}" for name in NAMES[:2]]
    same = Plan(load(recipe_of(tmp_path, {**source, "max_files": 39, "sample": 0.05})))
    assert same.documents.fingerprint != Plan(recipe).documents.fingerprint
    again = Plan(load(recipe_of(tmp_path, {"paths_file": f"{server.url}warc.paths.gz", **source, "max_files": 2})))
    assert again.documents.fingerprint == Plan(recipe).documents.fingerprint
    page, funnel = list(sample(load(recipe_of(tmp_path, {**source, "max_files": 40})), 10))[-1]
    assert page.is_file() and next(row["documents"] for row in funnel if row["reason"] == "read") == 8


def test_a_source_far_larger_than_the_run_needs_is_said(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(source: dict[str, Any], **train: Any) -> str:
        say_what_is_too_much(load(recipe_of(tmp_path, source, **train)))
        return capsys.readouterr().err

    for name in NAMES:
        server.files[f"/{name}"] = b"x" * 1000
    source = {"paths_file": f"{server.url}warc.paths.gz", "paths_prefix": server.url}
    monkeypatch.setattr(text_needed, "_SOON_READ", 1000.0)
    server.asked.clear()
    warning = said(source)
    assert "source crawl is 40 files of some 0.0 GB in all" in warning
    assert "times the text that 1,600 tokens of training need" in warning and "`max_files` or `sample`" in warning
    assert len([item for item in server.asked if "HEAD /crawl" in item]) == 8  # of a few files
    assert said({**source, "max_files": 1}) == ""
    assert said({**source, "max_documents": 5}) == ""
    assert said(source, tokens=1_000_000) == ""
    assert said(source, tokens=None, epochs=1) == ""
    # Of pages in their archives little is left.
    assert said({**source, "format": "warc"}) == ""
    monkeypatch.undo()
    assert said(source) == ""  # soon read
