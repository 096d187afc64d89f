"""Chooses the checkpoint of a run that a command works on."""

from __future__ import annotations

from pathlib import Path

from configs.schema.recipe import load_run


def choose_checkpoint(run: Path, step: int | None = None, best: bool = False) -> Path:
    """A checkpoint of a run, without `step` and `best` the newest; raises `ValueError` when there is none."""
    from pretrain.checkpoint.manifest import Choice

    return Choice(step, best).find(load_run(run).run_directory).directory
