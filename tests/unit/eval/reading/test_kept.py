"""What was answered before a kill is not asked again, and the answers are the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.reading.journal import Journal
from eval.reading.kept import KeptReader
from eval.reading.ranked import RankedReader
from eval.reading.reader import Reader
from eval.reading.windows import Window
from pretrain.generation.player import Request
from pretrain.parallel.lockstep import Lockstep
from pretrain.parallel.ranks import Ranks
from tests.parts.counting_reader import CountingReader
from tests.parts.training_run import as_ranks

WINDOWS = [Window(np.arange(n % 11 + 3), 2) for n in range(40)]
REQUESTS = [Request(list(range(1, n + 2)), 5, samples=1 + n % 2) for n in range(12)]
ROWS = [[1] * n for n in range(1, 9)]
TOTAL = len(WINDOWS) + len(REQUESTS) + len(ROWS)


def work(reader: Reader) -> Any:
    """Equal windows are asked twice: in one call, and again in another."""
    return reader.score(WINDOWS[:30]), reader.generate(REQUESTS), reader.rewards(ROWS), reader.score(WINDOWS[30:])


def run(directory: Path, counting: CountingReader, fingerprint: str = "f", again: bool = False) -> Any:
    journal = Journal(directory)
    reader = KeptReader(counting, journal, first_tokens=20)
    reader._pace = lambda *_: None  # type: ignore[method-assign]  # portions stay small
    with journal.keeping("part", fingerprint, again):
        return work(reader)


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A directory with the journal of an evaluation that was killed after 35 requests."""
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "partial", CountingReader(dies_after=35))
    return tmp_path / "partial"


def test_answers_before_a_kill_are_not_asked_again(killed: Path) -> None:
    kept = len((killed / "part.jsonl").read_text().splitlines()) - 1
    assert 25 <= kept <= 35, "portions of 20 tokens are kept as they come"
    after = CountingReader()
    assert run(killed, after) == work(CountingReader())
    assert len(after.asked) == TOTAL - kept
    assert not killed.exists(), "the journal goes when the part is complete"


@pytest.mark.parametrize("damage", ["torn", "garbage in the middle", "empty"])
def test_a_damaged_journal_counts_up_to_the_damage(killed: Path, damage: str) -> None:
    file = killed / "part.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    content = {
        "torn": b"".join(lines)[:-5],
        "garbage in the middle": b"".join([*lines[:10], b"\0\0[1\n", *lines[10:]]),
        "empty": b"",
    }[damage]
    file.write_bytes(content)
    known = {"torn": len(lines) - 2, "garbage in the middle": 9, "empty": 0}[damage]
    with pytest.raises(KeyboardInterrupt):  # killed once more: what is appended must be readable again
        run(killed, CountingReader(dies_after=20))
    kept = [json.loads(line) for line in file.read_text().splitlines()][1:]
    assert len(kept) > known
    after = CountingReader()
    assert run(killed, after) == work(CountingReader())
    assert len(after.asked) == TOTAL - len(kept)


@pytest.mark.parametrize(("fingerprint", "again"), [("other", False), ("f", True)])
def test_answers_of_something_else_are_dropped(killed: Path, fingerprint: str, again: bool) -> None:
    after = CountingReader()
    assert run(killed, after, fingerprint, again) == work(CountingReader())
    assert len(after.asked) == TOTAL


def test_a_changed_request_is_asked(killed: Path) -> None:
    journal, after = Journal(killed), CountingReader()
    changed = [Window(WINDOWS[0].tokens, 1), *WINDOWS[1:30]]
    with journal.keeping("part", "f"):
        assert KeptReader(after, journal).score(changed) == CountingReader().score(changed)
    assert after.asked == [tuple(WINDOWS[0].tokens)]


def test_a_failed_part_keeps_its_answers(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "partial")
    with pytest.raises(ValueError, match="later"), journal.keeping("part", "f"):
        KeptReader(CountingReader(), journal).score(WINDOWS)
        raise ValueError("later")
    assert len((tmp_path / "partial" / "part.jsonl").read_text().splitlines()) == 1 + len(WINDOWS)


def test_a_part_that_fails_before_an_answer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"), Journal(tmp_path / "partial").keeping("part", "f"):
        raise ValueError("no such file")
    assert not (tmp_path / "partial").exists()


def test_progress_counts_all_requests(killed: Path) -> None:
    journal, seen = Journal(killed), []  # type: ignore[var-annotated]
    with journal.keeping("part", "f"):
        KeptReader(CountingReader(), journal, first_tokens=20).score(
            WINDOWS[:30] + WINDOWS[:8], lambda done, note="", total=None: seen.append((done, total))
        )
    assert seen[-1] == (38, 38) and seen == sorted(seen) and seen[0][0] > 25


def test_without_an_open_journal_requests_pass_through(tmp_path: Path) -> None:
    assert work(KeptReader(CountingReader(), Journal(tmp_path / "partial"))) == work(CountingReader())
    assert not (tmp_path / "partial").exists()


def test_two_ranks_go_on_after_three_were_killed(killed: Path) -> None:
    """Rank 0 alone reads and writes the journal."""
    wanted, kept = work(CountingReader()), len((killed / "part.jsonl").read_text().splitlines()) - 1

    def of(ranks: Ranks, gather: Callable[[Any], list[Any]]) -> Any:
        lockstep, own = Lockstep(ranks.rank, 2, gather), CountingReader()
        journal = Journal(killed if ranks.rank == 0 else Path("/nowhere"), lockstep)
        with lockstep.together("part"), journal.keeping("part", "f"):
            return work(KeptReader(RankedReader(own, lockstep), journal, lockstep, first_tokens=20)), len(own.asked)

    ends = as_ranks(2, of)
    assert [answers for answers, _ in ends] == [wanted] * 2
    assert sum(asked for _, asked in ends) == TOTAL - kept and min(asked for _, asked in ends) > 5
