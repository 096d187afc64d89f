"""Writes a heartbeat for each rank, and ends a run in which a rank is stuck.

`RUN/ranks/rank_00003.json` is one line of fixed length, rewritten in place every few seconds by a thread: where the
rank is (step, phase) and since when. A rank whose file stands still is stopped or cut off; one whose file goes on, but
in another place than the others, holds them up. `rank_00003.stacks` takes the stacks of all its threads, when a phase
lasts too long and on SIGUSR2. Free of torch.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from configs.safety.parsing import parse_json
from configs.schema.train import Watch
from pretrain.phases import CurrentPhase, Phase

DIRECTORY = "ranks"
# Phases that may take longer than a collective, as long as every rank gives signs of life, and how long.
_SLOW = {Phase.SAVING, Phase.WORKING, Phase.WAITING}
LOST_RANK = 76  # EX_PROTOCOL, exit code: another rank is gone, stuck or cut off; starting again continues
_SLOW_SECONDS = 7200.0
_BYTES = 256
_REPORTED_GROUPS = 8


@dataclass(frozen=True)
class Beat:
    """One line of a rank's heartbeat file."""

    rank: int
    host: str
    pid: int
    step: int  # under way, counted from 1; the last one made when the phase is BETWEEN_STEPS
    phase: str  # of `pretrain.phases.Phase`
    since: float  # Unix time at which the phase began
    time: float  # of this sign of life


def read_beats(run: Path) -> dict[int, Beat]:
    """Reads the last heartbeat of every rank; leaves out files that cannot be read."""
    beats = {}
    for file in sorted((run / DIRECTORY).glob("rank_*.json")):
        with suppress(OSError, ValueError, TypeError):
            beat = Beat(**parse_json(file.read_text(encoding="utf-8")))
            beats[beat.rank] = beat
    return beats


@dataclass(frozen=True)
class Words:
    """How messages name what the ranks do."""

    step: str = "step"
    goes_on: str = "continues from the newest checkpoint"


TRAINING = Words()


class RankHeartbeat:
    """Writes one rank's heartbeat, and watches how long its phases last."""

    def __init__(
        self,
        run: Path,
        settings: Watch,
        rank: int,
        ranks: int,
        phases: CurrentPhase | None = None,
        words: Words = TRAINING,
    ) -> None:
        """`phases`: where training says what it does; by default one that stays between steps."""
        self._words = words
        self._run, self._settings, self._rank, self._ranks = run, settings, rank, ranks
        self.phases = phases or CurrentPhase()
        self._host = socket.gethostname()[:64]
        self._reporting = threading.Lock()
        self._stop = threading.Event()
        directory = run / DIRECTORY
        directory.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(directory / f"rank_{rank:05d}.json", os.O_RDWR | os.O_CREAT, 0o666)
        self._stacks = (directory / f"rank_{rank:05d}.stacks").open("w", encoding="utf-8")
        self._write()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Writes heartbeats while open, dumps stacks on SIGUSR2, and ends the process when it is stuck."""
        thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        with suppress(ValueError):  # not in the main thread: then without the signal
            faulthandler.register(signal.SIGUSR2, file=self._stacks, all_threads=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
            faulthandler.unregister(signal.SIGUSR2)
            self._write()
            os.close(self._descriptor)
            self._stacks.close()

    def lost(self, cause: str) -> None:
        """Ends this process after a collective failed; `cause` is what the library said."""
        with self._reporting:  # the watch may be writing its own report, and ends the process then
            found = self._read_twice()
            self._end(f"a collective failed ({cause.strip().splitlines()[0][:300]})", *found)

    # ------------------------------------------------------------------------------------------------------ the thread
    def _watch(self) -> None:
        every = self._settings.heartbeat_seconds
        # Before the collective's own timeout, so that the stacks show where everything hangs.
        limit = max(self._settings.timeout_seconds - 2 * every, self._settings.timeout_seconds / 2)
        dumped = 0.0
        while not self._stop.wait(min(every, limit / 4)):
            self._write()
            began = self.phases.now.began
            if time.monotonic() - began < limit or self._ranks == 1:
                continue
            if dumped != began:
                dumped = began
                self._dump()
            with self._reporting:
                before, after = self._read_twice()
                if self.phases.now.began != began or self._stop.is_set():
                    continue
                slow = self.phases.now.phase in _SLOW and time.monotonic() - began < _SLOW_SECONDS
                if slow and not any(rank < self._ranks for rank in silent(before, after)):
                    continue
                self._end(f"nothing for {time.monotonic() - began:.0f} s", before, after)

    def _beat(self) -> Beat:
        now = self.phases.now
        return Beat(self._rank, self._host, os.getpid(), now.step, now.phase, now.since, time.time())

    def _write(self) -> None:
        line = json.dumps(asdict(self._beat()))
        with suppress(OSError):  # a full disk must not end training here; the save says what it needs to say
            os.pwrite(self._descriptor, line[: _BYTES - 1].ljust(_BYTES - 1).encode() + b"\n", 0)

    def _dump(self) -> None:
        self._stacks.write(f"--- step {self.phases.now.step}, {self.phases.now.phase}, {time.strftime('%F %T')}\n")
        self._stacks.flush()
        faulthandler.dump_traceback(self._stacks, all_threads=True)

    def _read_twice(self) -> tuple[dict[int, Beat], dict[int, Beat]]:
        """Reads all heartbeats twice, more than one interval apart, so that clocks of hosts need not agree."""
        before = read_beats(self._run)
        until = time.monotonic() + 1.25 * self._settings.heartbeat_seconds
        while time.monotonic() < until:
            self._write()
            time.sleep(min(0.25, self._settings.heartbeat_seconds))
        self._write()
        return before, read_beats(self._run)

    def _end(self, what: str, before: dict[int, Beat], after: dict[int, Beat]) -> None:
        me, still = self._beat(), silent(before, after)
        told = any(beat.phase == Phase.ENDED and beat.rank < self._ranks for beat in after.values())
        # All of them would say the same, and who ends later would name those that ended before.
        if not told and me.rank == min((rank for rank in after if rank not in still), default=me.rank):
            text = (
                f"error: rank {me.rank} of {self._ranks} in {self._words.step} {me.step}, {me.phase}: {what}. "
                f"{describe_ranks(after, still, self._ranks, self._words.step)}. Stacks and signs of life of all "
                f"ranks: {self._run / DIRECTORY}. The same command {self._words.goes_on}\n"
            )
            sys.stderr.write(text)
            sys.stderr.flush()
        self.phases.enter(Phase.ENDED)
        self._write()
        os._exit(LOST_RANK)  # leaving in order would wait for the ranks that are gone


def silent(before: dict[int, Beat], after: dict[int, Beat]) -> list[int]:
    """Ranks whose heartbeat is the same in both readings."""
    return [rank for rank, beat in after.items() if rank in before and before[rank].time == beat.time]


def describe_ranks(beats: dict[int, Beat], still: list[int], ranks: int, word: str = "step") -> str:
    """Says in which step and phase the ranks are: the silent ones first, then those that are behind.

    `word`: what a step is called.
    """
    groups: dict[tuple[bool, int, str], list[Beat]] = {}
    for beat in beats.values():
        if beat.rank < ranks:  # files of more ranks are of an earlier start
            groups.setdefault((beat.rank not in still, beat.step, beat.phase), []).append(beat)
    lines = []
    for (alive, step, phase), members in sorted(groups.items(), key=lambda item: item[0])[:_REPORTED_GROUPS]:
        names = ", ".join(f"rank {beat.rank} ({beat.host}, pid {beat.pid})" for beat in members[:_REPORTED_GROUPS])
        names += f" and {len(members) - _REPORTED_GROUPS} more" if len(members) > _REPORTED_GROUPS else ""
        lines.append(f"{names} {'is' if alive else 'is silent, last heard of'} in {word} {step}, {phase}")
    return "; ".join(lines)
