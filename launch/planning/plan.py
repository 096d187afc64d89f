"""`replica plan`: what a recipe will need, before it is run."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from configs.common.console import Console
from configs.common.files import read_json
from configs.common.layout import MANIFEST
from configs.common.rendering import duration, short, size
from configs.safety.trust import trust_options
from configs.schema.recipe import Recipe, load, plan_batch, total_steps
from configs.schema.train import Train
from launch.planning.show import embedding_rows
from pretrain.planning.memory import GPU_CONTEXT, PARTS, Memory, Setup, memory, variants
from pretrain.planning.step_time import Hardware, step_time
from pretrain.sizes.flops import count_parameters, flops_per_token

_FREE_SHARE = 0.92  # of a device's memory: the rest goes to fragments
_CHARACTER_ROWS = 320  # bytes, the end of text and some letters, where the data decides
_BYTES_PER_TOKEN = 4.0
_CHINCHILLA = 20  # tokens per parameter: arXiv:2203.15556
_HEADINGS = ("weights", "grads", "optim.", "activ.", "logits", "buffers", "fixed")  # of PARTS
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
    rows = known or _CHARACTER_ROWS
    warnings = [] if known else [f"the alphabet is not known before the data is prepared: {rows} rows assumed"]
    setup = replace(_setup(recipe, hardware, warnings), **(probed or {}))
    counted = count_parameters(recipe.model, rows)
    limit = hardware.device.memory * _FREE_SHARE - (0 if hardware.device.cpu else GPU_CONTEXT)
    stages = [_row(recipe, rows, choice, hardware, limit) for choice in variants(setup, offload=True)]
    own, best = _row(recipe, rows, setup, hardware, limit), _fastest(recipe, rows, setup, hardware, limit)
    if not own["fits"]:
        warnings.append(
            f"the recipe's own settings need {size(own['total'])} of {size(limit)} per rank: they do not fit"
        )
    tokens = None
    if recipe.train.epochs is None:
        tokens = total_steps(recipe, 0) * recipe.train.global_batch_size * recipe.model.context_length
    plan: dict[str, Any] = {
        "recipe": recipe.name,
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
    }
    if tokens is not None:
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
        _judge_data(recipe, tokens, warnings)
    return plan


def _bytes_per_token(recipe: Recipe) -> tuple[float, bool]:
    """Bytes of text per token, and whether the prepared data said so."""
    if (recipe.data_directory / MANIFEST).is_file():
        from data_prep.tokens.shards import load_manifest

        sources = load_manifest(recipe.data_directory).train
        if tokens := sum(source.tokens for source in sources):
            return sum(source.bytes for source in sources) / tokens, True
    return (1.0 if recipe.data.tokenizer.kind in ("char", "byte") else _BYTES_PER_TOKEN), False


def _judge_data(recipe: Recipe, tokens: int, warnings: list[str]) -> None:
    if not (recipe.data_directory / MANIFEST).is_file():
        return
    from data_prep.tokens.shards import load_manifest

    there = sum(source.tokens for source in load_manifest(recipe.data_directory).train)
    if tokens > there:
        warnings.append(f"the prepared data has {short(there)} tokens: {tokens / there:.1f} epochs over it")


def _setup(recipe: Recipe, hardware: Hardware, warnings: list[str]) -> Setup:
    from pretrain.engine.deepspeed_config import cpu_computes_bf16

    train, half = recipe.train, not hardware.device.cpu or cpu_computes_bf16()
    if train.parallel.tensor > 1:
        raise ValueError("replica plan does not count with train.parallel.tensor; leave it out here")
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
    from pretrain.engine.compiling import pays_to_compile

    train = recipe.train
    if not hardware.device.cpu:
        return pays_to_compile(train, "cuda", math.inf)
    rows = embedding_rows(recipe) or _CHARACTER_ROWS
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
    """The configuration with the least predicted time of those that fit; of equals the one with the least memory."""
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


# ---------------------------------------------------------------------------------------------------------------- probe
def run_probe(recipe_file: str, overrides: list[str], rows: int) -> dict[str, Any]:
    """Measures steps in a process of its own, on one rank; see `pretrain.planning.probe`."""
    from configs.common.openmp import choose_wait_policy

    choose_wait_policy()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pretrain.planning.probe", "--recipe", recipe_file, "--rows", str(rows)]
        command += trust_options()
        done = subprocess.run([*command, "--report", str(report), *overrides], stdout=2)  # stdout is for the plan
        if done.returncode:
            raise ValueError(f"the probe ended with exit code {done.returncode}; its own message stands above")
        measured: dict[str, Any] = read_json(report)
        return measured


def _probed_plan(recipe: Recipe, arguments: Namespace, hardware: Hardware) -> dict[str, Any]:
    """The plan with what a probe measured instead of assumptions, and the probe's own figures beside predictions.

    Memory is predicted before the probe; time from the first half of its steps, for the second half.
    """
    from pretrain.engine.devices import with_peak
    from pretrain.planning.probe import WARM_UP

    rows = embedding_rows(recipe) or _CHARACTER_ROWS
    one = replace(hardware, per_node=1, nodes=1)
    alone = _setup(recipe.model_copy(update={"train": _unshared(recipe.train)}), one, [])
    batch = alone.micro_batch * min(alone.accumulation, 2)  # longer sums of gradients need no more memory
    shrink = [f"train.global_batch_size={batch}", f"train.micro_batch_size={alone.micro_batch}", "train.ranks=1"]
    measured = run_probe(arguments.recipe, [*arguments.overrides, *shrink, "train.parallel.sequence=1"], rows)
    told = {key: measured[key] for key in ("precision", "stage", "compiled")}
    setup = replace(alone, accumulation=batch // alone.micro_batch, **told)
    predicted, used = memory(recipe.model, rows, setup), measured["peak"] - measured["base"]
    explained = memory(recipe.model, rows, replace(setup, overhead=0.0, waste=0.0)).total
    libraries = memory(recipe.model, rows, replace(setup, compiled=False, waste=0.0)).parts["overhead"]
    probed: dict[str, Any] = {"compiled": setup.compiled, "precision": setup.precision}
    if setup.cpu:  # what no part explains is the allocator's, if it has a share in the peak's moment
        passing = memory(recipe.model, rows, replace(setup, overhead=0.0, waste=1.0)).total - explained
        unexplained = max(0.0, used - explained)
        probed |= {"overhead": measured["base"] + (0.0 if passing else unexplained)}
        probed |= {"waste": unexplained / passing if passing else 0.0}
    else:
        probed["overhead"] = max(0.0, used - explained)
    device = with_peak(hardware.device, measured["precision"], measured["peak_flops"])
    there, seconds = replace(one, device=device), measured["seconds"][WARM_UP:]
    half, mfu = len(seconds) // 2, _fit_mfu(recipe, rows, setup, there, median(seconds))
    fitted = replace(there, probed=_fit_mfu(recipe, rows, setup, there, median(seconds[:half])))
    plan = make_plan(recipe, replace(hardware, device=device, probed=mfu), arguments.price, probed)
    plan["probe"] = {
        "predicted_bytes": predicted.total - (libraries if setup.cpu else 0.0),
        "explained_bytes": explained,
        "measured_bytes": used,
        "predicted_step_seconds": step_time(recipe.model, rows, setup, fitted).total,
        "measured_step_seconds": median(seconds[half:]),
        "assumed_step_seconds": step_time(recipe.model, rows, setup, one).total,
        "mfu": mfu,
        "setup": asdict(setup),
        "deepspeed_state_bytes": _deepspeed_states(recipe, rows, hardware),
    }
    return plan


def _unshared(train: Train) -> Train:
    """One rank's own rows, as the probe runs them."""
    return train.model_copy(update={"parallel": train.parallel.model_copy(update={"sequence": 1})})


def _deepspeed_states(recipe: Recipe, rows: int, hardware: Hardware) -> dict[str, float]:
    from pretrain.planning.deepspeed_estimate import deepspeed_states

    counted, layer = count_parameters(recipe.model, rows).total, rows * recipe.model.hidden_size
    return {str(stage): deepspeed_states(counted, layer, stage, hardware.per_node, hardware.nodes) for stage in (2, 3)}


def _fit_mfu(recipe: Recipe, rows: int, setup: Setup, hardware: Hardware, seconds: float) -> float:
    """The MFU at which `step_time` gives `seconds`, by bisection; 1000% where even that is too slow."""
    low, high = 1e-4, 10.0
    for _ in range(60):
        middle = (low * high) ** 0.5
        longer = step_time(recipe.model, rows, setup, hardware, middle).total > seconds
        low, high = (middle, high) if longer else (low, middle)
    return low


# -------------------------------------------------------------------------------------------------------------- the do
def print_plan(arguments: Namespace) -> int:
    """Prints the plan."""
    from pretrain.engine.devices import parse_gpus, this_machine

    recipe = load(arguments.recipe, arguments.overrides)
    count, device = this_machine(recipe.train.ranks) if arguments.gpus is None else parse_gpus(arguments.gpus)
    if arguments.probe and arguments.gpus is not None:
        raise ValueError("--probe measures this machine; leave --gpus out")
    if arguments.nodes < 1:
        raise ValueError(f"--nodes {arguments.nodes}: give the number of machines, 1 or more")
    if arguments.price is not None and arguments.price < 0:
        raise ValueError(f"--price {arguments.price}: give the price of an hour of one GPU")
    hardware = Hardware(device, count, arguments.nodes)
    plan = (
        _probed_plan(recipe, arguments, hardware) if arguments.probe else make_plan(recipe, hardware, arguments.price)
    )
    if arguments.json:
        print(json.dumps(plan, indent=2))
    else:
        _print(plan, Console(width=80))
    return 0


def _print(plan: dict[str, Any], console: Console) -> None:
    counted, device, mfu = plan["parameters"], plan["device"], plan["assumed_mfu"]
    console.print(f"{plan['recipe']} on {device['ranks']} x {device['name']}, {device['nodes']} nodes")
    console.print(f"parameters       {counted['total']:,} ({counted['non_embedding']:,} without embeddings)")
    console.print(f"FLOPs per token  {plan['flops_per_token']:.3e} (6 N + attention, forward and backward)")
    console.print(f"usable memory    {size(device['usable_bytes'])} per rank")
    table = Table("ZeRO", *_HEADINGS, "total", "fits", title="memory per rank, GB", padding=(0, 0))
    for row in plan["stages"]:
        cells = [f"{row['parts'][part] / 1e9:.2f}" for part in PARTS]
        name = f"{row['stage']}{' offl.' if row['offload'] else ''}"
        table.add_row(name, *cells, f"{row['total'] / 1e9:.2f}", "yes" if row["fits"] else "no")
    console.print(table)
    for title, row in (("the recipe's own", plan["recipe_settings"]), ("the fastest", plan["fastest"])):
        _print_choice(title, row, console)
    source = "measured by the probe" if "probe" in plan else "assumed; `--probe` measures it"
    console.print(f"Time at {mfu[0]:.0%} MFU ({mfu[1]:.0%} to {mfu[2]:.0%}), {source}.")
    if "tokens" in plan:
        ratio, told = plan["tokens_per_parameter"], "the prepared data" if plan["bytes_are_measured"] else "assumed"
        console.print(f"data {short(plan['tokens'])} tokens, about {size(plan['text_bytes'])} of text")
        console.print(f"({plan['bytes_per_token']:.2f} bytes a token: {told}); {ratio:.1f} tokens per parameter")
        console.print(f"(Chinchilla: about {_CHINCHILLA})")
        console.print(f"disk {size(plan['shard_bytes'])} shards, {size(plan['checkpoint_bytes'])} checkpoints")
    if "probe" in plan:
        _print_probe(plan["probe"], console)
    console.print("assumed: memory as DeepSpeed 0.19 and autograd keep it; data sheets' peaks;")
    console.print("communication overlaps only at ZeRO-3; no waits for data or saves.")
    console.print("More: docs/planning.md")
    for warning in plan["warnings"]:
        console.print(f"warning: {warning}")


def _print_probe(probe: dict[str, Any], console: Console) -> None:
    for name, key in (("memory", "bytes"), ("step", "step_seconds")):
        predicted, measured = probe[f"predicted_{key}"], probe[f"measured_{key}"]
        written = [size(value) if key == "bytes" else f"{value:.3f} s" for value in (predicted, measured)]
        off = predicted / measured - 1
        console.print(f"probe: {name} predicted {written[0]}, measured {written[1]} ({off:+.1%})")
    for stage, count in probe["deepspeed_state_bytes"].items():
        console.print(f"DeepSpeed's estimator, model states at stage {stage}: {size(count)}")


def _print_choice(title: str, row: dict[str, Any] | None, console: Console) -> None:
    if row is None:
        console.print(f"{title}: nothing fits; more GPUs, a smaller model or shorter windows")
        return
    speed = row["tokens_per_s"]
    text = (
        f"{title}: stage {row['stage']}{' with offload' if row['offload'] else ''}, micro-batch {row['micro_batch']} x "
        f"{row['accumulation']}, checkpointing {row['checkpointing']}: {size(row['total'])}, step "
        f"{row['step_seconds']:.3f} s, {short(speed * 86400)} tokens a day"
    )
    if "seconds" in row:
        fast, slow = (_time(seconds) for seconds in row["seconds_range"])
        text += f", {_time(row['seconds'])}" + ("" if fast == slow else f" ({fast} to {slow})")
        text += "" if row["cost"] is None else f", cost {row['cost']:,.0f}"
    console.print(text)


def _time(seconds: float) -> str:
    return f"{seconds / 86400:.2f} days" if seconds >= 86400 else duration(seconds)
