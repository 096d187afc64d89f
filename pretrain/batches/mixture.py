"""Applies the recipe's mixture to prepared data: the order of a run, and the table that reports it. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from configs.schema.batch_plan import total_steps
from configs.schema.recipe import Recipe
from data_prep.tokens.shards import DataManifest
from pretrain.batches.mixture_plan import MixturePhase, SourceSize
from pretrain.batches.order import WindowOrder
from pretrain.batches.packing import load_packing


def window_count(tokens: int, context: int) -> int:
    """Whole windows in a stream of this many tokens; a window's last target is the first token of the next."""
    return max(0, (tokens - 1) // context)


def plan_mixture(recipe: Recipe, data: DataManifest, tokens: Mapping[str, int] | None = None) -> WindowOrder:
    """The order of all training windows of a recipe.

    Args:
        recipe: its sources' weights and caps, its mixture, and the length of its training run.
        data: what is there; a source that the recipe does not name has the manifest's weight.
        tokens: length of each source's stream; None: as the manifest says.

    Raises:
        ValueError: when the shares that the recipe asks for cannot be had.
    """
    context, settings = recipe.model.context_length, recipe.data.mixture
    named = {source.name: source for source in recipe.data.sources}
    sizes = []
    for source in data.train:
        if recipe.train.packing == "best_fit":
            windows = load_packing(data, source, context).windows
        else:
            windows = window_count(tokens[source.name] if tokens else source.tokens, context)
        own = named.get(source.name)
        weight = source.weight if own is None else own.weight
        if settings.temperature is not None:
            weight = windows ** (1 / settings.temperature) if windows else None
        epochs = (own.max_epochs if own else None) or settings.max_epochs
        # A hair is added, or 0.1 epochs of 30 windows would be 2.
        cap = None if epochs is None else int(epochs * windows * (1 + 1e-12))
        sizes.append(SourceSize(source.name, windows, weight, cap))
    steps = total_steps(recipe, sum(size.windows for size in sizes))
    batch = recipe.train.global_batch_size
    phases = [MixturePhase(int(phase.start * steps + 0.5) * batch, phase.weights) for phase in settings.phases]
    return WindowOrder(sizes, recipe.seed, steps * batch, phases, context)


def mixture_table(recipe: Recipe, data: DataManifest, step: int | None = None) -> list[dict[str, Any]]:
    """One row per phase and source, and where there are several phases one per source for the whole run.

    Args:
        recipe: of the run.
        data: prepared for it.
        step: updates made so far, for what was realised; None: nothing yet.

    Returns:
        Rows with phase (from 1; 0: the whole run), first_step, steps, source, asked (share), planned (share),
        realised (share; None before the phase), tokens, realised_tokens, epochs and realised_epochs.
    """
    mixture = plan_mixture(recipe, data)
    batch, context = recipe.train.global_batch_size, recipe.model.context_length
    slots = total_steps(recipe, sum(source.windows for source in mixture.sources)) * batch
    bounds = [*(segment.start for segment in mixture.segments), slots]
    spans = [(number, start, stop) for number, (start, stop) in enumerate(pairwise(bounds), start=1)]
    whole = [
        sum(
            segment.asked[index] * (stop - start)
            for segment, (_, start, stop) in zip(mixture.segments, spans, strict=True)
        )
        / slots
        for index in range(len(mixture.sources))
    ]
    spans += [(0, 0, slots)] if len(spans) > 1 else []
    rows = []
    for phase, start, stop in spans:
        planned = mixture.planned(start, stop)
        made = [0] * len(planned)
        if step is not None and step * batch > start:
            earlier, later = mixture.realised(start), mixture.realised(min(stop, step * batch))
            made = [after - before for before, after in zip(earlier, later, strict=True)]
        for index, source in enumerate(mixture.sources):
            rows.append(
                {
                    "phase": phase,
                    "first_step": start // batch,
                    "steps": (stop - start) // batch,
                    "source": source.name,
                    "asked": (mixture.segments[phase - 1].asked if phase else whole)[index],
                    "planned": planned[index] / (stop - start),
                    "realised": made[index] / sum(made) if sum(made) else None,
                    "tokens": planned[index] * context,
                    "realised_tokens": made[index] * context,
                    "epochs": planned[index] / source.windows,
                    "realised_epochs": made[index] / source.windows,
                }
            )
    return rows


def mixture_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The table's plan in words, a line per source and phase: for the terminal."""
    lines = []
    for row in rows:
        where = f"phase {row['phase']}, from step {row['first_step']:,}" if row["phase"] else "whole run"
        changed = abs(row["asked"] - row["planned"]) > 0.001
        lines.append(
            f"{where}: {row['source']} {row['planned']:.2%}"
            + (f" (asked {row['asked']:.2%}, capped)" if changed else "")
            + f", {row['tokens']:,} tokens, {row['epochs']:.3g} epochs"
        )
    if all(row["phase"] == 1 for row in rows):
        lines = [line.split(": ", 1)[1] for line in lines]
    return lines
