"""Sizes that cannot be divided between ranks, and settings that cannot be combined, are all named at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.parallel.divisible import require_multiple
from pretrain.parallel.tensor import check_tensor
from tests.parts.training_run import tiny_recipe


def test_every_size_is_named() -> None:
    require_multiple("train.parallel.sequence", {"heads": 8, "length": 64}, 4)
    with pytest.raises(
        ValueError, match=r"sequence 4 needs heads to be a multiple of it, not 6, and length .* not 62$"
    ):
        require_multiple("train.parallel.sequence", {"heads": 6, "width": 8, "length": 62}, 4)


def test_every_setting_is_named_with_its_reason(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, tmp_path, parallel={"tensor": 2}, zero={"stage": 3}, optimizer={"name": "muon"})
    with pytest.raises(ValueError, match=r"stage 3: DeepSpeed .*; or with train\.optimizer\.name muon: divided"):
        check_tensor(recipe)
