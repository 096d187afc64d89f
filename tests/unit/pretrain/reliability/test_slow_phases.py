"""Phases that may last: they end the process only when a rank of this start is silent."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.schema.train import Watch
from pretrain.phases import CurrentPhase, Phase
from pretrain.reliability import rank_heartbeat
from pretrain.reliability.rank_heartbeat import RankHeartbeat, Words, read_beats

WATCH = Watch(timeout_seconds=0.2, heartbeat_seconds=0.02)


class Ended(BaseException):
    pass


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Exit codes of processes that would have ended."""
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        raise Ended

    monkeypatch.setattr(os, "_exit", end)
    return codes


def watch(heartbeat: RankHeartbeat, looks: int, beside: Callable[[], object]) -> None:
    """Some rounds of the watching thread, without a thread."""
    left = iter(range(looks))

    class Stop:
        def wait(self, _: float) -> bool:
            beside()
            return next(left, None) is None

        def is_set(self) -> bool:
            return False

    heartbeat._stop = Stop()  # type: ignore[assignment]
    heartbeat._watch()


@pytest.mark.parametrize("phase", [Phase.WAITING, Phase.WORKING, Phase.SAVING])
def test_a_long_wait_goes_on_while_all_ranks_give_signs_of_life(
    tmp_path: Path, ends: list[int], monkeypatch: pytest.MonkeyPatch, phase: Phase, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever files a start with more ranks has left."""
    old, phases = RankHeartbeat(tmp_path, WATCH, 2, 3), CurrentPhase()
    old._write()
    others = RankHeartbeat(tmp_path, WATCH, 1, 2)
    words = Words("part", "goes on")
    heartbeat = RankHeartbeat(tmp_path, WATCH, 0, 2, phases, words)
    phases.enter(phase, 3)
    now = phases.now.began
    monkeypatch.setattr(rank_heartbeat.time, "monotonic", Clock(now + 0.2))
    read = read_beats

    def read_and_live(run: Path) -> dict[int, rank_heartbeat.Beat]:
        others._write()
        return read(run)

    monkeypatch.setattr(rank_heartbeat, "read_beats", read_and_live)
    watch(heartbeat, 3, lambda: None)
    assert ends == []

    monkeypatch.setattr(rank_heartbeat, "read_beats", read)  # rank 1 is stopped
    with pytest.raises(Ended):
        watch(heartbeat, 3, lambda: None)
    assert ends == [rank_heartbeat.LOST_RANK]
    said = capsys.readouterr().err
    assert f"error: rank 0 of 2 in part 3, {phase}: nothing for" in said and "rank 1 (" in said
    assert "is silent, last heard of in part 0" in said and "The same command goes on" in said and "rank 2" not in said


class Clock:
    """Goes on by a little at each look."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        self.now += 0.01
        return self.now
