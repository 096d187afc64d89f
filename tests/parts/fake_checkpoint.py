"""A checkpoint directory without weights, made up in a moment, for tests of what a checkpoint says about itself."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from configs.common.files import write_json
from configs.schema.recipe import Recipe, save
from data_prep.tokens.shards import load_manifest
from pretrain.checkpoint.manifest import DIRECTORY, MANIFEST, manifest_content


def write_fake_checkpoint(
    recipe: Recipe, step: int, state: dict[str, Any] | None = None, windows: int = 625, weights: str = ""
) -> Path:
    """Writes `checkpoints/step_…` of the recipe's run, as trained on the data that lies there, if any.

    `weights` stands for its contents: another text, another fingerprint.
    """
    directory = recipe.run_directory / DIRECTORY / f"step_{step:08d}"
    directory.mkdir(parents=True)
    save(recipe, directory)
    fingerprint = "none"
    if recipe.data_directory.is_dir():
        data = load_manifest(recipe.data_directory)
        fingerprint = data.fingerprint
        shutil.copytree(data.tokenizer, directory / "tokenizer")
    content = {
        "step": step,
        "train_windows": windows,
        "fingerprint": f"checkpoint {step}{weights}",
        "data_fingerprint": fingerprint,
        "tokenizer_fingerprint": "any",
        "state": {"order": 2, **(state or {})},
        "shapes": {},
        "files": {},
    }
    write_json(directory / MANIFEST, manifest_content(content))
    return directory
