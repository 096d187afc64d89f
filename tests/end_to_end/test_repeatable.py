"""Compiled training, on two threads a rank: repeated, killed and resumed, with cold and warm cache, bit for bit."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from configs.common.numerics_record import numerics_lines
from tests.parts.rank_processes import last_step, ranks, wait_until
from tests.parts.training_run import metric_lines, prepare_data, start_training, train_to_end, write_recipe

# Minutes of compilation: `tests/unit/pretrain/numerics/test_numerics_record.py` looks at the kernel that had differed.
pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(1500)]
SETTINGS = {
    "steps": 60,
    "checkpoint": {"every": 10},
    "compile": True,
    "deterministic": True,
}
MODEL = ("model.context_length=128", "model.hidden_size=64", "model.num_layers=1")
SECONDS = 700


def launcher(count: int) -> tuple[str, ...]:
    if count == 1:
        return ()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return str(Path(sys.executable).parent / "deepspeed"), "--num_accelerators", str(count), "--master_port", port


@pytest.mark.parametrize("count", [1, 2])
def test_killed_and_resumed_with_cold_and_warm_cache(tmp_path: Path, count: int) -> None:
    data = prepare_data(tmp_path / "data")

    def start(name: str, cache: str) -> tuple[Path, dict[str, str]]:
        (tmp_path / name).mkdir(exist_ok=True)
        recipe = write_recipe(tmp_path / name / "recipe.yaml", data, **SETTINGS)
        return recipe, {"OMP_NUM_THREADS": "2", "XDG_CACHE_HOME": str(tmp_path / cache)}

    recipe, variables = start("unbroken", "first-cache")
    done = train_to_end(recipe, *MODEL, launcher=launcher(count), seconds=SECONDS, **variables)
    assert done.returncode == 0, done.stderr

    recipe, variables = start("broken", "second-cache")  # nothing compiled lies there
    process = start_training(recipe, *MODEL, launcher=launcher(count), **variables)
    wait_until(lambda: process.poll() is not None or last_step(tmp_path / "broken" / "run") >= 25, SECONDS)
    assert process.poll() is None, process.communicate(timeout=60)
    for rank in [*ranks(process.pid), process]:
        rank.kill()
    process.communicate(timeout=60)
    assert 25 <= last_step(tmp_path / "broken" / "run") < 60
    again = train_to_end(recipe, *MODEL, launcher=launcher(count), seconds=SECONDS, **variables)  # now warm
    assert again.returncode == 0, again.stderr
    assert "not compared again" in again.stderr

    for key in ("train/loss", "train/grad_norm", "val/loss"):
        values = [metric_lines(tmp_path / name / "run", key) for name in ("unbroken", "broken")]
        assert values[0] == values[1], key
    said = numerics_lines(tmp_path / "broken" / "run")
    assert "Compiled code and attention by products agree" in said[0]
    assert f"{count} rank{'s' * (count > 1)} of 2 threads" in said[1]
