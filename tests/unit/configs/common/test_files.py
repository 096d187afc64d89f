"""Files are whole or absent, whatever goes wrong while they are written."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from configs.common import files
from configs.common.files import (
    atomic_directory,
    atomic_path,
    content_identity,
    fingerprint,
    read_json,
    refuse_unwritable,
    remove_leftovers,
    sha256_file,
    write_json,
    write_text,
)


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("writer", [atomic_path, atomic_directory])
@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_named_by_what_was_being_written(
    tmp_path: Path, writer: Callable[[Path], AbstractContextManager[Path]], failure: Exception
) -> None:
    """A failed write knows no name, and libraries in Rust say it in words alone."""
    with pytest.raises(OSError) as error, writer(tmp_path / "export"):
        raise failure
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(tmp_path / "export"))
    with pytest.raises(OSError) as error, writer(tmp_path / "export"):
        raise OSError(errno.ENOSPC, "No space left on device", "/elsewhere")
    assert error.value.filename == "/elsewhere"


def test_a_pipe_or_a_device_is_not_replaced(tmp_path: Path) -> None:
    """A rename over /dev/null as root would put a plain file there, for every program of the machine."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for name in ("pipe", "link"):
        with pytest.raises(ValueError, match=f"{name} is a device or a pipe, and writing would put a file in its"):
            write_text(tmp_path / name, "text")
    assert pipe.is_fifo() and sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]


def test_what_cannot_be_written_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for place in ("file", "new", "no/such/directory/file"):
        refuse_unwritable(tmp_path / place)
    for place, words in ((".", "is a directory"), ("pipe", "a device or a pipe"), ("file/new", "file is not a dir")):
        with pytest.raises(ValueError, match=words):
            refuse_unwritable(tmp_path / place)
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(ValueError, match=f"no permission to write in {tmp_path}; choose"):
        refuse_unwritable(tmp_path / "no" / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pipe"]


def test_a_directory_is_replaced_as_a_unit(tmp_path: Path) -> None:
    target = tmp_path / "stage"
    with atomic_directory(target) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "old").write_text("1")
        assert not target.exists()
    with pytest.raises(RuntimeError), atomic_directory(target) as temporary:
        (temporary / "new").write_text("half")
        raise RuntimeError
    assert [path.name for path in target.rglob("*")] == ["sub", "old"]
    with atomic_directory(target) as temporary:
        (temporary / "new").write_text("2")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["stage"]


def test_a_killed_writer_leaves_what_the_next_one_removes(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    code = f"""
import time
from pathlib import Path
from configs.common.files import atomic_directory, atomic_path
with atomic_path(Path({str(target)!r})) as a, atomic_directory(Path({str(tmp_path / "d")!r})) as d:
    a.write_text("half"); (d / "x").write_text("half"); print("ready", flush=True); time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parents[4])
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert target.read_text() == "old" and not (tmp_path / "d").exists()
    assert len(list(tmp_path.iterdir())) == 3
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [target]
    remove_leftovers(tmp_path / "absent")


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"values": [0] * 20000})
    code = f"""
from pathlib import Path
from configs.common.files import write_json
for value in range(30):
    write_json(Path({str(target)!r}), {{"values": [value] * 20000}})
"""
    writer = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[4])
    seen = set()
    deadline = time.monotonic() + 60
    while writer.poll() is None and time.monotonic() < deadline:
        values = read_json(target)["values"]
        assert len(values) == 20000 and len(set(values)) == 1
        seen.add(values[0])
    assert writer.wait() == 0 and len(seen) > 1


def test_data_is_on_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda fd: (order.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(files.os, "replace", lambda a, b: (order.append("replace"), replace(a, b))[1])
    write_text(tmp_path / "a", "x")
    assert order == ["fsync", "replace", "fsync"]


def test_equal_values_give_equal_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": 1, "a": "é"})
    write_json(tmp_path / "b", {"a": "é", "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1}) != fingerprint({"a": 1, "b": [3]})
    (tmp_path / "a").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_json(tmp_path / "a")


def test_content_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a"
    file.write_bytes(bytes(range(256)) * 40)
    whole = content_identity(file)
    assert whole == {"bytes": 10240, "sha256": sha256_file(file)}
    os.utime(file, (1, 1))
    assert content_identity(file) == whole  # the time of a small file does not matter
    monkeypatch.setattr(files, "FULL_HASH_LIMIT_BYTES", 1000)
    monkeypatch.setattr(files, "_CHUNK_BYTES", 16)
    sampled = content_identity(file)
    assert content_identity(file) == sampled
    os.utime(file, (2, 2))
    assert content_identity(file) != sampled
    os.utime(file, (1, 1))
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"!")
    os.utime(file, (1, 1))
    assert content_identity(file) != sampled
