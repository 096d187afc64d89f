"""What every runner shares: a clock that stops while it scores, and one scorer. Needs only torch and numpy.

The clock is told of every optimizer step, through torch's global hook where the trainer offers nothing else.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from job import Job
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook


class Clock:
    """Counts optimizer steps and seconds; scores at the marks, outside of the time; ends the process."""

    def __init__(self, job: Job, model: Callable[[], nn.Module], logits: Callable[[nn.Module, Tensor], Tensor]) -> None:
        """`model()` gives the plain model (not the compiled one), `logits(model, tokens)` its own forward."""
        self._job, self._model, self._logits = job, model, logits
        self._stopped = 0.0  # seconds spent scoring
        self._ends: list[float] = []  # seconds on the clock at the end of every step
        self._marks: list[tuple[int, float, float]] = []  # step, seconds, loss
        self._cuda = job.device.startswith("cuda")
        self._windows = self._read_windows() if job.marks else None

    def hook(self) -> Clock:
        """Lets every optimizer of this process tell of its steps."""
        register_optimizer_step_post_hook(lambda *_: self.stepped())
        return self

    def stepped(self) -> None:
        """An optimizer step was made."""
        job, step = self._job, len(self._ends) + 1
        # Waiting for the GPU at every step would slow it; only the ends of what is timed must be true.
        if self._cuda and (step in (job.settle, job.steps) or step in job.marks):
            torch.cuda.synchronize()
        self._ends.append(self._now())
        if step in job.marks:
            self._marks.append((step, self._ends[-1], self.score()))
            self._stopped += self._now() - self._ends[-1]
        if job.seconds and step > job.settle and self._ends[-1] - self._ends[job.settle - 1] > job.seconds:
            if self._cuda:
                torch.cuda.synchronize()
                self._ends[-1] = self._now()
            self._finish()
        if step == job.steps:
            self._finish()

    def _now(self) -> float:
        """Seconds since the process was started, without those spent scoring."""
        return time.time() - self._job.spawned - self._stopped

    @torch.no_grad()
    def score(self) -> float:
        """Mean nats per token over the held-out windows."""
        assert self._windows is not None
        model = self._model()
        training, nats, (rows, length) = model.training, 0.0, self._windows.shape
        model.eval()
        for part in self._windows.split(8):
            out = self._logits(model, part[:, :-1].contiguous()).float()
            nats += F.cross_entropy(out.flatten(0, 1), part[:, 1:].flatten(), reduction="sum").item()
        model.train(training)
        return nats / (rows * (length - 1))

    def _read_windows(self) -> Tensor:
        job = self._job
        stream = np.fromfile(Path(job.data) / "val.bin", dtype=np.uint16).astype(np.int64)
        starts = np.arange(job.score_rows) * job.context
        assert starts[-1] + job.context < len(stream), "too little held-out text for so many windows"
        rows = np.stack([stream[start : start + job.context + 1] for start in starts])
        return torch.from_numpy(rows).to(job.device)

    def _finish(self) -> None:
        """Writes the result and ends the process: what a trainer does after its last step is not measured."""
        job, ends = self._job, self._ends
        rank = int(os.environ.get("RANK", "0"))
        if rank == 0:
            settle = min(job.settle, len(ends) - 1)
            tokens = (len(ends) - settle) * job.batch * job.context
            result = {
                "parameters": sum(p.numel() for p in self._model().parameters()),
                "tokens_per_s": tokens / (ends[-1] - ends[settle - 1]),
                "step_seconds": [
                    after - before for before, after in zip(ends[settle - 1 :], ends[settle:], strict=False)
                ],
                "startup_seconds": ends[settle - 1] - settle * (ends[-1] - ends[settle - 1]) / (len(ends) - settle),
                "seconds": ends[-1],
                "steps": len(ends),
                "memory_bytes": _memory(self._cuda),
                "marks": self._marks,
            }
            Path(job.out).write_text(json.dumps(result), encoding="utf-8")
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            torch.distributed.barrier()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _memory(cuda: bool) -> int:
    return torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def remember_model(owner: Any, name: str) -> Callable[[], nn.Module]:
    """Notes the next model that the class `owner.name` makes, wherever it is made."""
    made: list[nn.Module] = []
    original = getattr(owner, name).__init__

    def init(self: nn.Module, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)
        made.append(self)

    getattr(owner, name).__init__ = init
    return lambda: made[0]


class Windows(torch.utils.data.Dataset[Tensor]):
    """Random windows of train.bin, (context + 1,) ids, the same for the same index, as a data set."""

    def __init__(self, job: Job) -> None:
        self._stream = np.memmap(Path(job.data) / "train.bin", dtype=np.uint16, mode="r")
        self._length, self._count, self._seed = job.context + 1, job.batch * (job.steps + 8), job.seed

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        start = int(np.random.default_rng((self._seed, index)).integers(len(self._stream) - self._length))
        return torch.from_numpy(self._stream[start : start + self._length].astype(np.int64))
