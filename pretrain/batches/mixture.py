"""Applies the recipe's mixture to prepared data: the order of a run, and the table that reports it. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from configs.schema.batch_plan import total_steps
from configs.schema.objectives import GroupPolicy, ProximalPolicy, rows_per_unit, unit_of
from configs.schema.recipe import Recipe
from data_prep.tokens.shards import DataManifest, SourceShards
from pretrain.batches.mixture_plan import MixturePhase, SourceSize
from pretrain.batches.order import WindowOrder
from pretrain.batches.packing import load_packing


def window_count(tokens: int, context: int) -> int:
    """Whole windows in a stream of this many tokens; a window's last target is the first token of the next."""
    return max(0, (tokens - 1) // context)


def is_packing(recipe: Recipe) -> bool:
    """Whether documents are packed side by side; pairs and prompts never are."""
    return recipe.train.packing == "best_fit" and unit_of(recipe.train.objective) in ("document", "conversation")


def epoch_windows(recipe: Recipe, data: DataManifest, source: SourceShards, tokens: int | None = None) -> int:
    """What an epoch of a source has of what slots are filled with: windows, conversations, pairs or prompts.

    `tokens`: length of its stream; None: as the manifest says.
    """
    unit = unit_of(recipe.train.objective)
    if is_packing(recipe):
        return load_packing(data, source, recipe.model.context_length).windows
    if unit == "document":
        return window_count(source.tokens if tokens is None else tokens, recipe.model.context_length)
    return source.documents // 2 if unit == "pair" else source.documents


def slots_of(recipe: Recipe, steps: int) -> int:
    """The slots that the first `steps` steps read."""
    objective = recipe.train.objective
    if isinstance(objective, GroupPolicy | ProximalPolicy):
        rollouts = -(-steps // objective.rollout.updates)  # each feeds so many steps
        return rollouts * objective.rollout.prompts
    return steps * recipe.train.global_batch_size // rows_per_unit(objective)


def planned_steps(recipe: Recipe, windows: int) -> int:
    """Steps of a run whose epoch has this many windows, conversations, pairs or prompts over all sources."""
    return total_steps(recipe, windows * rows_per_unit(recipe.train.objective))


def plan_mixture(recipe: Recipe, data: DataManifest, tokens: Mapping[str, int] | None = None) -> WindowOrder:
    """The order of all training windows, or units, of a recipe.

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
        windows = epoch_windows(recipe, data, source, tokens[source.name] if tokens else None)
        own = named.get(source.name)
        weight = source.weight if own is None else own.weight
        if settings.temperature is not None:
            weight = windows ** (1 / settings.temperature) if windows else None
        epochs = (own.max_epochs if own else None) or settings.max_epochs
        # A hair is added, or 0.1 epochs of 30 windows would be 2.
        cap = None if epochs is None else int(epochs * windows * (1 + 1e-12))
        sizes.append(SourceSize(source.name, windows, weight, cap))
    steps = planned_steps(recipe, sum(size.windows for size in sizes))
    phases = [
        MixturePhase(slots_of(recipe, int(phase.start * steps + 0.5)), phase.weights) for phase in settings.phases
    ]
    return WindowOrder(sizes, recipe.seed, slots_of(recipe, steps), phases, context)


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
    steps = planned_steps(recipe, sum(source.windows for source in mixture.sources))
    slots, done = slots_of(recipe, steps), slots_of(recipe, step or 0)
    lengths = {source.name: _slot_tokens(recipe, source) for source in data.train}
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
        if done > start:
            earlier, later = mixture.realised(start), mixture.realised(min(stop, done))
            made = [after - before for before, after in zip(earlier, later, strict=True)]
        for index, source in enumerate(mixture.sources):
            rows.append(
                {
                    "phase": phase,
                    "first_step": start * steps // slots,
                    "steps": (stop - start) * steps // slots,
                    "source": source.name,
                    "asked": (mixture.segments[phase - 1].asked if phase else whole)[index],
                    "planned": planned[index] / (stop - start),
                    "realised": made[index] / sum(made) if sum(made) else None,
                    "tokens": round(planned[index] * lengths[source.name]),
                    "realised_tokens": round(made[index] * lengths[source.name]),
                    "epochs": planned[index] / source.windows,
                    "realised_epochs": made[index] / source.windows,
                }
            )
    return rows


def _slot_tokens(recipe: Recipe, source: SourceShards) -> float:
    """Tokens behind a slot: a window's, or the mean of the source's units."""
    unit = unit_of(recipe.train.objective)
    if unit == "document" or is_packing(recipe):
        return recipe.model.context_length
    return source.tokens / max(1, source.documents) * (2 if unit == "pair" else 1)


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
