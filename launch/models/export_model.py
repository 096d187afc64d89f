"""Implements `replica export`: writes a checkpoint as a Hugging Face directory, or as a GGUF file for llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from configs.common.notices import say
from configs.schema.objectives import RewardModelling, unit_of
from configs.schema.recipe import load_run
from pretrain.checkpoint.choice import Choice, choose_checkpoint
from pretrain.checkpoint.manifest import CheckpointInfo


def export_run(
    run: Path,
    target: Path,
    choice: Choice | None = None,
    dtype: str = "fp32",
    max_shard_size: str = "5GB",
    verify: bool = False,
) -> Path:
    """Exports a checkpoint; returns the directory or file.

    Args:
        run: the run directory.
        target: a directory that is missing or empty, or a link to one; or a file that ends in .gguf.
        choice: the checkpoint to export; None: the newest.
        dtype: dtype of the weights.
        max_shard_size: maximum size of a file, such as 5GB.
        verify: compare with `transformers` before the directory is renamed to its final name.

    Raises:
        ValueError: when the model cannot be exported, or the target exists.
        NotTheSame: when verification finds a difference; nothing is written then.
    """
    from pretrain.interchange.gguf_export import SUFFIX, export_gguf
    from pretrain.interchange.huggingface_export import Weights, export_directory, read_size

    shard_bytes = read_size(max_shard_size)
    checkpoint = choose_checkpoint(load_run(run).run_directory, choice or Choice())
    target = target.resolve()  # a link of the user: write to the directory it points to
    if target.suffix == SUFFIX:
        return _export_file(checkpoint, target, dtype, verify, export_gguf)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists and is not empty; choose another directory")

    def check(directory: Path) -> None:
        from eval.export_check import check_export

        say(check_export(directory, checkpoint, dtype))

    weights, vocab = Weights.of_checkpoint(checkpoint), checkpoint.tokenizer
    chat = unit_of(checkpoint.recipe.train.objective) != "document"
    return export_directory(weights, vocab, target, dtype, shard_bytes, check if verify else None, chat)


def _export_file(info: CheckpointInfo, target: Path, dtype: str, verify: bool, export_gguf: Any) -> Path:
    from pretrain.interchange.huggingface_export import Weights

    if isinstance(info.recipe.train.objective, RewardModelling):
        raise ValueError("a reward model gives scores, not text, which GGUF has no place for; export a directory")
    if verify:
        raise ValueError(
            "--verify needs transformers, which reads directories, not GGUF files; export a directory, or leave "
            "--verify out (docs/share-and-serve.md)"
        )
    if target.exists():
        raise ValueError(f"{target} exists; choose another file")
    lineage = {
        "run": info.recipe.name,
        "seed": info.recipe.seed,
        "step": info.step,
        "checkpoint": info.fingerprint,
        "data": info.data_fingerprint,
        "tokenizer": info.tokenizer_fingerprint,
    }
    written: Path = export_gguf(Weights.of_checkpoint(info), info.tokenizer, target, dtype, lineage)
    return written
