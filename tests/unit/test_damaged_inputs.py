"""Damaged inputs of every reader; see `tests/damaged_inputs.py`, which also tries one again."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from data_prep.funnel import Tally
from tests.damaged_inputs import GOOD, damaged, examine, explore, quickly

SEEDS = 12


@pytest.mark.parametrize("reader", GOOD)
def test_damaged_inputs(tmp_path: Path, reader: str) -> None:
    with quickly():
        for seed in range(SEEDS):
            try:
                examine(reader, seed, tmp_path / str(seed))
            except Exception as error:
                raise AssertionError(f"python -m tests.damaged_inputs --reader {reader} --seed {seed}") from error


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
            patch.setattr("data_prep.documents.take_text", wrong)
            patch.setattr("data_prep.documents._decode_any", wrong, raising=False)
            said = outcome(type(error).__name__)
            assert "ours" in said or "No space left" in said
    with monkeypatch.context() as patch:
        counted = Tally.add
        patch.setattr(Tally, "add", lambda self, key, n, size: counted(self, key, n, size + (key == "read/read")))
        assert "does not add up" in outcome("bytes")
    with monkeypatch.context() as patch:
        numbers = itertools.count()
        patch.setattr("data_prep.collect.metadata_json", lambda _metadata: str(next(numbers)))
        assert "more workers" in outcome("workers")
