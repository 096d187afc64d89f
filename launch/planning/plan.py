"""Implements `replica plan`: prints the predicted needs of a recipe; `--probe` measures a few steps first."""

from __future__ import annotations

import json
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
from configs.common.rendering import duration, short, size
from configs.safety.trust import trust_options
from configs.schema.recipe import Recipe, load
from configs.schema.train import Train
from launch.planning.show import before_preparation
from pretrain.planning.memory import PARTS, Setup, memory
from pretrain.planning.predict import CHARACTER_ROWS, make_plan, planned_setup
from pretrain.planning.step_time import Hardware, step_time
from pretrain.sizes.embedding_rows import embedding_rows
from pretrain.sizes.flops import count_parameters

_CHINCHILLA = 20  # tokens per parameter: arXiv:2203.15556
_HEADINGS = ("weights", "grads", "optim.", "activ.", "logits", "buffers", "fixed")  # of PARTS


# ---------------------------------------------------------------------------------------------------------------- probe
def run_probe(recipe_file: str, overrides: list[str], rows: int) -> dict[str, Any]:
    """Measures steps in a separate process, on one rank; see `pretrain.planning.probe`."""
    from configs.common.openmp import choose_wait_policy

    choose_wait_policy()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pretrain.planning.probe", "--recipe", recipe_file, "--rows", str(rows)]
        command += trust_options()
        done = subprocess.run([*command, "--report", str(report), *overrides], stdout=2)  # stdout is for the plan
        if done.returncode:
            raise ValueError(f"the probe ended with exit code {done.returncode}; see its own message above")
        measured: dict[str, Any] = read_json(report)
        return measured


def _probed_plan(recipe: Recipe, arguments: Namespace, hardware: Hardware) -> dict[str, Any]:
    """Plans with the measurements of a probe instead of assumptions; adds the probe's figures beside predictions.

    Memory is predicted before the probe. The time of the second half of its steps is predicted from the first half.
    """
    from pretrain.engine.devices import with_peak
    from pretrain.planning.probe import WARM_UP

    rows = embedding_rows(recipe) or CHARACTER_ROWS
    one = replace(hardware, per_node=1, nodes=1)
    alone = planned_setup(recipe.model_copy(update={"train": _unshared(recipe.train)}), one, [])
    batch = alone.micro_batch * min(alone.accumulation, 2)  # longer sums of gradients need no more memory
    shrink = [f"train.global_batch_size={batch}", f"train.micro_batch_size={alone.micro_batch}", "train.ranks=1"]
    measured = run_probe(arguments.recipe, [*arguments.overrides, *shrink, "train.parallel.sequence=1"], rows)
    decided = {key: measured[key] for key in ("precision", "stage", "compiled")}
    setup = replace(alone, accumulation=batch // alone.micro_batch, **decided)
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
    """Returns the settings for one rank alone, as the probe trains."""
    return train.model_copy(update={"parallel": train.parallel.model_copy(update={"sequence": 1})})


def _deepspeed_states(recipe: Recipe, rows: int, hardware: Hardware) -> dict[str, float]:
    from pretrain.planning.deepspeed_estimate import deepspeed_states

    counted, layer = count_parameters(recipe.model, rows).total, rows * recipe.model.hidden_size
    return {str(stage): deepspeed_states(counted, layer, stage, hardware.per_node, hardware.nodes) for stage in (2, 3)}


def _fit_mfu(recipe: Recipe, rows: int, setup: Setup, hardware: Hardware, seconds: float) -> float:
    """Finds the MFU at which `step_time` gives `seconds`, by bisection between 0.01% and 1000%."""
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

    whole = load(arguments.recipe, arguments.overrides)
    names = ["base", *whole.stage_names] if arguments.stage is None else [arguments.stage]
    if arguments.probe and arguments.stage not in (None, "base"):
        raise ValueError("--probe measures the recipe's base; leave --stage out")
    recipes = [before_preparation(whole.stage(name), whole) for name in names]
    recipe = recipes[0]
    count, device = this_machine(recipe.train.ranks) if arguments.gpus is None else parse_gpus(arguments.gpus)
    if arguments.probe and arguments.gpus is not None:
        raise ValueError("--probe measures this machine, so it cannot be combined with --gpus; leave --gpus out")
    if arguments.nodes < 1:
        raise ValueError(f"--nodes {arguments.nodes}: give the number of machines, 1 or more")
    if arguments.price is not None and arguments.price < 0:
        raise ValueError(f"--price {arguments.price}: give the price of an hour of one GPU")
    hardware = Hardware(device, count, arguments.nodes)
    plans = [make_plan(one, hardware, arguments.price) for one in recipes[1:]]
    first = (
        _probed_plan(recipe, arguments, hardware) if arguments.probe else make_plan(recipe, hardware, arguments.price)
    )
    if arguments.json:
        print(json.dumps({**first, **({"then": plans} if plans else {})}, indent=2))
        return 0
    for number, plan in enumerate([first, *plans]):
        if number:
            print()
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
    if "stage" in plan:
        _print_stage(plan["stage"], console)
    for title, row in (("the recipe's own", plan["recipe_settings"]), ("the fastest", plan["fastest"])):
        _print_choice(title, row, console)
    source = "measured by the probe" if "probe" in plan else "assumed; `--probe` measures it"
    console.print(f"Time at {mfu[0]:.0%} MFU ({mfu[1]:.0%} to {mfu[2]:.0%}), {source}.")
    _print_validation(plan["validation"], console)
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
    if plan["unit"] != "document":
        console.print(f"Time is that of full rows; a {plan['unit']} is mostly shorter.")
    console.print("More: docs/planning.md")
    for warning in plan["warnings"]:
        console.print(f"warning: {warning}")


def _print_validation(cost: dict[str, Any], console: Console) -> None:
    """Prints what measuring adds to the time of training."""

    def all_of(times: int | None, seconds: float) -> str:
        return "" if times is None else f", {_time(times * seconds)} for {times:,}"

    text = f"validation       {cost['tokens']:,} tokens"
    if cost["seconds_each"] is not None:
        text += f", about {cost['seconds_each']:.2f} s{all_of(cost['times'], cost['seconds_each'])}"
    console.print(text)
    if cost["parts"]:
        most = cost["evaluation_seconds_at_most"]
        console.print(f"evaluation       at most {most:g} s each{all_of(cost['evaluation_times'], most)}")


def _print_stage(stage: dict[str, Any], console: Console) -> None:
    """Prints what a stage needs beside the model that it trains."""
    beside = [f"{name} {size(count)}" for name, count in stage["frozen_bytes"].items()]
    beside += [f"critic {size(stage['critic_bytes'])}"] if stage["critic_bytes"] else []
    console.print(f"beside the model {', '.join(beside) or 'no other model'}, per rank")
    if not stage["rollout_rows"]:
        return
    rows, fit = stage["rollout_rows"], stage["rollout_rows_that_fit"]
    console.print(
        f"answers          {stage['answers_per_rollout']:,} a rollout, {rows} at a time on a rank: cache "
        f"{size(stage['cache_bytes'])} ({fit:,} would fit)"
    )
    console.print(
        f"drawing them     {stage['drawn_tokens_per_step']:,} tokens a step at most, "
        f"{stage['rollout_seconds_per_step']:.3f} s"
    )
    if fit < rows:
        console.print(f"warning: set objective.rollout.rows to {fit}" if fit else "warning: not one answer fits")


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
        console.print(f"{title}: nothing fits; use more GPUs, a smaller model or a shorter context")
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
