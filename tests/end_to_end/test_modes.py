"""Every file of a run, of its exports and of its mirror has the mode that the umask gives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from data_prep.stages import pipeline
from launch.cli import main


# 022 and 002 find a mode that is written out, 027 one that is copied or a library's own.
@pytest.fixture(params=[0o022, 0o027, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_all_files_of_a_run_obey_the_umask(
    tiny_recipe: Path, tmp_path: Path, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents, shards, checkpoints, logs, scores, the report, both exports, locks, and a checkpoint at a mirror."""
    monkeypatch.setattr(pipeline, "prepare", pipeline.prepare_inline)
    run = tmp_path / "run"
    short = ["train.steps=2", "train.checkpoint.every=2", f"train.checkpoint.mirror=file://{tmp_path}/mirror"]
    assert main(["run", str(tiny_recipe), "--out", str(run), *short]) in (0, 1), "a gate may fail after two steps"
    exports = [tmp_path / "hf"] + [tmp_path / "model.gguf"] * bool(find_spec("gguf"))
    for target in exports:
        assert main(["export", str(run), str(target)]) == 0
    found = [path for place in (run, tmp_path / "mirror", *exports) for path in (place, *place.rglob("*"))]
    kinds = {path.suffix for path in found}
    assert {".bin", ".idx", ".parquet", ".safetensors", ".json", ".html", ".jsonl", ".yaml"} <= kinds
    modes = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in found}
    expected = {str(path.relative_to(tmp_path)): (0o777 if path.is_dir() else 0o666) & ~umask for path in found}
    assert {name: oct(mode) for name, mode in modes.items() if mode != expected[name]} == {}
