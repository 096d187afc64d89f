"""Deduplication inside documents: repeated lines and passages, by plain definitions; stages killed and continued."""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from configs.schema.data import NearDuplicates, RepeatedLines, RepeatedSubstrings
from data_prep.dedup import byte_windows, repeated_lines, substrings
from data_prep.dedup.exact import ExactDeduplication
from data_prep.dedup.near import NearDeduplication
from data_prep.dedup.repeated_lines import LineDeduplication
from data_prep.dedup.substrings import SubstringDeduplication
from data_prep.workers.stage import Stage
from data_prep.workers.verdicts import Part
from tests.parts.dedup_parts import after, contents, make_parts, make_stage, run_backwards, run_inline, texts_left

SIZE = 50


# --------------------------------------------------------------------------------------------------------------- lines
def lines_left(texts: list[list[str]], sources: list[str], keep: int, least: int) -> list[list[str | None]]:
    """What `lines` promises, line by line; None: dropped."""
    seen: dict[tuple[str, str], int] = {}
    result: list[list[str | None]] = []
    for rows, source in zip(texts, sources, strict=True):
        result.append([])
        for text in rows:
            stay, own = [], set()
            for line in text.split("\n"):
                key = source, line.strip()
                if len(key[1]) < least or seen.get(key, 0) < keep:
                    stay.append(line)
                own.add(key)
            for key in own:
                seen[key] = seen.get(key, 0) + 1
            left = "\n".join(stay)
            result[-1].append(left if left.strip() or left == text else None)
    return result


@pytest.mark.parametrize(("keep", "seed"), [(1, 0), (2, 1)])
def test_lines_against_the_plain_definition(tmp_path: Path, keep: int, seed: int) -> None:
    chance = random.Random(seed)
    pool = [f"{'é' * (n % 3)}line {n} of the pool{'.' * (n % 20)}" for n in range(60)]
    texts = [
        ["\n".join(chance.choices(pool, k=chance.randint(1, 6))) for _ in range(chance.randint(0, 12))]
        for _ in range(6)
    ]
    sources = ["a", "a", "b", "a", "b", "b"]
    parts = make_parts(tmp_path / "documents", texts, sources)
    settings = RepeatedLines(keep=keep, min_characters=22)
    directory, manifest = make_stage(tmp_path, LineDeduplication(settings), parts)
    expected = lines_left(texts, sources, keep, 22)
    left = [dict(rows) for rows in texts_left(after(parts, directory))]
    for part, rows in enumerate(expected):
        for row, text in enumerate(rows):
            assert (left[part].get(row) or "").rstrip() == (text or "").rstrip(), (part, row)
            assert (row in left[part]) == (text is not None)
    assert manifest["lines"] > 5
    other, _ = make_stage(tmp_path / "again", LineDeduplication(settings), parts, run_backwards)
    assert contents(other) == contents(directory)


def test_paragraphs(tmp_path: Path) -> None:
    notice = "This notice has two lines\nand stands in every page."
    texts = [[f"{notice}\n\nFirst."], [f"Second.\n\n{notice}\n\nMore.", f"Third.\n\n{notice}", notice]]
    parts = make_parts(tmp_path / "documents", texts)
    directory, _ = make_stage(tmp_path, LineDeduplication(RepeatedLines(unit="paragraph")), parts)
    assert texts_left(after(parts, directory)) == [
        [(0, f"{notice}\n\nFirst.")],
        [(0, "Second.\n\nMore."), (1, "Third.")],
    ]


def test_spans_at_the_end() -> None:
    assert repeated_lines.merge_spans(b"a\nb\nc", [(2, 4), (4, 5)]) == [(1, 5)]
    assert repeated_lines.merge_spans(b"a\n\n\nc", [(0, 2), (4, 5)]) == [(0, 5)]
    assert repeated_lines.merge_spans(b"a\nb\nc", [(0, 2)]) == [(0, 2)]


# ---------------------------------------------------------------------------------------------------------- substrings
def cut_by_hand(texts: list[list[str]]) -> list[list[tuple[int, str]]]:
    """Every window of `SIZE` bytes that an earlier document has, less the bytes of characters cut in two."""
    seen: set[bytes] = set()
    result = []
    for rows in texts:
        result.append([])
        for row, text in enumerate(rows):
            data = text.encode()
            own = [data[start : start + SIZE] for start in range(len(data) - SIZE + 1)]
            covered = bytearray(len(data))
            for start, window in enumerate(own):
                if window in seen:
                    covered[start : start + SIZE] = b"\1" * SIZE
            seen.update(own)
            left, place = [], 0
            for character in text:
                size = len(character.encode())
                if not all(covered[place : place + size]):
                    left.append(character)
                place += size
            if not any(covered) or "".join(left).strip():
                result[-1].append((row, "".join(left)))
    return result


def texts_with_repeats(seed: int) -> list[list[str]]:
    """Passages of one another, also in others' middle, of few different letters, with several bytes a letter."""
    chance = random.Random(seed)
    letters = ["ab", "aé", "中文字", "abcdefgh 😀"][seed % 4]
    texts: list[list[str]] = []
    earlier = ["".join(chance.choices(letters, k=400))]
    for _ in range(6):
        texts.append([])
        for _ in range(chance.randint(0, 9)):
            pieces = []
            for _ in range(chance.randint(1, 4)):
                origin = chance.choice(earlier)
                start = chance.randrange(len(origin))
                pieces.append(origin[start : start + chance.randint(1, 150)])
                pieces.append("".join(chance.choices(letters, k=chance.randint(0, 60))))
            texts[-1].append("".join(pieces))
        earlier += texts[-1]
    texts[2] += ["x" * 300, "x" * 80, "x" * 30, "", earlier[1]]
    return texts


@pytest.mark.parametrize("seed", range(8))
def test_substrings_against_the_plain_definition(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_windows, "BATCH_BYTES", 1000 if seed % 2 else 130)
    monkeypatch.setattr(substrings, "HELD_WINDOWS", 700)
    monkeypatch.setattr(substrings, "_READ_BYTES", 900)
    texts = texts_with_repeats(seed)
    parts = make_parts(tmp_path / "documents", texts)
    directory, _ = make_stage(tmp_path, SubstringDeduplication(RepeatedSubstrings(min_bytes=SIZE)), parts)
    assert texts_left(after(parts, directory)) == cut_by_hand(texts)
    if seed == 0:
        other, _ = make_stage(
            tmp_path / "again", SubstringDeduplication(RepeatedSubstrings(min_bytes=SIZE)), parts, run_backwards
        )
        assert contents(other) == contents(directory)


def test_windows_are_hashed_alike_everywhere() -> None:
    made = byte_windows.ByteWindows(SIZE)
    data = random.Random(0).randbytes(500)
    shifted = b"12345" + data
    for which in (0, 1):
        assert (made.hashes(data, SIZE, which) == made.hashes(shifted, SIZE, which)[5:]).all()
    assert len(set(made.hashes(data, SIZE).tolist())) == 451


# -------------------------------------------------------------------------------------------------------- interrupted
STAGES = (
    ExactDeduplication(),
    NearDeduplication(NearDuplicates(), memory_edges=0),
    LineDeduplication(RepeatedLines()),
    SubstringDeduplication(RepeatedSubstrings(min_bytes=SIZE)),
)


def make_all(directory: Path, parts: list[Part]) -> None:
    """All stages in a row; finished ones are skipped."""
    for stage in STAGES:
        place = Stage(directory / stage.name, {"settings": stage.inputs})
        if place.read() is None:
            place.begin()
            extra = stage.make(place, parts, run_inline(place))
            units: list[dict[str, Any]] = [place.unit(part.name) or {} for part in parts]
            place.finish(extra, {name: known for unit in units for name, known in unit["files"].items()})
        parts = after(parts, place.directory)


def begin_and_make_all(begun: Any, directory: Path, parts: list[Part]) -> None:
    """In a process of its own."""
    begun.set()
    make_all(directory, parts)


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(3)
    words = [f"word{n}" for n in range(300)]
    line = lambda: " ".join(chance.choices(words, k=9))  # noqa: E731
    base = ["\n".join(line() for _ in range(8)) for _ in range(30)]
    shared = [line() for _ in range(9)]
    texts = [[chance.choice(base) for _ in range(9)] for _ in range(4)]
    for rows in texts:
        rows += [f"{chance.choice(base)}\n{chance.random()}" for _ in range(9)]
        rows += [f"{line()}\n{chance.choice(shared)}\n{line()} {chance.choice(shared)} {line()}" for _ in range(9)]
    parts = make_parts(tmp_path / "documents", texts)
    begin = time.monotonic()
    make_all(tmp_path / "whole", parts)
    whole = time.monotonic() - begin
    chance = random.Random()
    kills = 0
    # A server forks for this process, which has threads; it has imported everything before.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    for _ in range(100):
        begun = server.Event()
        process = server.Process(target=begin_and_make_all, args=(begun, tmp_path / "killed", parts))
        process.start()
        begun.wait()
        # Longer each time: a fresh process imports first, and under load all takes longer than when it was timed.
        process.join(chance.uniform(0.05, 0.4) * whole * (1 + kills / 10))
        if process.exitcode == 0:
            break
        process.kill()
        process.join()
        kills += 1
    assert process.exitcode == 0
    assert kills > 0
    for stage in STAGES:
        made = contents(tmp_path / "killed" / stage.name)
        assert made == contents(tmp_path / "whole" / stage.name)
        assert len(made) > 1, stage.name
