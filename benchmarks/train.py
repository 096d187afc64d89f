"""Our training beside its peers: tokens/s, share of the hardware's peak, memory, loss at equal tokens and equal time.

The same shape (6 layers of width 384, context 256), the same tokens (novels, a byte-level BPE of 2,048), the same
sequences per step, one machine, runs in turn, medians over rounds. Every trainer runs its own code through a small
runner in `benchmarks/peers`; a clock hears of every optimizer step, stops while a model is scored, and leaves out
start-up and compilation. All are scored by one scorer, through their own forward, on the same held-out windows.

    git clone https://github.com/karpathy/nanoGPT
    python -m venv litgpt && litgpt/bin/pip install litgpt
    python benchmarks/train.py --nanogpt nanoGPT --litgpt litgpt/bin/python --rounds 3

Each finished run is a line of DIR/results.jsonl; `--resume` makes those that are missing. `--settings` measures every
trainer with and without compilation, in bf16 and fp32, `--rates` at several learning rates: `BEST` is what came out.
Ours takes its learning rate from the recipe.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks" / "peers")]

from job import Job  # noqa: E402
from training_table import OURS, summarise, table  # noqa: E402

from configs.common.openmp import choose_wait_policy  # noqa: E402
from configs.schema.recipe import Recipe, load  # noqa: E402

RECIPE = ROOT / "benchmarks" / "train-10m.yaml"
PEERS = ROOT / "benchmarks" / "peers"


class Setting(NamedTuple):
    """How a trainer does best: what `--settings` found on two cores with AVX512-BF16, and a search for the rate."""

    compile: bool
    precision: str
    lr: float


BEST = {
    "nanoGPT": Setting(True, "bf16", 1e-3),
    "litgpt": Setting(True, "bf16", 1e-3),
    "Trainer": Setting(True, "bf16", 1e-3),
    OURS: Setting(True, "bf16", 4e-3),  # the rate that the recipe has
}


class Contestant(NamedTuple):
    """A trainer, and how its runner is started (before the job's file)."""

    name: str
    command: list[str]
    extra: list[str]  # arguments after the job's file


def contestants(arguments: argparse.Namespace) -> list[Contestant]:
    """Ours, and every peer that is here; says which are not."""
    found = [Contestant(OURS, [sys.executable, str(PEERS / "run_replica.py")], [])]
    if arguments.nanogpt:
        command = [sys.executable, str(PEERS / "run_nanogpt.py")]
        found.append(Contestant("nanoGPT", command, [str(arguments.nanogpt.resolve())]))
    if arguments.litgpt:
        found.append(Contestant("litgpt", [arguments.litgpt, str(PEERS / "run_litgpt.py")], []))
    if find_spec("transformers") and find_spec("accelerate"):
        found.append(Contestant("Trainer", [sys.executable, str(PEERS / "run_trainer.py")], []))
    if arguments.only:
        found = [contestant for contestant in found if contestant.name in arguments.only]
    for name in BEST.keys() - {contestant.name for contestant in found}:
        print(f"left out: {name}", flush=True)
    return found


# ---------------------------------------------------------------------------------------------------------------- data
def prepare(directory: Path, overrides: list[str]) -> Recipe:
    """Shards by our own data stage, once, and the same token stream as nanoGPT's train.bin, val.bin and meta.pkl."""
    recipe = load(str(RECIPE), [f"out={directory / 'data'}", *overrides])
    if not (directory / "val.bin").is_file():
        command = [sys.executable, "-m", "launch.cli", "data", str(RECIPE), "--out", str(directory / "data")]
        subprocess.run(command, cwd=ROOT, check=True)
        export(recipe, directory)
    return recipe


def export(recipe: Recipe, directory: Path) -> None:
    """Writes the shards of `recipe` as uint16 streams."""
    from data_prep.tokens.shards import TokenStream, load_manifest

    data = load_manifest(recipe.data_directory)
    (directory / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": recipe.model.padded_vocab(data.vocab_size)}))
    for name, sources in (("train", data.train), ("val", data.validation)):
        streams = [TokenStream(source.prefixes, source.name) for source in sources]
        tokens = np.concatenate([stream.read(0, stream.length) for stream in streams]).astype(np.uint16)
        partial = directory / f"{name}.partial"
        tokens.tofile(partial)
        partial.rename(directory / f"{name}.bin")


def job_for(recipe: Recipe, name: str, directory: Path, steps: int, marks: int, seed: int) -> Job:
    """The run of one contestant in its best setting."""
    model, train, best = recipe.model, recipe.train, BEST[name]
    job = Job(
        out=str(directory / f"{name}-{steps}-{seed}.json"), data=str(directory), vocab=2048, layers=model.num_layers,
        heads=model.num_heads, width=model.hidden_size, context=model.context_length, batch=train.global_batch_size,
        micro=train.micro_batch_size or train.global_batch_size, steps=steps, spawned=0.0, precision=best.precision,
        compile=best.compile, lr=best.lr, warmup=min(50, steps // 10), seed=seed,
        marks=sorted({round(steps * part / marks) for part in range(1, marks + 1)} - {0}) if marks else [],
    )  # fmt: skip
    job.settle = min(job.settle, steps - 1)
    return job


def our_overrides(job: Job, given: list[str], directory: Path) -> list[str]:
    """The job as settings of our recipe; what the user gave comes last."""
    return [
        f"out={job.out}.dir", f"data.directory={directory / 'data' / 'data'}", f"seed={job.seed}",
        f"train.tokens={job.steps * job.batch * job.context}", f"train.compile={str(job.compile).lower()}",
        f"train.precision={job.precision}", *given,
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- runs
def run(contestant: Contestant, job: Job, limit: float) -> dict[str, Any] | None:
    """Starts a runner and returns its result; None, and the end of its output, when it failed or took too long."""
    job.spawned = time.time()
    file = Path(job.out).with_suffix(".job")
    file.write_text(json.dumps(asdict(job)), encoding="utf-8")
    Path(job.out).unlink(missing_ok=True)
    shutil.rmtree(job.out + ".dir", ignore_errors=True)  # of a call that was killed: ours would go on from it
    log = Path(job.out).with_suffix(".log")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [*contestant.command, str(file), *contestant.extra]
    try:
        with log.open("w") as stream:
            subprocess.run(command, env=environment, stdout=stream, stderr=stream, timeout=limit, check=True)
        result: dict[str, Any] = json.loads(Path(job.out).read_text(encoding="utf-8"))
    except (subprocess.SubprocessError, OSError) as error:
        text = log.read_text(errors="replace") if log.is_file() else ""
        print(f"{contestant.name}: {error}\n{text[-1500:]}", flush=True)
        return None
    finally:
        shutil.rmtree(job.out + ".dir", ignore_errors=True)
    return {"name": contestant.name, **result}


def planned(found: list[Contestant], rounds: int, shares: list[float]) -> Iterator[tuple[int, Contestant, float]]:
    """Round, contestant, share of the tokens. Who begins changes from round to round; ours also has shorter budgets."""
    entries = [(c, 1.0) for c in found] + [(c, s) for c in found if c.name == OURS for s in shares]
    for number in range(rounds):
        turn = number % len(entries)
        yield from ((number, contestant, share) for contestant, share in entries[turn:] + entries[:turn])


def race(arguments: argparse.Namespace, recipe: Recipe, directory: Path) -> list[dict[str, Any]]:
    """All runs; those that stand in results.jsonl are not repeated with --resume."""
    file = directory / "results.jsonl"
    if not arguments.resume:
        file.unlink(missing_ok=True)
    results = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    full = steps_of(arguments, recipe)
    plan = list(planned(contestants(arguments), arguments.rounds, arguments.shares))
    for place, (number, contestant, share) in enumerate(plan):
        steps, name = round(full * share), contestant.name if share == 1 else f"{contestant.name}, {share:g} of tokens"
        key = [number, name, steps, arguments.overrides if contestant.name == OURS else []]
        if any(result["key"] == key for result in results):
            continue
        job = job_for(recipe, contestant.name, directory, steps, arguments.marks, 1337 + number)
        if contestant.name == OURS:
            given = arguments.overrides
            job.recipe, job.overrides = str(RECIPE), our_overrides(job, given, directory)
        result = run(contestant, job, arguments.limit)
        if result is None:
            continue
        result = {**result, "name": name, "key": key}
        results.append(result)
        with file.open("a") as stream:
            stream.write(json.dumps(result) + "\n")
        loss = f", loss {result['marks'][-1][2]:.3f}" if result["marks"] else ""
        print(f"[{place + 1}/{len(plan)}] round {number + 1} {name}: {result['tokens_per_s']:,.0f} tok/s, "
              f"{result['seconds']:.0f} s ({result['startup_seconds']:.0f} s start-up){loss}", flush=True)  # fmt: skip
    return results


def attempt(
    arguments: argparse.Namespace, recipe: Recipe, contestant: Contestant, job: Job, given: list[str]
) -> dict[str, Any]:
    """One run outside of the race; an empty dictionary when it failed."""
    if contestant.name == OURS:
        job.recipe = str(RECIPE)
        job.overrides = our_overrides(job, [*arguments.overrides, *given], Path(job.data))
    return run(contestant, job, arguments.limit) or {}


def settings(arguments: argparse.Namespace, recipe: Recipe, directory: Path) -> None:
    """Tokens/s of every contestant with and without compilation, in bf16 and fp32."""
    for contestant in contestants(arguments):
        for precision, compiled in [("bf16", True), ("bf16", False), ("fp32", True), ("fp32", False)]:
            job = job_for(recipe, contestant.name, directory, 30, 0, 1)
            job.precision, job.compile, job.seconds = precision, compiled, 20.0
            result = attempt(arguments, recipe, contestant, job, [])
            speed, startup = result.get("tokens_per_s", math.nan), result.get("startup_seconds", math.nan)
            print(f"{contestant.name}, {precision}, {'compiled' if compiled else 'eager'}: {speed:,.0f} tok/s, "
                  f"start-up {startup:.0f} s", flush=True)  # fmt: skip


def rates(arguments: argparse.Namespace, recipe: Recipe, directory: Path) -> None:
    """Last loss of every contestant at each learning rate."""
    for contestant in contestants(arguments):
        for rate in arguments.rates:
            job = job_for(recipe, contestant.name, directory, steps_of(arguments, recipe), 1, 1)
            job.lr = rate
            result = attempt(arguments, recipe, contestant, job, [f"train.optimizer.lr={rate}"])
            loss = result["marks"][-1][2] if result else math.nan
            print(f"{contestant.name}, learning rate {rate:g}: loss {loss:.4f}", flush=True)


def steps_of(arguments: argparse.Namespace, recipe: Recipe) -> int:
    """Optimizer steps of a whole run."""
    return max(10, int(arguments.tokens) // (recipe.train.global_batch_size * recipe.model.context_length))


# -------------------------------------------------------------------------------------------------------------- report
def peak_flops(seconds: float = 1.5) -> float:
    """FLOP/s of bf16 matrix products on all cores: the best product of several sizes and layouts, many times each."""
    import torch

    best = 0.0
    for size in (512, 1024, 2048):
        left, right = (torch.randn(size, size).bfloat16() for _ in range(2))
        for other in (right, right.t()):
            end = time.perf_counter() + seconds
            while (start := time.perf_counter()) < end:
                torch.mm(left, other)
                best = max(best, 2.0 * size**3 / (time.perf_counter() - start))
    return best


def report(results: list[dict[str, Any]], recipe: Recipe) -> str:
    """The Markdown of all results."""
    import torch

    from pretrain.session import build_model

    model = build_model(recipe, 2048, torch.device("cpu"))
    tokens_per_step = recipe.train.global_batch_size * recipe.model.context_length
    peak = peak_flops()
    names = list(dict.fromkeys(result["name"] for result in results))
    make = partial(summarise, tokens_per_step=tokens_per_step, flops_per_s=model.flops_per_token(), peak=peak)
    summaries = [make([result for result in results if result["name"] == name]) for name in names]
    head = (
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, bf16 product {peak / 1e9:.0f} GFLOP/s, "
        f"{model.flops_per_token() / 1e6:.1f} MFLOP a token of ours, torch {torch.__version__}; medians of (rounds)"
    )
    best = "; ".join(
        f"{name}: {'compiled' if setting.compile else 'eager'}, {setting.precision}"
        + (f", learning rate {setting.lr:g}" if name != OURS else "")
        for name, setting in BEST.items()
    )
    return f"{head}. {best} and the recipe's optimizer\n\n{table(summaries)}"


def main() -> None:
    """Prepares the data, runs all in turn, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, metavar="DIR", help="a clone of karpathy/nanoGPT")
    parser.add_argument("--litgpt", metavar="PYTHON", help="the Python of an environment with litgpt")
    parser.add_argument("--only", nargs="*", help=f"of {', '.join(BEST)}")
    parser.add_argument("--rounds", type=int, default=3, help="how often each trains")
    parser.add_argument("--tokens", type=int, default=262_144, help="target tokens of a run")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.5, 0.35], help="also ours at these parts of them")
    parser.add_argument("--marks", type=int, default=6, help="how often a run is scored; 0: never")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds after which a run is given up")
    parser.add_argument("--directory", type=Path, default=ROOT / "runs" / "benchmark-train", help="data and results")
    parser.add_argument("--markdown", type=Path, help="write the tables there, too")
    parser.add_argument("--resume", action="store_true", help="keep the runs that are in results.jsonl")
    parser.add_argument("--settings", action="store_true", help="compare compilation and precision instead")
    parser.add_argument("--rates", type=float, nargs="*", help="compare the losses at these learning rates instead")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="for our recipe")
    arguments = parser.parse_intermixed_args()
    directory = arguments.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    choose_wait_policy()  # as `replica` does; all runners inherit it
    recipe = prepare(directory, arguments.overrides)
    if arguments.settings or arguments.rates:
        (settings if arguments.settings else rates)(arguments, recipe, directory)
        return
    text = report(race(arguments, recipe, directory), recipe)
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
