"""What a checkpoint is: a committed directory that loads at any ZeRO stage and any number of ranks.

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

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.common.files import content_identity, fingerprint, read_json, sha256_file
from configs.schema.recipe import RESOLVED_NAME, Recipe, load

DIRECTORY = "checkpoints"
LATEST = "latest"
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
VALIDATION_LOSS = "validation_loss"  # in the state: None when it was not measured at that step
SCHEMA = 1
IMPORTED = "imported, "  # begins the fingerprint of the data of a model that came from elsewhere


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says about itself."""

    directory: Path
    step: int  # updates made
    train_windows: int  # windows in the training split, which the number of epochs is counted in
    fingerprint: str  # of the contents
    data_fingerprint: str
    tokenizer_fingerprint: str
    state: dict[str, Any]  # running sums, optimizer updates, loss scale
    shapes: dict[str, list[int]]  # of every parameter
    files: dict[str, dict[str, Any]]  # relative path -> bytes and sha256

    @property
    def recipe(self) -> Recipe:
        """The recipe that made it."""
        return load(self.directory / RESOLVED_NAME)

    @property
    def tokenizer(self) -> Path:
        """Directory with its tokenizer.json."""
        return self.directory / TOKENIZER


class Damaged(ValueError):
    """A checkpoint that is not what was written."""


def manifest_content(content: dict[str, Any]) -> dict[str, Any]:
    """What goes into the manifest for the fields of a `CheckpointInfo`: with a seal over all of them."""
    content = {"schema": SCHEMA, **content}
    return {**content, "seal": fingerprint(content)}


def read_info(directory: Path) -> CheckpointInfo:
    """Reads a checkpoint's manifest.

    Raises:
        Damaged: when the manifest is not what was written.
        ValueError: when the directory is not a checkpoint, or of another version.
    """
    file = directory / MANIFEST
    if not file.is_file():
        raise Damaged(f"{directory} is not a checkpoint: it has no {MANIFEST}")
    try:
        content = read_json(file)
    except (ValueError, OSError) as error:
        raise Damaged(str(error)) from error
    try:
        seal = content.pop("seal", None)
        if seal is not None and seal != fingerprint(content):
            raise Damaged(f"{file} has other contents than were written")
        schema = content.pop("schema", None)
        if seal is not None and schema != SCHEMA:
            raise ValueError(f"{file}: a checkpoint of version {schema}; this Replica reads version {SCHEMA}")
        return CheckpointInfo(directory=directory, **content)
    except (AttributeError, TypeError) as error:
        raise Damaged(f"{file} is not a whole manifest ({error})") from error


def damage(info: CheckpointInfo, hashes: bool = False, part: slice = slice(None)) -> str | None:
    """What is wrong with the files of a checkpoint: the first missing, truncated or (with `hashes`) altered one.

    Names and sizes of all files are looked at, contents only of `part` of them: ranks share the reading.
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
            if name in hashed and not _same(file, expected):
                return f"{name} has other contents than were written"
        except OSError as error:
            return f"{name} cannot be read ({error})"
    return None


def _same(file: Path, expected: dict[str, Any]) -> bool:
    if "sha256" in expected:
        return bool(sha256_file(file) == expected["sha256"])
    return content_identity(file) == expected  # samples: how early versions wrote files above 256 MiB down


def step_directories(run: Path) -> list[Path]:
    """All checkpoint directories of a run, newest first."""
    return sorted((run / DIRECTORY).glob("step_" + "[0-9]" * 8), reverse=True)


def latest(run: Path, hashes: bool = False) -> Path | None:
    """The newest undamaged checkpoint of a run; says on standard error which newer ones it passed over, and why."""
    for directory in step_directories(run):
        try:
            problem = damage(read_info(directory), hashes)
        except Damaged as error:
            problem = str(error)
        if problem is None:
            return directory
        print(f"{directory} is damaged: {problem}; trying the one before it", file=sys.stderr)
    return None


def checkpoint_of_step(run: Path, step: int) -> CheckpointInfo:
    """The checkpoint of a step.

    Raises:
        ValueError: when there is none, or it is damaged; names those that there are.
    """
    directory = run / DIRECTORY / f"step_{step:08d}"
    if directory not in step_directories(run):
        kept = ", ".join(str(int(path.name.removeprefix("step_"))) for path in reversed(step_directories(run)))
        raise ValueError(f"{run} has no checkpoint of step {step}; it has those of steps {kept or '(none)'}")
    info = read_info(directory)
    if problem := damage(info):
        raise ValueError(f"{directory} is damaged: {problem}; choose another step")
    return info


def best_checkpoint(run: Path) -> CheckpointInfo:
    """The undamaged checkpoint with the lowest validation loss, the newest of equal ones.

    Raises:
        ValueError: when no checkpoint has a validation loss.
    """
    found: list[tuple[float, int, CheckpointInfo]] = []
    for directory in step_directories(run):
        try:
            info = read_info(directory)
        except Damaged:
            continue
        loss = info.state.get(VALIDATION_LOSS)
        if loss is not None and math.isfinite(loss) and damage(info) is None:
            found.append((loss, -info.step, info))
    if not found:
        raise ValueError(
            f"{run} has no checkpoint with a validation loss; choose one with --step, or train with "
            "train.checkpoint.every as a multiple of train.validation.every"
        )
    return min(found, key=lambda entry: entry[:2])[2]


@dataclass(frozen=True)
class Choice:
    """Which checkpoint of a run is meant: of a step, the one with the lowest validation loss, or else the newest."""

    step: int | None = None
    best: bool = False

    def find(self, run: Path) -> CheckpointInfo:
        """The checkpoint; raises `ValueError` when there is none, or more than one is asked for."""
        if self.best and self.step is not None:
            raise ValueError("give --step or --best, not both")
        if self.best:
            return best_checkpoint(run)
        if self.step is not None:
            return checkpoint_of_step(run, self.step)
        found = latest(run)
        if found is None:
            raise ValueError(
                f"{run} has no checkpoint yet; train first: replica train {run / RESOLVED_NAME} --out {run}"
            )
        return read_info(found)

    def __str__(self) -> str:
        return "the best" if self.best else "the newest" if self.step is None else f"step {self.step}"


# -------------------------------------------------------------------------------------------------------------- reading
