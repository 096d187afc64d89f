"""Implements `replica trace`: finds the documents that a training step read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table

from configs.common.console import Console
from configs.safety.terminal import printable
from configs.schema.objectives import MaskedDiffusion, Reinforcement, unit_of
from configs.schema.recipe import Recipe

if TYPE_CHECKING:
    from pretrain.batches.trace import TracedBatches, TracedSpan


def trace(recipe: Recipe, step: int) -> Iterator[TracedSpan]:
    """Yields the documents of the step with this number in `metrics.jsonl`, in the order of the batch.

    Uses the settings of the newest checkpoint, or those of the run's recipe if there is none.

    Raises:
        ValueError: when the step is not in the run, or its data was removed or replaced.
    """
    from configs.schema.batch_plan import total_steps
    from data_prep.tokens.shards import load_manifest
    from pretrain.batches.masked import MaskedBatches
    from pretrain.batches.pair_batches import PairBatches
    from pretrain.batches.source import BatchSource
    from pretrain.batches.trace import traced
    from pretrain.batches.units import last_answer
    from pretrain.checkpoint.compatible import recipe_of_step
    from pretrain.checkpoint.manifest import newest

    manifest, info = load_manifest(recipe.data_directory), newest(recipe.run_directory)
    made_with = recipe
    if info is not None:
        if info.data_fingerprint != manifest.fingerprint:
            raise ValueError(
                f"{manifest.directory} holds other data (fingerprint {manifest.fingerprint}) than "
                f"{info.directory.name} was trained on ({info.data_fingerprint}), so no step can be traced; prepare "
                "the same data again"
            )
        made_with = recipe_of_step(info, step)
    pairs = unit_of(made_with.train.objective) == "pair"
    source: TracedBatches = PairBatches(made_with, manifest, last_answer) if pairs else BatchSource(made_with, manifest)
    if isinstance(made_with.train.objective, MaskedDiffusion):
        from pretrain.objectives.masked_diffusion import mask_id_of

        source = MaskedBatches(source, mask_id_of(manifest.vocab), made_with.seed)
    steps = total_steps(made_with, source.windows)
    if not 1 <= step <= steps:
        raise ValueError(f"step {step} is not in this run; it has the steps 1 to {steps}")
    # Updates are counted from 1, batches from 0: update s consumes batch s - 1.
    yield from traced(source, manifest.vocab, step - 1)


def print_trace(recipe: Recipe, step: int, sample: int | None = None) -> None:
    """Prints what a step read: documents, or in reinforcement learning answers; `sample`: one answer in full.

    Raises:
        ValueError: as `trace`, and when there is no such answer.
    """
    console = Console()
    if not console.is_terminal:
        console.width = 200
    if isinstance(recipe.train.objective, Reinforcement):
        from launch.trace_rollout import print_answer, print_rollout

        return print_rollout(recipe, step, console) if sample is None else print_answer(recipe, step, sample, console)
    if sample is not None:
        raise ValueError(f"--sample shows an answer of reinforcement learning, which {recipe.name} does not do")
    pairs = unit_of(recipe.train.objective) == "pair"
    masked = isinstance(recipe.train.objective, MaskedDiffusion)
    table = Table(box=None, pad_edge=False, header_style="bold")
    numbers = ("offset", "tokens", *(["hidden"] if masked else []))
    for title in ("row", *(["answer"] if pairs else []), "document", "source", *numbers, "first words"):
        table.add_column(title, justify="right" if title in {"row", *numbers} else "left")
    for span in trace(recipe, step):
        side = [("chosen", "rejected")[span.row % 2]] if pairs else []
        hidden = [f"{span.counted:,}"] if masked else []
        counts = (f"{span.offset:,}", f"{span.tokens:,}", *hidden)
        cells = (f"{span.row}", *side, span.id, span.source, *counts, span.words)
        table.add_row(*(printable(cell) for cell in cells))
    console.print(table)
    return None
