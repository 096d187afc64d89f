"""`replica export`: writes a checkpoint as a Hugging Face directory, or as a GGUF file for llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from configs.common.notices import say
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
    """Writes a checkpoint; returns what was written.

    Args:
        run: the run directory.
        target: a directory that is not there yet or is empty, also behind a link; or a file that ends in .gguf.
        choice: of the checkpoint; None: the newest.
        dtype: of the weights.
        max_shard_size: most bytes of a file, such as 5GB.
        verify: compare with `transformers` before the directory gets its name.

    Raises:
        ValueError: when it cannot be exported.
        NotTheSame: when it was to be verified and is not the checkpoint; nothing is left behind.
    """
    from pretrain.interchange.gguf_export import SUFFIX, export_gguf
    from pretrain.interchange.huggingface_export import Weights, export_directory, read_size

    shard_bytes = read_size(max_shard_size)
    checkpoint = choose_checkpoint(load_run(run).run_directory, choice or Choice())
    target = target.resolve()  # the user's own link: what it points to is meant
    if target.suffix == SUFFIX:
        return _export_file(checkpoint, target, dtype, verify, export_gguf)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists and is not empty; choose another directory")

    def check(directory: Path) -> None:
        from eval.export_check import check_export

        say(check_export(directory, checkpoint, dtype))

    weights, vocab = Weights.of_checkpoint(checkpoint), checkpoint.tokenizer
    return export_directory(weights, vocab, target, dtype, shard_bytes, check if verify else None)


def _export_file(info: CheckpointInfo, target: Path, dtype: str, verify: bool, export_gguf: Any) -> Path:
    from pretrain.interchange.huggingface_export import Weights

    if verify:
        raise ValueError("--verify asks transformers, which is for directories; docs/share-and-serve.md: GGUF files")
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
