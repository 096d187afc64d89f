"""The GPU benchmark: which micro-batches it tries, its table, and all of it on a CPU with a tiny shape."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("gpu")
    for name in ("gpu", "train", "training_table", "job"):
        sys.modules.pop(name, None)


def test_micro_batches_begin_with_the_largest_that_should_fit(gpu: Any) -> None:
    sizes = gpu.SIZES
    assert gpu.likely_micro(sizes["124M"], 141e9) == [64, 32, 16, 8, 4]
    assert gpu.likely_micro(sizes["1.3B"], 141e9) == [16, 8, 4, 2, 1]
    assert gpu.likely_micro(sizes["1.3B"], 80e9) == [8, 4, 2, 1]
    assert gpu.likely_micro(sizes["3B"], 24e9) == [1]  # nothing fits: the smallest is tried


def test_the_table_has_a_row_for_what_did_not_run(gpu: Any) -> None:
    row = {"size": "124M", "name": "replica", "parameters": 124e6, "micro": 32, "batch": 64, "tokens_per_s": 5e5}
    row |= {"flops_per_token": 8e8, "memory_bytes": 2**36, "startup_seconds": 31.0}
    text = gpu.rows_table([row, {"size": "124M", "name": "litgpt", "note": "did not run: out of time"}], 1e15)
    assert "| 124M | replica | 124.0 M | 32 x 2 | 500,000 | 40.0% | 64.0 | 31 |" in text
    assert "| 124M | litgpt | did not run: out of time |" in text


def test_fp8_is_measured_where_the_gpu_can(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pretrain.model import float8

    assert gpu.default_precisions("cpu") == (["bf16"], "")
    monkeypatch.setattr(float8, "float8_problem", lambda device: None)
    assert gpu.default_precisions("cuda") == (["bf16", "fp8"], "")
    monkeypatch.setattr(float8, "float8_problem", lambda device: "it needs torchao")
    assert gpu.default_precisions("cuda") == (["bf16"], "; fp8 not measured: it needs torchao")


@pytest.mark.slow
def test_the_whole_of_it_on_a_cpu(tmp_path: Path) -> None:
    command = [
        str(ROOT / "benchmarks" / "gpu.sh"), "--device", "cpu", "--tiny", "--eager", "--sizes", "tiny", "--steps", "7",
        "--peak", "1e12", "--directory", str(tmp_path), "--markdown", str(tmp_path / "gpu.md"),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert (
        row["steps"] == 7 and row["tokens_per_s"] > 0 and row["parameters"] == 2 * 12 * 64**2 + 512 * 64 + 5 * 64 + 128
    )
    assert "| tiny | replica | 0.1 M | 4 x 2 |" in (tmp_path / "gpu.md").read_text()
