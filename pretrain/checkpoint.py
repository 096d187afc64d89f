"""Checkpoints: committed directories that load at any ZeRO stage and any number of ranks.

`checkpoints/step_00000100/` holds
    manifest.json                       step, fingerprints, counters, shapes, and size and SHA-256 of every file
    recipe.yaml, tokenizer/             what the weights need to be used
    weights-RRRRR-of-NNNNN.safetensors  fp32 pieces of parameters, one file a rank; a piece is called `name@offset`
    optimizer-….safetensors             the same pieces of AdamW's moments, `exp_avg/name@offset` and `exp_avg_sq/…`

A directory appears by a rename after all ranks have written and flushed their files, so what carries its final name is
complete; `checkpoints/latest` follows, and older ones go only then. Nothing here is pickled. This file is free of
torch, so that a finished run is recognised at once.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.files import (
    TEMPORARY_SUFFIX,
    content_identity,
    fingerprint,
    fsync_path,
    read_json,
    remove_leftovers,
    temporary_beside,
    write_json,
    write_text,
)
from configs.recipe import RESOLVED_NAME, Recipe, load, save, total_steps
from data_prep.shards import DataManifest
from data_prep.vocab import Vocab

if TYPE_CHECKING:
    from pretrain.engine import Engine
    from pretrain.model import Transformer

DIRECTORY = "checkpoints"
LATEST = "latest"
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
SCHEMA = 1


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


def read_info(directory: Path) -> CheckpointInfo:
    """Reads a checkpoint's manifest; raises `ValueError` when it is not one, or of another version."""
    if not (directory / MANIFEST).is_file():
        raise ValueError(f"{directory} is not a checkpoint: it has no {MANIFEST}")
    content = read_json(directory / MANIFEST)
    if not isinstance(content, dict) or content.pop("schema", None) != SCHEMA:
        raise ValueError(f"{directory / MANIFEST}: not a checkpoint manifest of version {SCHEMA}")
    return CheckpointInfo(directory=directory, **content)


def damage(info: CheckpointInfo, hashes: bool = False) -> str | None:
    """What is wrong with the files of a checkpoint: the first missing, truncated or (with `hashes`) altered one."""
    for name, expected in info.files.items():
        file = info.directory / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["bytes"]:
            return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
        if hashes and content_identity(file) != expected:
            return f"{name} has other contents than were written"
    return None


def step_directories(run: Path) -> list[Path]:
    """All checkpoint directories of a run, newest first."""
    return sorted((run / DIRECTORY).glob("step_*"), reverse=True)


def latest(run: Path, hashes: bool = False) -> Path | None:
    """The newest undamaged checkpoint of a run; says on standard error which newer ones it passed over, and why."""
    for directory in step_directories(run):
        try:
            problem = damage(read_info(directory), hashes)
        except ValueError as error:
            problem = str(error)
        if problem is None:
            return directory
        print(f"{directory} is damaged: {problem}; trying the one before it", file=sys.stderr)
    return None


def is_finished(recipe: Recipe) -> bool:
    """Whether the run of this recipe has made all its steps on the data that lies there now; fast, without torch."""
    newest = latest(recipe.run_directory)
    if newest is None:
        return False
    info = read_info(newest)
    manifest = recipe.data_directory / "manifest.json"
    return (
        info.step >= total_steps(recipe, info.train_windows)
        and info.recipe.model == recipe.model
        and manifest.is_file()
        and read_json(manifest).get("fingerprint") == info.data_fingerprint
    )


def check_belongs(info: CheckpointInfo, recipe: Recipe, data: DataManifest) -> None:
    """Raises `ValueError`, naming both values, when training cannot go on from this checkpoint."""
    old = info.recipe
    pairs = {f"model.{key}": (getattr(old.model, key), value) for key, value in recipe.model}
    pairs["seed"] = (old.seed, recipe.seed)
    pairs["train.global_batch_size"] = (old.train.global_batch_size, recipe.train.global_batch_size)
    pairs["the tokenizer's fingerprint"] = (info.tokenizer_fingerprint, Vocab.load(data.tokenizer).fingerprint)
    pairs["the data's fingerprint"] = (info.data_fingerprint, data.fingerprint)
    for name, (was, now) in pairs.items():
        if was != now:
            raise ValueError(
                f"{info.directory} was made with {name} = {was}, but now it is {now}; set it back, or start a new run "
                "with another --out"
            )


# -------------------------------------------------------------------------------------------------------------- writing
def save_checkpoint(
    engine: Engine, recipe: Recipe, data: DataManifest, step: int, train_windows: int, state: dict[str, Any]
) -> Path:
    """Commits the state after `step` updates; every rank must call it. Returns the directory.

    Raises:
        OSError, SafetensorError: on every rank, when one of them could not write; nothing half-written stays behind.
    """
    from pretrain.fragment_files import write_fragments

    parent = recipe.run_directory / DIRECTORY
    target = parent / f"step_{step:08d}"
    partial = parent / f".{target.name}{TEMPORARY_SUFFIX}"

    def prepare() -> None:
        parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(parent)
        partial.mkdir()

    def commit() -> None:
        save(recipe, partial)
        shutil.copytree(data.tokenizer, partial / TOKENIZER)
        for file in partial.rglob("*"):
            fsync_path(file)
            if file.is_file():
                files.setdefault(str(file.relative_to(partial)), content_identity(file))
        content = {
            "step": step,
            "train_windows": train_windows,
            "fingerprint": fingerprint(files),
            "data_fingerprint": data.fingerprint,
            "tokenizer_fingerprint": Vocab.load(data.tokenizer).fingerprint,
            "state": state,
            "shapes": engine.shapes(),
            "files": files,
        }
        write_json(partial / MANIFEST, {"schema": SCHEMA, **content})
        _replace(partial, target)
        write_text(parent / LATEST, target.name + "\n")

    try:
        _together(engine, prepare, main_only=True)
        parts = _together(engine, lambda: write_fragments(engine, partial))
        files = {name: identity for part in parts for name, identity in part.items()}
        _together(engine, commit, main_only=True)
    except BaseException:
        if engine.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    if engine.is_main:
        for old in step_directories(recipe.run_directory)[recipe.train.checkpoint.keep :]:
            shutil.rmtree(old)
    return target


def _replace(partial: Path, target: Path) -> None:
    """Gives the directory its final name; one of that name (a damaged one, made again) goes first."""
    fsync_path(partial)
    if target.exists():
        aside = temporary_beside(target)
        target.rename(aside)
        shutil.rmtree(aside)
    partial.rename(target)
    fsync_path(target.parent)


def _together(engine: Engine, work: Callable[[], Any], main_only: bool = False) -> list[Any]:
    """Runs `work` on all ranks (or the main one) and waits for it; when it fails on one, raises that error on all."""
    from safetensors import SafetensorError

    result, error = None, None
    try:
        result = work() if engine.is_main or not main_only else None
    except (OSError, SafetensorError) as problem:
        error = problem
    outcomes = engine.gather((result, error))
    for _, error in outcomes:
        if error is not None:
            raise error
    return [result for result, _ in outcomes]


# -------------------------------------------------------------------------------------------------------------- reading
def load_checkpoint(engine: Engine, info: CheckpointInfo) -> None:
    """Sets weights, moments and counters on every rank; the number of ranks and the ZeRO stage may have changed."""
    from pretrain.fragment_files import FragmentReader

    weights = FragmentReader(info.directory, "weights")
    engine.set_weights(lambda name: weights.whole(name, info.shapes[name]))
    moments = FragmentReader(info.directory, "optimizer")
    for piece in engine.fragments():
        for key, values in piece.moments.items():
            values.copy_(moments.part(f"{key}/{piece.name}", piece.offset, piece.numel))
        piece.updates.fill_(info.state["updates"])
    engine.set_loss_scale(info.state["loss_scale"])


def load_weights(directory: Path) -> Transformer:
    """The model of a checkpoint in evaluation mode, fp32, on the CPU; needs neither DeepSpeed nor the run it came from.

    Raises:
        ValueError: when the directory is not a checkpoint, or is damaged.
    """
    import torch

    from pretrain.fragment_files import FragmentReader
    from pretrain.model import Transformer

    info = read_info(directory)
    if problem := damage(info):
        raise ValueError(f"{directory} is damaged: {problem}; use another checkpoint")
    config = info.recipe.model
    with torch.device("meta"):
        model = Transformer(config, config.padded_vocab(Vocab.load(info.tokenizer).size))
    model.materialize("cpu")
    weights = FragmentReader(directory, "weights")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights.whole(name, info.shapes[name]))
    return model.eval()
