"""Data preparation as users meet it: interrupted anywhere, any number of workers, bad input, a full disk."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
import zstandard

from configs.common import files
from configs.schema.recipe import Recipe, load
from data_prep import __main__ as command_line
from data_prep.stages import make_tokens, pipeline
from data_prep.stages.pipeline import is_current, prepare, prepare_inline
from data_prep.stages.verify import verify
from data_prep.tokens import encode
from data_prep.tokens.shards import load_manifest
from data_prep.workers.cluster import Cluster

ROOT = Path(__file__).parents[2]
INLINE = """
import sys
from configs.schema.recipe import load
from data_prep.stages.pipeline import prepare_inline
prepare_inline(load(sys.argv[1]))
"""


def make_corpus(directory: Path) -> None:
    """Two sources in five files of several formats, with duplicates within and across, and bad records."""
    chance = random.Random(7)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 9))) for _ in range(3000)]
    words += ["中文", "schön", "😀", "don't", "1984", "e\u0301"]
    directory.mkdir()

    def text() -> str:
        return "\n".join(" ".join(chance.choices(words, k=12)) + "  " for _ in range(chance.randint(1, 30)))

    texts = [text() for _ in range(900)]
    for number in range(3):
        chosen = [texts[chance.randrange(len(texts))] for _ in range(300)]
        lines = [json.dumps({"id": f"{number}-{n}", "text": t, "url": f"http://x/{n}"}) for n, t in enumerate(chosen)]
        lines[5:5] = ['{"text": "broken', '{"text": ""}', '{"title": "no text"}']
        data = "\n".join(lines).encode() + b'\n{"text": "\xff"}\n'
        packed = [data, gzip.compress(data), zstandard.ZstdCompressor().compress(data)][number]
        (directory / f"part-{number}.jsonl{['', '.gz', '.zst'][number]}").write_bytes(packed)
    (directory / "book.txt").write_text("\n\n".join(texts[:400]), encoding="utf-8")
    (directory / "long.txt").write_text("\n".join(text() for _ in range(200)), encoding="utf-8")


def make_recipe(directory: Path, out: Path, **data: Any) -> Path:
    """Writes a recipe over the corpus; returns the file."""
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "name": "t",
        "out": str(out / "run"),
        "data": {
            "sources": [
                {"name": "web", "path": str(directory / "part-*.jsonl*"), "weight": 1.0},
                {
                    "name": "books",
                    "path": [str(directory / "book.txt"), str(directory / "long.txt")],
                    "text_documents": "paragraph",
                    "weight": 2.0,
                },
            ],
            "tokenizer": {"vocab_size": 1000, "sample_bytes": 400_000},
            "validation_fraction": 0.05,
            "max_document_bytes": 20_000,
            "unit_bytes": 30_000,
            "shard_tokens": 40_000,
            **data,
        },
        "model": {"num_layers": 1, "hidden_size": 8, "num_heads": 1},
        "train": {"steps": 1},
    }
    file = out / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def shard_hashes(run: Path) -> dict[str, str]:
    """SHA-256 of everything that training reads."""
    data = run / "data"
    made = [*data.glob("shards/**/*"), *data.glob("tokenizer/*"), data / "manifest.json"]
    return {str(p.relative_to(data)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(made) if p.is_file()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data") / "corpus"
    make_corpus(directory)
    return directory


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of an uninterrupted run in one process."""
    file = make_recipe(corpus, tmp_path_factory.mktemp("whole"))
    prepare_inline(load(file))
    return file.parent / "run"


def test_funnel_and_manifest(whole: Path) -> None:
    manifest = load_manifest(whole / "data")
    counts = {(row["source"], row["reason"]): row["documents"] for row in manifest.funnel}
    assert counts["web", "read"] == 3 * 304
    assert [counts["web", reason] for reason in ("invalid_json", "missing_text", "invalid_utf8", "empty")] == [
        3,
        3,
        3,
        3,
    ]
    assert counts["web", "duplicate"] > 50
    assert counts["books", "duplicate"] > 50
    for split, sources in (("train", manifest.train), ("validation", manifest.validation)):
        assert {source.name: source.documents for source in sources} == {
            name: counts[name, split] for name in ("web", "books")
        }
    assert [source.weight for source in manifest.train] == [1.0, 2.0]
    assert len(manifest.train[0].prefixes) > 1
    rejected = json.loads((whole / "data" / "manifest.json").read_text())["rejected"]
    reasons = ("read/invalid_json", "read/missing_text", "read/invalid_utf8", "quality/empty")
    assert {example["key"] for example in rejected} - {"normalize/normalized"} == set(reasons)
    assert "funnel adds up" in verify(whole / "data")


def test_killed_at_random_moments(corpus: Path, whole: Path, tmp_path: Path) -> None:
    file = make_recipe(corpus, tmp_path)
    chance = random.Random(os.getpid())
    survived = 0
    for _ in range(10):
        process = subprocess.Popen([sys.executable, "-c", INLINE, str(file)], cwd=ROOT, stderr=subprocess.DEVNULL)
        before = unit_count(tmp_path)
        while process.poll() is None and unit_count(tmp_path) == before:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        survived = process.wait()
        if survived == 0:
            break
    assert survived in (0, -signal.SIGKILL)
    prepare_inline(load(file))
    assert shard_hashes(tmp_path / "run") == shard_hashes(whole)
    assert not [path for path in (tmp_path / "run").rglob("*") if path.name.endswith(files.TEMPORARY_SUFFIX)]


def unit_count(directory: Path) -> int:
    """Changes with every unit committed and stage finished."""
    return sum(1 for _ in (directory / "run").rglob("*.json"))


def processes_with(marker: str) -> list[int]:
    """Processes that inherited this variable, but for two agents of Ray that take a minute to end."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if marker.encode() in path.read_bytes() and b"Agent" not in path.with_name("cmdline").read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_on_ray_killed_and_run_again(corpus: Path, whole: Path, tmp_path: Path) -> None:
    file = make_recipe(corpus, tmp_path, workers=2)
    marker = f"REPLICA_TEST={os.getpid()}-{time.time_ns()}"
    environment = {**os.environ, **dict([marker.split("=")])}
    command = [sys.executable, "-m", "data_prep", "run", str(file)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and unit_count(tmp_path) < 12:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert shard_hashes(tmp_path / "run") == shard_hashes(whole)
    deadline = time.monotonic() + 20
    while processes_with(marker) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not processes_with(marker), "Ray left processes behind"
    started = time.monotonic()
    assert is_current(load(file))
    assert time.monotonic() - started < 2


@pytest.mark.slow
def test_errors_come_through_ray() -> None:
    with Cluster(workers=1) as cluster:
        assert sorted(result for _, result in cluster.map(int, ["1", "2", "3"])) == [1, 2, 3]
        started = {Path(word).name for child in psutil.Process().children() for word in child.cmdline()[:4]}
        assert "raylet" in started
        assert started.isdisjoint({"monitor.py", "log_monitor.py", "dashboard.py"}), "processes with nothing to do"
        with pytest.raises(ValueError, match=r"^invalid literal for int"):
            list(cluster.map(int, ["1", "x"]))


def test_a_current_run_starts_nothing(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load(whole.parent / "recipe.yaml")
    monkeypatch.setattr(pipeline, "Cluster", None)
    assert prepare(recipe).fingerprint == load_manifest(whole / "data").fingerprint
    assert not is_current(load(whole.parent / "recipe.yaml", ["data.validation_fraction=0.1"]))
    assert not is_current(load(whole.parent / "recipe.yaml", ["data.sources.0.weight=3"]))


def test_only_what_changed_is_done_again(corpus: Path, tmp_path: Path, whole: Path) -> None:
    file = make_recipe(corpus, tmp_path)
    prepare_inline(load(file))
    documents = tmp_path / "run" / "data" / "documents" / "manifest.json"
    stamp = documents.stat().st_mtime_ns
    prepare_inline(load(file, ["data.sources.0.weight=3", "data.shard_tokens=1000000"]))
    manifest = load_manifest(tmp_path / "run" / "data")
    assert documents.stat().st_mtime_ns == stamp
    assert [len(source.prefixes) for source in manifest.train] == [1, 1]
    assert manifest.train[0].weight == 3


def test_slow_encoder_gives_the_same_shards(
    corpus: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(make_tokens, "fast_encoder", lambda vocab, dtype: lambda text: b"\x01\x00" * len(text))
    file = make_recipe(corpus, tmp_path)
    prepare_inline(load(file))
    assert "the fast encoder gave other ids" in capsys.readouterr().err
    assert shard_hashes(tmp_path / "run") == shard_hashes(whole)
    assert encode.fast_encoder is not make_tokens.fast_encoder


# ------------------------------------------------------------------------------------------------------------ bad input
def fails(capsys: pytest.CaptureFixture[str], file: Path, *overrides: str) -> str:
    """The one line that the command prints, without a traceback, before it exits with 2."""
    assert command_line.main(["run", str(file), *overrides]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    leftovers = [path for path in file.parent.rglob("*") if path.name.endswith(files.TEMPORARY_SUFFIX)]
    assert not leftovers
    return line


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line, "prepare", prepare_inline)


def write_corpus(path: Path, data: bytes) -> Callable[[Path], Path]:
    path.write_bytes(data)

    def recipe(out: Path) -> Path:
        return make_recipe(path.parent, out, sources=[{"name": "s", "path": str(path)}])

    return recipe


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.jsonl", b"", "source s: no document could be read (found: nothing)"),
        ("a.jsonl", b'{"body": "x"}\n', "missing_text 1"),
        ("a.jsonl.zst", b"this is no zstd", "invalid_json 1 (a.jsonl.zst)"),
        ("a.parquet", b"PAR1 this is no parquet", "damaged_file 1 (a.parquet)"),
        ("a.jsonl", b'{"text": "a little text"}\n' * 9, "the training text supports only 2"),
    ],
)
def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, data: bytes, expected: str) -> None:
    file = write_corpus(tmp_path / name, data)(tmp_path / "out")
    assert expected in fails(capsys, file)
    assert not (tmp_path / "out" / "run" / "data" / "manifest.json").exists()


@pytest.mark.usefixtures("inline")
def test_more_bad_input(whole: Path, tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = make_recipe(corpus, tmp_path)
    assert "absent.jsonl: no such file" in fails(capsys, file, f"data.sources.0.path={tmp_path}/absent.jsonl")
    kind = "data.tokenizer={kind: file, path: %s, special_tokens: ['<eos>']}"
    assert "no token '<eos>'" in fails(capsys, file, kind % (whole / "data" / "tokenizer"))
    assert "no tokenizer.json here" in fails(capsys, file, kind % (tmp_path / "absent"))
    assert "the training split is empty" in fails(
        capsys, file, "data.sources.0.split=validation", "data.sources.1.split=validation"
    )
    with pipeline.only_one(tmp_path / "run" / "data"):
        assert "another process prepares data" in fails(capsys, file)


@pytest.mark.usefixtures("inline")
def test_full_disk(
    corpus: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make_recipe(corpus, tmp_path)
    calls = {"left": 100}
    flush = files.fsync_path

    def full(path: Path) -> None:
        calls["left"] -= 1
        if calls["left"] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        flush(path)

    monkeypatch.setattr(files, "fsync_path", full)
    for amount in (100, 40, 150):
        calls["left"] = amount
        assert "disk is full" in fails(capsys, file)
    calls["left"] = 10**9
    assert command_line.main(["run", str(file)]) == 0
    assert shard_hashes(tmp_path / "run") == shard_hashes(whole)


def test_tampered_data_is_noticed(corpus: Path, tmp_path: Path) -> None:
    recipe: Recipe = load(make_recipe(corpus, tmp_path, tokenizer={"kind": "byte"}))
    manifest = prepare_inline(recipe)
    shard = manifest.train[0].prefixes[0]
    binary = shard.with_name(shard.name + ".bin")
    data = binary.read_bytes()
    binary.write_bytes(data[:100] + b"\xff\xff" + data[102:])
    with pytest.raises(ValueError, match=r"\.bin is missing or not as it was written"):
        verify(manifest.directory)
    binary.write_bytes(data[:-2])
    with pytest.raises(ValueError, match="bytes; run `replica data RECIPE` again"):
        load_manifest(manifest.directory)
    binary.write_bytes(data)
    tokenizer = manifest.tokenizer / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"<|endoftext|>"', '"<|other|>"'))
    (manifest.tokenizer / "tokenizer_config.json").write_text('{"eos_token": "<|other|>"}')
    with pytest.raises(ValueError, match="not the tokenizer that the shards"):
        load_manifest(manifest.directory)
