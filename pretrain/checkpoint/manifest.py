"""Describes, finds and checks checkpoints: directories that load at any ZeRO stage and any number of ranks.

`checkpoints/step_00000100/` holds
    manifest.json                       step, fingerprints, counters, shapes, and size and SHA-256 of every file
    recipe.yaml, tokenizer/             what the weights need to be used
    weights-RRRRR-of-NNNNN.safetensors  fp32 pieces of parameters, one file a rank; a piece is called `name@offset`
    optimizer-….safetensors             the same pieces of the moments; AdamW's: `exp_avg/name@offset`, `exp_avg_sq/…`

A directory appears by a rename after all ranks have written and flushed their files, so what carries its final name is
complete; `checkpoints/latest` follows, and older ones go only then (`saver.py`). Nothing here is pickled. This file is
free of torch, so that a finished run is recognised at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from configs.common.files import fingerprint, read_json, sha256_file
from configs.schema.recipe import RESOLVED_NAME, Recipe, load

DIRECTORY = "checkpoints"
LATEST = "latest"
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
OBJECTIVE_STATE = "objective_state"  # in the state: `Objective.state`
VALIDATION_LOSS = "validation_loss"  # in the state: None when it was not measured at that step
MEASURED = "measured"  # in the state: curve -> [value, more is better] of what was measured of these weights
SCHEMA = 1
IMPORTED = "imported, "  # begins the fingerprint of the data of a model that came from elsewhere


@dataclass(frozen=True)
class CheckpointInfo:
    """The manifest of a checkpoint."""

    directory: Path
    step: int  # updates made
    train_windows: int  # windows in the training split, which the number of epochs is counted in
    fingerprint: str  # of the contents
    data_fingerprint: str
    tokenizer_fingerprint: str
    state: dict[str, Any]  # running sums, optimizer updates, loss scale
    shapes: dict[str, list[int]]  # of every parameter
    files: dict[str, dict[str, Any]]  # relative path -> bytes and sha256

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe that made it; its file is read at the first use only."""
        return load(self.directory / RESOLVED_NAME)

    @property
    def tokenizer(self) -> Path:
        """Directory with its tokenizer.json."""
        return self.directory / TOKENIZER


class DamagedCheckpoint(ValueError):
    """A checkpoint whose manifest or files are not what was written."""

    def __init__(self, directory: Path, problem: str) -> None:
        super().__init__(problem)
        self.directory = directory


def manifest_content(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a manifest for the fields of a `CheckpointInfo`, with a checksum (`seal`) over all of them."""
    content = {"schema": SCHEMA, **content}
    return {**content, "seal": fingerprint(content)}


def read_info(directory: Path) -> CheckpointInfo:
    """Reads a checkpoint's manifest.

    Raises:
        DamagedCheckpoint: when the manifest is not what was written.
        ValueError: when it was written by another version.
    """
    file = directory / MANIFEST
    if not file.is_file():
        raise DamagedCheckpoint(directory, f"{directory} is not a checkpoint: it has no {MANIFEST}")
    try:
        content = read_json(file)
    except (ValueError, OSError) as error:
        raise DamagedCheckpoint(directory, str(error)) from error
    try:
        if content.pop("seal", None) != fingerprint(content):
            raise DamagedCheckpoint(directory, f"{file}: checksum mismatch, so it changed after it was written")
        if (schema := content.pop("schema", None)) != SCHEMA:
            raise ValueError(f"{file}: a checkpoint of version {schema}; this Replica reads version {SCHEMA}")
        return CheckpointInfo(directory=directory, **content)
    except (AttributeError, TypeError) as error:
        raise DamagedCheckpoint(directory, f"{file} is not a whole manifest ({error})") from error


def find_damage(info: CheckpointInfo, hashes: bool = False, part: slice = slice(None)) -> str | None:
    """Finds the first file of a checkpoint that is missing, truncated or (with `hashes`) altered; None: all are whole.

    Compares names and sizes of all files, and contents only of `part` of them: ranks share the reading.
    """
    names = sorted(info.files)
    hashed = set(names[part]) if hashes else set()
    for name in names:
        expected, file = info.files[name], info.directory / name
        try:
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["bytes"]:
                return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
            if name in hashed and sha256_file(file) != expected["sha256"]:
                return f"{name}: checksum mismatch, so it changed after it was written"
        except OSError as error:
            return f"{name} cannot be read ({error})"
    return None


def step_directories(run: Path) -> list[Path]:
    """All checkpoint directories of a run, newest first."""
    return sorted((run / DIRECTORY).glob("step_" + "[0-9]" * 8), reverse=True)


def all_checkpoints(run: Path, hashes: bool = False) -> Iterator[CheckpointInfo | DamagedCheckpoint]:
    """Reads the checkpoints of a run, newest first. Prints nothing: a caller that passes one over says so."""
    for directory in step_directories(run):
        try:
            info = read_info(directory)
        except DamagedCheckpoint as error:
            yield error
            continue
        problem = find_damage(info, hashes)
        yield info if problem is None else DamagedCheckpoint(directory, problem)


def newest(run: Path, hashes: bool = False) -> CheckpointInfo | None:
    """The newest undamaged checkpoint of a run; None without one. Prints nothing."""
    return next((found for found in all_checkpoints(run, hashes) if isinstance(found, CheckpointInfo)), None)
