"""Joining and leaving a run: the process is as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pretrain.train import train
from tests.parts.training_run import prepare_data, tiny_recipe


@pytest.mark.slow
def test_a_run_at_stage_3_leaves_torch_as_it_was(tmp_path: Path) -> None:
    """DeepSpeed replaces `torch.nn.functional.linear` there, with which later runs would keep other activations."""
    before = torch.nn.functional.linear
    data = prepare_data(tmp_path / "data")
    train(tiny_recipe(tmp_path, data, steps=1, zero={"stage": 3}))
    assert torch.nn.functional.linear is before
