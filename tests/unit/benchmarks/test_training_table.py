"""The pure parts of the training benchmark, on numbers that can be checked by hand; the command lines start."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
_SPEC = importlib.util.spec_from_file_location("training_table", ROOT / "benchmarks" / "training_table.py")
assert _SPEC is not None and _SPEC.loader is not None
table: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(table)


def run_of(name: str, speed: float, losses: list[float], steps: int = 40, startup: float = 5.0) -> dict[str, Any]:
    """A run of 100 tokens a step at `speed` steps per second, scored at equal parts."""
    places = [steps * (index + 1) // len(losses) for index in range(len(losses))]
    return {
        "name": name,
        "parameters": 10_000_000,
        "steps": steps,
        "tokens_per_s": 100 * speed,
        "startup_seconds": startup,
        "seconds": startup + steps / speed,
        "memory_bytes": 2**30,
        "marks": [[place, startup + place / speed, loss] for place, loss in zip(places, losses, strict=True)],
    }


def summary(name: str, speed: float, losses: list[float], steps: int = 40) -> Any:
    return table.summarise([run_of(name, speed, losses, steps)], 100, 2.0, 400.0)


def test_medians_over_rounds_and_seconds_without_start_up() -> None:
    runs = [
        run_of("litgpt", speed, [4.0, loss], startup=s) for speed, loss, s in [(2, 3.0, 9), (4, 3.5, 5), (1, 3.1, 7)]
    ]
    found = table.summarise(runs, 100, 2.0, 1000.0)
    assert (found.rounds, found.tokens, found.tokens_per_s, found.startup_seconds) == (3, 4000, 200.0, 7)
    assert found.seconds == 20.0 and found.loss == 3.1 and found.mfu == pytest.approx(0.4)
    assert found.marks == [(2000, 10.0, 4.0), (4000, 20.0, 3.1)]


def test_loss_between_marks_is_linear_and_outside_of_them_unknown() -> None:
    marks = [(10.0, 5.0), (20.0, 4.0), (40.0, 3.0)]
    assert table.loss_at(marks, 15) == 4.5 and table.loss_at(marks, 30) == 3.5 and table.loss_at(marks, 40) == 3.0
    assert math.isnan(table.loss_at(marks, 41)) and math.isnan(table.loss_at(marks, 9))


def test_a_loss_is_reached_where_the_line_first_meets_it() -> None:
    marks = [(10.0, 5.0), (20.0, 4.0), (30.0, 4.5), (40.0, 3.0)]
    assert table.place_of(marks, 4.5) == 15.0 and table.place_of(marks, 3.5) == pytest.approx(36.67, abs=0.01)
    assert math.isnan(table.place_of(marks, 2.9)) and math.isnan(table.place_of(marks, 5.1))


def test_the_time_to_a_loss_is_read_between_runs_of_several_budgets() -> None:
    long = summary("replica", 2, [5.0, 4.8, 3.0])  # its low losses come at the end
    short = summary("replica, 0.5 of tokens", 2, [5.0, 3.4], steps=20)
    assert table.time_to([long], 3.2) == pytest.approx(13 + 7 * 1.6 / 1.8)
    assert table.time_to([long, short], 3.2) == pytest.approx(15.0)  # half-way between ends at 10 s and 20 s
    assert math.isnan(table.time_to([long, short], 2.0))


def test_the_table_shows_every_contestant_and_ours_beside_the_peers() -> None:
    text = table.table([summary("replica", 4, [5.0, 3.0]), summary("nanoGPT", 2, [5.5, 4.0])])
    assert "| replica (1) | 10.00 M | 4,000 | 400 | 200.0% | 1,024 | 5.0 | 10.0 | 3.000 |" in text
    assert "| nanoGPT | 2.00x | 3.000 / 4.000 | 3.000 / 5.500 at 10 s | 7.5 / 20.0 = 0.38 |" in text
    assert "beside" not in table.table([summary("replica", 4, [5.0, 3.0])])


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train.py", "overhead.py", "scaling.py", "gpu.py"])
def test_the_commands_start(script: str) -> None:
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / script), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr
