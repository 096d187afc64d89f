"""Predicts what a recipe needs on given devices: memory, time, data and cost, for every ZeRO stage."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from configs.common.layout import MANIFEST
from configs.common.rendering import short, size
from configs.schema.batch_plan import plan_batch, total_steps
from configs.schema.objectives import unit_of
from configs.schema.recipe import Recipe
from data_prep.tokens.shards import load_manifest
from pretrain.engine.compiling import pays_to_compile
from pretrain.engine.deepspeed_config import cpu_computes_bf16
from pretrain.planning.memory import GPU_CONTEXT, Memory, Setup, memory, variants
from pretrain.planning.stage_needs import stage_needs
from pretrain.planning.step_time import Hardware, step_time
from pretrain.planning.validation_cost import cost_warning, validation_cost
from pretrain.sizes.embedding_rows import embedding_rows
from pretrain.sizes.flops import count_parameters, flops_per_token

CHARACTER_ROWS = 320  # of an embedding whose alphabet the data decides: bytes, the end of text and some letters
_FREE_SHARE = 0.92  # of a device's memory: the rest goes to fragments
_BYTES_PER_TOKEN = 4.0
_MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64)


def make_plan(
    recipe: Recipe, hardware: Hardware, price: float | None, probed: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Predicts what a recipe needs on these devices: bytes, seconds, tokens and FLOPs.

    `probed`: fields of `Setup` that a probe measured.

    Raises:
        ValueError: when the global batch is smaller than the number of ranks.
    """
    known = embedding_rows(recipe)
    rows = known or CHARACTER_ROWS
    warnings = [] if known else [f"the alphabet is not known before the data is prepared: {rows} rows assumed"]
    setup = replace(planned_setup(recipe, hardware, warnings), **(probed or {}))
    counted = count_parameters(recipe.model, rows)
    limit = hardware.device.memory * _FREE_SHARE - (0 if hardware.device.cpu else GPU_CONTEXT)
    stages = [_row(recipe, rows, choice, hardware, limit) for choice in variants(setup, offload=True)]
    own, best = _row(recipe, rows, setup, hardware, limit), _fastest(recipe, rows, setup, hardware, limit)
    needs = _stage_needs(recipe, rows, setup, hardware, limit, own)
    if not own["fits"]:
        warnings.append(
            f"the recipe's own settings need {size(own['total'])} of {size(limit)} per rank: they do not fit"
        )
    tokens = None
    if recipe.train.epochs is None:
        tokens = total_steps(recipe, 0) * recipe.train.global_batch_size * recipe.model.context_length
    plan: dict[str, Any] = {
        "recipe": recipe.name,
        "unit": unit_of(recipe.train.objective),
        "device": {
            "name": hardware.device.name,
            "ranks": hardware.ranks,
            "nodes": hardware.nodes,
            "usable_bytes": limit,
        },
        "rows": rows,
        "parameters": counted._asdict(),
        "flops_per_token": flops_per_token(recipe.model, rows),
        "assumed_mfu": hardware.mfu,
        "stages": stages,
        "recipe_settings": own,
        "fastest": best,
        "checkpoint_bytes": 12.0 * counted.total * (recipe.train.checkpoint.keep + 1),
        "warnings": warnings,
        **({} if needs is None else {"stage": needs}),
    }
    steps = None if recipe.train.epochs is not None else total_steps(recipe, 0)
    plan["validation"] = validation_cost(recipe, steps, own["tokens_per_s"])
    if tokens is not None:
        warnings += cost_warning(plan["validation"], tokens / own["tokens_per_s"])
        plan["tokens"], plan["tokens_per_parameter"] = tokens, tokens / counted.total
        plan["bytes_per_token"], plan["bytes_are_measured"] = _bytes_per_token(recipe)
        plan["text_bytes"] = tokens * plan["bytes_per_token"]
        plan["shard_bytes"] = tokens * (2 if rows <= 65536 else 4)
        for row in (own, best):
            if row is not None:
                row["seconds"] = tokens / row["tokens_per_s"]
                # As if all of it were computation, which most of it is.
                row["seconds_range"] = [
                    row["seconds"] * hardware.mfu[0] / mfu for mfu in (hardware.mfu[2], hardware.mfu[1])
                ]
                hours = row["seconds"] / 3600 * hardware.ranks
                row["cost"] = None if price is None else hours * price
        _warn_of_epochs(recipe, tokens, warnings)
    return plan


def _stage_needs(
    recipe: Recipe, rows: int, setup: Setup, hardware: Hardware, limit: float, own: dict[str, Any]
) -> dict[str, Any] | None:
    """Predicts what a stage needs beside training; adds it to the prediction of the recipe's own settings."""
    training = memory(recipe.model, rows, setup)
    needs = stage_needs(recipe, rows, setup, training, hardware)
    if needs is None:
        return None
    own["total"], own["fits"] = needs.peak(training), needs.peak(training) <= limit
    own["step_seconds"] += needs.seconds
    own["tokens_per_s"] = (
        recipe.train.global_batch_size * recipe.model.context_length / own["step_seconds"]
    )  # rows are padded, so this counts places of tokens
    return needs.as_json(training, limit)


def _bytes_per_token(recipe: Recipe) -> tuple[float, bool]:
    """Returns bytes of text per token, and True if the prepared data gives them."""
    if (recipe.data_directory / MANIFEST).is_file():
        sources = load_manifest(recipe.data_directory).train
        if tokens := sum(source.tokens for source in sources):
            return sum(source.bytes for source in sources) / tokens, True
    return (1.0 if recipe.data.tokenizer.kind in ("char", "byte") else _BYTES_PER_TOKEN), False


def _warn_of_epochs(recipe: Recipe, tokens: int, warnings: list[str]) -> None:
    if not (recipe.data_directory / MANIFEST).is_file():
        return
    there = sum(source.tokens for source in load_manifest(recipe.data_directory).train)
    if tokens > there:
        warnings.append(f"the prepared data has {short(there)} tokens: {tokens / there:.1f} epochs over it")


def planned_setup(recipe: Recipe, hardware: Hardware, warnings: list[str]) -> Setup:
    """How training would set the recipe up there; adds what does not divide to `warnings`."""
    train, half = recipe.train, not hardware.device.cpu or cpu_computes_bf16()
    if train.parallel.tensor > 1:
        raise ValueError("replica plan does not support train.parallel.tensor; plan with train.parallel.tensor=1")
    batch = plan_batch(train, hardware.ranks)
    warnings += batch.problems
    bucket = recipe.deepspeed.get("zero_optimization", {}).get("reduce_bucket_size", Setup.bucket)
    return Setup(
        precision=("bf16" if half else "fp32") if train.precision == "auto" else train.precision,
        ranks=hardware.ranks,
        micro_batch=batch.micro_batch,
        accumulation=batch.accumulation,
        stage=train.zero.stage,
        offload=train.zero.offload_optimizer == "cpu" and not hardware.device.cpu,
        offload_weights=train.zero.offload_parameters == "cpu" and not hardware.device.cpu,
        sequence=train.parallel.sequence,
        checkpointing=train.activation_checkpointing,
        optimizer=train.optimizer.name,
        compiled=_compiled(recipe, hardware),
        cpu=hardware.device.cpu,
        checkpoint_copy=train.checkpoint.asynchronous,
        bucket=int(bucket),
        loss_chunk=train.loss_chunk,
    )


def _compiled(recipe: Recipe, hardware: Hardware) -> bool:
    """Whether training compiles there; a GPU is taken to have long runs and a compiler, a run of epochs to be short."""
    train = recipe.train
    if not hardware.device.cpu:
        return pays_to_compile(train, "cuda", math.inf)
    rows = embedding_rows(recipe) or CHARACTER_ROWS
    steps = 0 if train.epochs is not None else total_steps(recipe, 0)
    tokens = steps * train.global_batch_size * recipe.model.context_length
    return pays_to_compile(train, "cpu", tokens * flops_per_token(recipe.model, rows) / hardware.ranks)


def _row(recipe: Recipe, rows: int, setup: Setup, hardware: Hardware, limit: float) -> dict[str, Any]:
    need: Memory = memory(recipe.model, rows, setup)
    time = step_time(recipe.model, rows, setup, hardware)
    tokens = setup.micro_batch * setup.accumulation * setup.ranks // setup.sequence * recipe.model.context_length
    return {
        "stage": setup.stage,
        "offload": setup.offload,
        "micro_batch": setup.micro_batch,
        "accumulation": setup.accumulation,
        "checkpointing": setup.checkpointing,
        "parts": need.parts,
        "total": need.total,
        "host": need.host,
        "moment": need.moment,
        "fits": need.total <= limit,
        "step_seconds": time.total,
        "communication_seconds": time.communication,
        "tokens_per_s": tokens / time.total,
    }


def _fastest(recipe: Recipe, rows: int, setup: Setup, hardware: Hardware, limit: float) -> dict[str, Any] | None:
    """Returns the fastest predicted configuration that fits; of equally fast ones, that with the least memory."""
    per_rank = setup.micro_batch * setup.accumulation
    found = [
        _row(
            recipe,
            rows,
            replace(choice, micro_batch=n, accumulation=per_rank // n, checkpointing=kept),
            hardware,
            limit,
        )
        for choice in variants(setup, offload=True)
        for n in sorted({*_MICRO_BATCHES, setup.micro_batch})
        for kept in ("none", "selective", "full")
        if per_rank % n == 0
    ]
    return min((row for row in found if row["fits"]), key=lambda row: (row["step_seconds"], row["total"]), default=None)
