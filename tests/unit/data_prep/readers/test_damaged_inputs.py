"""Damaged inputs of every reader; see `tests/parts/damaged_inputs.py`, which also tries one again."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.funnel.tally import Tally
from tests.parts.damaged_inputs import DAMAGE, GOOD, OF_FILES, damaged, examine, explore, quickly
from tests.parts.reading import read

SEEDS = 12


@pytest.mark.parametrize("reader", GOOD)
def test_damaged_inputs(tmp_path: Path, reader: str) -> None:
    with quickly():
        for seed in range(SEEDS):
            try:
                examine(reader, seed, tmp_path / str(seed))
            except Exception as error:
                raise AssertionError(f"python -m tests.parts.damaged_inputs --reader {reader} --seed {seed}") from error


# One record among others, which are to be read whatever it is.
RECORDS: dict[str, Callable[[int], bytes]] = {
    "jsonl": lambda n: b'{"text": "good %d", "more": {"a": [%d]}}' % (n, n),
    "json": lambda n: b'{"text": "good %d", "more": {"a": [%d]}}' % (n, n),
    "csv": lambda n: b"%d,good %d,x" % (n, n),
    "tsv": lambda n: b"%d\tgood %d\tx" % (n, n),
    "fasta": lambda n: b">s%d good\nACGT%s" % (n, b"A" * n),
    "txt": lambda n: b"good %d" % n,
}


@pytest.mark.parametrize("reader", RECORDS)
def test_the_records_around_a_damaged_one(tmp_path: Path, reader: str) -> None:
    head = {"csv": b"id,text,note\n", "tsv": b"id\ttext\tnote\n"}.get(reader, b"")
    for seed in range(150):
        rng = random.Random(f"around {reader} {seed}")
        records = [RECORDS[reader](n) for n in range(9)]
        for _ in range(rng.choice([1, 2, 4])):
            records[4] = rng.choice([damage for damage in DAMAGE if damage not in OF_FILES])(rng, records[4])
        if reader != "fasta":
            records[4] = records[4].replace(b"\r", b"").replace(b"\n", b"")
        (tmp_path / f"a.{reader}").write_bytes(head + b"\n".join(records) + b"\n")
        found = [document.text for document in read(tmp_path / f"a.{reader}", text_documents="line")[0]]
        # In FASTA a damaged title makes its sequence that of the one before.
        around = [n for n in range(9) if n != 4 and not (reader == "fasta" and n == 3)]
        lost = {f"good {n}" if reader != "fasta" else "ACGT" + "A" * n for n in around} - set(found)
        assert not lost, (seed, records[4][:200])


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_many_damaged_inputs() -> None:
    first = random.SystemRandom().randrange(10**9)
    print("first seed", first)
    tried, failed = explore(300, itertools.count(first), [*GOOD])
    print(tried)
    assert not failed, "\n".join(failed)


def test_an_input_follows_from_its_seed() -> None:
    assert damaged("csv", 3) == damaged("csv", 3)
    assert len({damaged("jsonl", seed)[1] for seed in range(20)}) > 15


def test_what_must_hold_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome(name: str) -> str:
        with quickly(), pytest.raises(Exception) as error:
            examine("jsonl", 0, tmp_path / name)
        return f"{error.type.__name__} {error.value}"

    def wrong(*_arguments: Any, **_named: Any) -> Any:
        raise error

    with quickly():
        assert examine("jsonl", 0, tmp_path / "right") > 0
    for error in (TypeError("ours"), OSError(28, "No space left on device")):
        with monkeypatch.context() as patch:
            patch.setattr("data_prep.documents.conversion.take_text", wrong)
            patch.setattr("data_prep.documents.conversion._decode_any", wrong, raising=False)
            said = outcome(type(error).__name__)
            assert "ours" in said or "No space left" in said
    with monkeypatch.context() as patch:
        counted = Tally.add
        patch.setattr(Tally, "add", lambda self, key, n, size: counted(self, key, n, size + (key == "read/read")))
        assert "does not add up" in outcome("bytes")
    with monkeypatch.context() as patch:
        numbers = itertools.count()
        patch.setattr("data_prep.documents.parts_writer.metadata_json", lambda _metadata: str(next(numbers)))
        assert "more workers" in outcome("workers")
