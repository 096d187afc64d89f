"""Phases: what the engine reports is what the heartbeat shows."""

from __future__ import annotations

from pathlib import Path

from configs.schema.train import Watch
from pretrain.phases import CurrentPhase, Phase
from pretrain.reliability.rank_heartbeat import RankHeartbeat, read_beats

ROOT = Path(__file__).resolve().parents[3]


def test_the_heartbeat_shows_the_phase_that_was_entered(tmp_path: Path) -> None:
    phases = CurrentPhase()
    heartbeat = RankHeartbeat(tmp_path, Watch(), rank=0, ranks=1, phases=phases)
    beats = [read_beats(tmp_path)[0]]
    for phase, step in ((Phase.WAITING_FOR_DATA, 5), (Phase.FORWARD, None), (Phase.SAVING, 6)):
        phases.enter(phase, step)
        heartbeat._write()
        beats.append(read_beats(tmp_path)[0])
    shown = [(beat.phase, beat.step) for beat in beats]
    assert shown == [("between steps", 0), ("waiting for data", 5), ("forward", 5), ("checkpoint", 6)]
    assert [beat.since for beat in beats] == sorted(beat.since for beat in beats)


def test_the_launcher_of_several_hosts_looks_for_the_word_of_ended_ranks() -> None:
    assert f"'{Phase.ENDED}'" in (ROOT / "launch" / "hostfile.sh").read_text(encoding="utf-8")
