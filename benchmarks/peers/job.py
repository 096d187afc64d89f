"""What a runner is asked to do. `python run_X.py JOB.json` trains X's model of the job's shape by X's own code."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Job:
    """One training run, as a JSON file between the benchmark and a runner."""

    out: str  # the result's file
    data: str  # directory with train.bin and val.bin (uint16), meta.pkl
    vocab: int
    layers: int
    heads: int
    width: int
    context: int
    batch: int  # sequences per optimizer step
    micro: int  # sequences per forward pass
    steps: int
    spawned: float  # time.time() when the process was started
    device: str = "cpu"
    precision: str = "bf16"
    compile: bool = True
    lr: float = 1e-3
    warmup: int = 50
    seed: int = 1
    settle: int = 5  # steps before the steady state: compilation, caches
    marks: list[int] = field(default_factory=list)  # steps after which the model is scored
    score_rows: int = 64  # windows of the held-out text
    seconds: float | None = None  # end after so many seconds of steady state
    recipe: str = ""  # ours alone
    overrides: list[str] = field(default_factory=list)

    @classmethod
    def load(cls) -> Job:
        """From the file named on the command line."""
        return cls(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
