"""Collects the facts of a report besides scores: model, checkpoint, data, and fingerprints of all inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from configs.common.files import fingerprint
from configs.common.layout import MANIFEST
from configs.common.versions import git_commit, installed
from configs.schema.model import Model
from configs.schema.recipe import Recipe
from data_prep.tokens.shards import load_manifest
from pretrain.batches.mixture import mixture_table
from pretrain.checkpoint.compatible import CHANGES
from pretrain.checkpoint.manifest import CheckpointInfo
from pretrain.sizes.shapes import parameter_shapes

if TYPE_CHECKING:
    from data_prep.tokens.vocab import Vocab
    from eval.results import Result

_PACKAGES = (
    "torch", "numpy", "tokenizers", "deepspeed", "ray", "datasets", "transformers", "lm_eval", "sacrebleu", "zstandard",
)  # fmt: skip


def model_facts(config: Model, vocab: Vocab) -> dict[str, Any]:
    """Returns the sizes of the model and its vocabulary for `results.json`."""
    shapes = parameter_shapes(config, config.padded_vocab(vocab.size))
    return {
        "family": config.family,
        "parameters": sum(math.prod(shape) for _, shape in shapes),
        "layers": config.num_layers,
        "width": config.hidden_size,
        "context_length": config.context_length,
        "vocab_size": vocab.size,
    }


def checkpoint_facts(checkpoint: CheckpointInfo) -> dict[str, Any]:
    """Returns name, step and fingerprint of a checkpoint for `results.json`."""
    return {
        "name": checkpoint.directory.name,
        "step": checkpoint.step,
        "fingerprint": checkpoint.fingerprint,
        "tokens": checkpoint.state.get("meter", {}).get("targets"),
    }


def data_facts(recipe: Recipe, checkpoint: CheckpointInfo) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns counts, mixture and funnel of the training data; empty if the data was removed or replaced."""
    if not (recipe.data_directory / MANIFEST).is_file():
        return {}, []
    manifest = load_manifest(recipe.data_directory)
    if manifest.fingerprint != checkpoint.data_fingerprint:
        return {}, []
    counts: dict[str, Any] = {
        split: {key: sum(getattr(source, key) for source in sources) for key in ("documents", "tokens", "bytes")}
        for split, sources in (("train", manifest.train), ("validation", manifest.validation))
    }
    # The checkpoint's recipe, because the run's recipe may have changed since.
    counts["mixture"] = mixture_table(checkpoint.recipe, manifest, checkpoint.step)
    return counts, manifest.funnel


def lineage(
    recipe: Recipe,
    checkpoint: CheckpointInfo,
    vocab: Vocab,
    sets: dict[str, Any],
    outcome: str,
    results: Sequence[Result] = (),
) -> list[dict[str, Any]]:
    """Lists the inputs of the scores in order, each with a fingerprint; `results` tell which tasks were scored."""
    rows = [
        ("Recipe", recipe.fingerprint(), f"{recipe.name}, seed {recipe.seed}"),
        ("Training data", checkpoint.data_fingerprint, ", ".join(source.name for source in recipe.data.sources)),
        ("Tokenizer", vocab.fingerprint, f"{recipe.data.tokenizer.kind}, {vocab.size:,} tokens"),
        ("Checkpoint", checkpoint.fingerprint, f"{checkpoint.directory.name}, step {checkpoint.step:,}"),
    ]
    for name, identities in sets.items():
        total = sum(item["bytes"] for item in identities)
        files = f"{len(identities):,} file{'s' if len(identities) > 1 else ''}"
        rows.append((name[0].upper() + name[1:], fingerprint(identities), f"{files}, {total:,} bytes"))
    rows += _tasks(results)
    rows.append(("Results", outcome, "all of the above, and the settings of the evaluation"))
    for change in checkpoint.state.get(CHANGES, []):
        detail = f"after step {change['step']:,}: {change['before']}, then {change['after']}"
        rows.append((f"Changed {change['setting']}", "", detail))
    if commit := git_commit():
        rows.append(("Code", commit, "git commit"))
    return [dict(zip(("name", "fingerprint", "detail"), row, strict=True)) for row in rows]


def _tasks(results: Sequence[Result]) -> Iterator[tuple[str, str, str]]:
    """Yields a row for each benchmark task: the fingerprints of its file and of its rendered prompts."""
    known: set[str] = set()
    for result in results:
        settings, name = result.settings, result.named
        if name.kind == "benchmark" and "task" in settings and name.subject not in known:
            known.add(name.subject)
            seed = settings.get("seed of the shots")
            shots = f"{settings['shots']} shots" + ("" if seed is None else f" by seed {seed}")
            detail = f"version {result.task_version} of the task, {shots}, lm-eval {settings['lm-eval']}"
            yield f"Benchmark task {name.subject}", f"{settings['task']}-{settings['prompts']}", detail


def package_versions() -> dict[str, str]:
    """Maps distribution to version, for installed packages that affect scores."""
    return {name: version for name in _PACKAGES if (version := installed(name)) is not None}
