"""Measures memory and time of a few real steps: `python -m pretrain.planning.probe --recipe R …`.

The recipe's own model, engine, optimizer and checkpoint copy, as training has them; nothing is written but the report.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from configs.common.exit_codes import run_command
from configs.common.files import write_json
from configs.common.progress import progress_bar
from configs.safety.trust import add_trust, trusting
from configs.schema.batch_plan import total_steps
from configs.schema.recipe import Recipe, load
from pretrain.batches.source import drawn_batch
from pretrain.checkpoint.fragment_files import HostCopy
from pretrain.engine.compiling import keep_compiled, should_compile
from pretrain.engine.connection import connected
from pretrain.engine.devices import peak_flops
from pretrain.engine.engine import Engine
from pretrain.numerics.repeatable import deterministic_algorithms, is_deterministic
from pretrain.objectives.chosen import make_objective
from pretrain.objectives.language_modelling import LanguageModelling
from pretrain.parallel.ranks import Ranks, limit_threads, placed_ranks
from pretrain.session import build_model, initial_weights

WARM_UP = 2  # steps that also allocate or compile
LEAST_STEPS = WARM_UP + 4
_ENOUGH_SECONDS = 60.0


def probe(recipe: Recipe, rows: int, steps: int) -> dict[str, Any]:
    """Makes `steps` steps, or fewer long ones, with an embedding of `rows` rows; returns this rank's measurements.

    `base`, `ready` and `peak` in bytes: the process before the model is made but with all libraries in use, the most
    until the first step, and the most of all. On a GPU they count what torch allocated there; on a CPU the resident
    memory of the process.
    `seconds`: of each step. `peak_flops`: what matrix products reach here.
    """
    with placed_ranks() as ranks:
        limit_threads(ranks)
        with connected(ranks) as device, deterministic_algorithms(is_deterministic(recipe.train, device)):
            _warm_up(recipe, ranks, device)
            memory = _Memory(device)
            base = memory.now()
            model = build_model(recipe, rows, device)
            operations = planned_tokens(recipe) * model.flops_per_token() / ranks.count
            if compiled := should_compile(recipe.train, device, operations):
                keep_compiled()
            objective = make_objective(recipe)
            module = objective.module(model)
            engine = Engine(recipe, module, ranks, device, compiled)
            engine.state.set_weights(initial_weights(module, engine.state.shapes(), recipe.seed))
            copy = HostCopy()
            if recipe.train.checkpoint.asynchronous:
                copy.take(engine.state.own_fragments())
            ready = memory.peak()
            seconds = []
            with progress_bar("probe", steps, enabled=engine.is_main) as bar:
                for step in range(steps):
                    share = engine.plan.micro_batch * engine.plan.accumulation
                    batch = objective.made_up(drawn_batch(share, recipe.model.context_length, rows, step))
                    began = time.perf_counter()
                    result = engine.step(batch, step, recipe.train.optimizer.lr / steps)
                    seconds.append(time.perf_counter() - began)
                    bar.update(step + 1, f"loss {result.loss:.3f}")
                    if step + 1 >= LEAST_STEPS and sum(seconds[1:]) > _ENOUGH_SECONDS:
                        break
            peak = memory.peak()
            report = {
                "base": base,
                "ready": ready,
                "peak": peak,
                "seconds": seconds,
                "peak_flops": peak_flops(device, engine.precision),
                "precision": engine.precision,
                "stage": engine.stage,
                "compiled": compiled,
            }
            engine.close()
            return report


def planned_tokens(recipe: Recipe) -> float:
    """Target tokens of the whole run; of one step where only the prepared data can say."""
    step = recipe.train.global_batch_size * recipe.model.context_length
    return float(step * (1 if recipe.train.epochs is not None else total_steps(recipe, 0)))


def _warm_up(recipe: Recipe, ranks: Ranks, device: torch.device) -> None:
    """Makes a step of a very small model.

    Libraries, threads and kernels that come with the first step are no memory of the recipe's.
    """
    model = recipe.model.model_copy(
        update={"num_layers": 1, "hidden_size": 16, "num_heads": 1, "num_kv_heads": 1, "head_dim": 16}
        | {"intermediate_size": 32, "context_length": 16, "rope_scaling": None, "value_residual": False}
    )
    small = {
        "global_batch_size": ranks.count,
        "micro_batch_size": 1,
        "objective": None,
        "parallel": recipe.train.parallel.model_copy(),
    }
    tiny = recipe.model_copy(update={"model": model, "train": recipe.train.model_copy(update=small)})
    module = LanguageModelling(build_model(tiny, 64, device))
    engine = Engine(tiny, module, ranks, device)
    engine.state.set_weights(initial_weights(module, engine.state.shapes(), 0))
    share = engine.plan.micro_batch * engine.plan.accumulation
    engine.step(drawn_batch(share, model.context_length, 64, 0), 0, 1e-3)
    engine.close()
    del engine, module
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc: what is free goes back to the system
    if trim is not None:
        trim(0)


class _Memory:
    """Memory in use since it was made."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            return
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak: proc(5)

    def now(self) -> int:
        """Bytes."""
        return torch.cuda.memory_allocated() if self._cuda else _status("VmRSS")

    def peak(self) -> int:
        """The most so far, bytes."""
        return torch.cuda.max_memory_allocated() if self._cuda else _status("VmHWM")


def _status(key: str) -> int:
    """Bytes, from Linux's account of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (kilobytes,) = (line.split()[1] for line in status.splitlines() if line.startswith(key + ":"))
    return int(kilobytes) * 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; rank 0 writes the report."""
    parser = argparse.ArgumentParser(description="Measure a few training steps on made-up tokens.")
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--rows", type=int, required=True, help="rows of the embedding")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--report", type=Path, required=True, help="JSON file to write")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value")
    add_trust(parser)
    options = parser.parse_intermixed_args(arguments)

    def command() -> int:
        recipe = load(options.recipe, options.overrides)
        with placed_ranks() as ranks:
            main_rank = ranks.rank == 0
        with trusting(options.trust):
            report = probe(recipe, options.rows, options.steps)
        if main_rank:
            write_json(options.report, report)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
