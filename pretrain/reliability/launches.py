"""Records the launches of a run, and shortens the checkpoint interval when launches end before their first checkpoint.

A *launch* is one start of the training processes. It goes from their first step to the end by completion, signal, error
or death. `launches.json` in the run directory lists the launches. Free of torch.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from configs.common.files import read_json, write_json
from configs.common.notices import say

LAUNCHES = "launches.json"
_LAUNCHES_KEPT = 1000
_GROWS_AFTER = 4  # checkpoints in one launch


@dataclass
class Launch:
    """One entry of launches.json."""

    start: int  # step of the checkpoint that it began from
    interval: int  # steps between its checkpoints
    began: float  # Unix time
    end: int | None = None  # last step made, as far as known
    how: str = "under way"  # or: done, the signal's name, the error


class Launches:
    """The file of launches; only the main rank writes it."""

    def __init__(self, run: Path) -> None:
        self._file = run / LAUNCHES
        self.all = [Launch(**entry) for entry in read_json(self._file)] if self._file.is_file() else []

    def begin(self, start: int, every: int, reached: int | None) -> int:
        """Records a new launch, and decides the steps between its checkpoints: `every`, or fewer.

        Args:
            start: step that the newest checkpoint has.
            every: as the recipe says.
            reached: the step at which the launch before was last seen, from its heartbeat; None: unknown.
        """
        interval = every
        if self.all:
            last = self.all[-1]
            if last.end is None:
                last.end, last.how = (max(start, reached) if reached is not None else start), "killed"
            interval = next_interval(last, start, every)
            if interval < every:
                say(
                    f"checkpoints every {interval:,} steps instead of {every:,}: the launch before began at step "
                    f"{last.start:,}, ended ({last.how}) at step {last.end:,}, and this one begins at {start:,}"
                )
        self.all = [*self.all, Launch(start, interval, round(time.time(), 3))][-_LAUNCHES_KEPT:]
        self._write()
        return interval

    def finish(self, step: int, how: str) -> None:
        """Records how the launch ended, and after which step."""
        self.all[-1].end, self.all[-1].how = step, how[:500]
        self._write()

    def _write(self) -> None:
        write_json(self._file, [asdict(entry) for entry in self.all])


def next_interval(last: Launch, start: int, every: int) -> int:
    """Steps between checkpoints for the launch after `last`, which begins at the checkpoint of step `start`.

    Halved, and to at most half of what the last launch made, when that one left no checkpoint behind (and no error of
    its own ended it); doubled again after a launch with several.
    """
    interval = min(last.interval, every)
    if start <= last.start:
        if last.how.startswith("error"):
            return interval
        assert last.end is not None
        made = last.end - last.start
        return max(1, min(interval // 2, made // 2) if made > 0 else interval // 2)
    return min(every, 2 * interval) if start - last.start >= _GROWS_AFTER * interval else interval
