"""Keeps answers of a part of an evaluation on disk while it is scored, so that it goes on after a kill.

`scores/partial/PART.jsonl` begins with a line that says what the answers belong to. Each other line is one answer under
its key. Lines are only appended, and the file is removed when the part's scores are stored. A last line that was cut
off by the kill is dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from configs.common.notices import say
from pretrain.parallel.lockstep import ALONE, Lockstep

DIRECTORY = "partial"  # in the directory of scores


class Journal:
    """Answers that were given, of the part under way. Rank 0 reads and writes; all ranks know the same.

    Args:
        directory: created when needed; removed when it is empty.
        ranks: the ranks that evaluate together.
    """

    def __init__(self, directory: Path, ranks: Lockstep = ALONE) -> None:
        self._directory, self._ranks = directory, ranks
        self._file: Path | None = None
        self._descriptor = -1
        self._head: dict[str, str] = {}
        self._known: dict[str, Any] = {}
        self._calls = 0

    @property
    def is_open(self) -> bool:
        """Tells whether answers are kept now."""
        return self._file is not None

    @contextmanager
    def keeping(self, name: str, fingerprint: str, again: bool = False) -> Iterator[None]:
        """Keeps the answers that are written in the body. When the body ends well, they are removed.

        Args:
            name: file name without its ending.
            fingerprint: of all that decides the answers; answers under another one are dropped.
            again: drop all answers.
        """
        self._file, self._calls, self._head = self._directory / f"{name}.jsonl", 0, {"fingerprint": fingerprint}
        self._known = self._ranks.of_main(lambda: self._read(again), f"journal of {name}")
        if self._known and self._ranks.is_main:
            say(f"{name}: goes on after {len(self._known):,} answers of an interrupted evaluation")
        try:
            yield
            if self._ranks.is_main:
                self._file.unlink(missing_ok=True)
        finally:
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._file, self._descriptor, self._known = None, -1, {}
            if self._ranks.is_main:
                with suppress(OSError):
                    self._directory.rmdir()  # when it is empty

    def next_call(self) -> int:
        """Counts the calls that answers are kept of: 1, 2 and so on in each part."""
        self._calls += 1
        return self._calls

    def known(self, key: str) -> Any:
        """Returns the answer under a key; None where there is none."""
        return self._known.get(key)

    def write(self, answers: Mapping[str, Any]) -> None:
        """Appends answers, as JSON, and waits until they are on disk.

        Raises:
            OSError: when the disk is full.
        """
        if self._file is None or not self._ranks.is_main:
            return
        if self._descriptor < 0:
            self._descriptor = _open(self._file, self._head, fresh=not self._known)
        lines = "".join(json.dumps([key, answer], separators=(",", ":")) + "\n" for key, answer in answers.items())
        data = memoryview(lines.encode())
        while data:
            data = data[os.write(self._descriptor, data) :]
        os.fsync(self._descriptor)

    def _read(self, again: bool) -> dict[str, Any]:
        assert self._file is not None
        return {} if again else _read(self._file, self._head)


def _open(file: Path, head: Mapping[str, str], fresh: bool) -> int:
    """Opens a journal for appending; returns its descriptor. A cut-off line at the end is cut away."""
    file.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(file, flags, 0o666)
    try:
        if fresh:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, (json.dumps(head) + "\n").encode())
        else:
            os.ftruncate(descriptor, _whole_bytes(file))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _read(file: Path, head: Mapping[str, str]) -> dict[str, Any]:
    """Reads the answers up to the first line that is damaged; none where the file belongs to something else."""
    found: dict[str, Any] = {}
    for number, (line, _) in enumerate(_lines(file)):
        if number == 0:
            if line != head:
                return {}
        else:
            found[line[0]] = line[1]
    return found


def _whole_bytes(file: Path) -> int:
    return max((end for _, end in _lines(file)), default=0)


def _lines(file: Path) -> Iterator[tuple[Any, int]]:
    """Yields the content of each whole line and the place where it ends, up to the first that is damaged."""
    end = 0
    with suppress(FileNotFoundError), file.open("rb") as stream:
        for number, line in enumerate(stream):
            end += len(line)
            try:
                content = json.loads(line) if line.endswith(b"\n") else None
            except (ValueError, RecursionError):
                return
            if not (isinstance(content, dict) if number == 0 else _is_answer(content)):
                return
            yield content, end


def _is_answer(content: Any) -> bool:
    return isinstance(content, list) and len(content) == 2 and isinstance(content[0], str)
