"""What the engine (DeepSpeed, one rank) adds to a step, beside a plain torch loop of the same model and optimizer.

    python benchmarks/overhead.py [--recipe benchmarks/train-10m.yaml] [--rounds 5] [a.b=value …]

Both are in one process and take turns of some steps. The plain loop is what one would write by hand: compiled where the
recipe compiles, autocast to bf16 over fp32 weights, clipping, the recipe's optimizer. `train.precision=fp32
train.zero.stage=0` compares the same arithmetic on both sides.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from configs.common.openmp import choose_wait_policy  # noqa: E402
from configs.schema.recipe import Recipe, load  # noqa: E402

_VOCABULARY = 2048
_SETTLE = 3  # steps before anything is timed: compilation


def engine_step(recipe: Recipe) -> Callable[[], None]:
    """One step of our engine on random tokens."""
    import torch

    from pretrain.batches.source import Batch
    from pretrain.engine.engine import Engine
    from pretrain.objectives.language_modelling import LanguageModelling
    from pretrain.parallel.ranks import Ranks
    from pretrain.session import build_model, initial_weights

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(recipe, _VOCABULARY, device)
    engine = Engine(recipe, LanguageModelling(model), Ranks(0, 1, 0, 1), device, bool(recipe.train.compile))
    engine.state.set_weights(initial_weights(model, engine.state.shapes(), recipe.seed))
    rows = torch.randint(_VOCABULARY, (recipe.train.global_batch_size, recipe.model.context_length + 1))
    batch = Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), torch.ones(rows[:, 1:].shape), 1, fresh=True)
    count = iter(range(10**9))
    return lambda: engine.step(batch, next(count), 1e-4) and None


def plain_step(recipe: Recipe) -> Callable[[], None]:
    """The same step by hand."""
    import torch

    from pretrain.engine.deepspeed_config import resolve_precision
    from pretrain.objectives.language_modelling import LanguageModelling
    from pretrain.optimizer.groups import build_optimizer
    from pretrain.session import build_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(recipe, _VOCABULARY, device)
    model.init_weights()
    module = LanguageModelling(model)
    optimizer = build_optimizer(module.model, recipe.train.optimizer)
    rows = torch.randint(_VOCABULARY, (recipe.train.global_batch_size, recipe.model.context_length + 1)).to(device)
    tokens, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
    weights = torch.ones(targets.shape, device=device)
    call = torch.compile(module) if recipe.train.compile else module
    half = resolve_precision(recipe.train.precision, device) == "bf16"
    micro = recipe.train.micro_batch_size or len(tokens)

    def step() -> None:
        for part in range(0, len(tokens), micro):
            piece = slice(part, part + micro)
            with torch.autocast(device.type, torch.bfloat16) if half else nullcontext():
                loss = call(tokens[piece], targets[piece], weights[piece])
            (loss / targets.numel()).backward()
            loss.item()
        torch.nn.utils.clip_grad_norm_(module.parameters(), recipe.train.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def timed(step: Callable[[], None], steps: int) -> float:
    """Seconds of one step, the median of `steps`."""
    import torch

    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    """Prints the seconds of both and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=str(ROOT / "benchmarks" / "train-10m.yaml"))
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    parser.add_argument("--steps", type=int, default=6, help="steps of a turn")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value")
    arguments = parser.parse_intermixed_args()
    choose_wait_policy()
    recipe = load(arguments.recipe, arguments.overrides)
    from pretrain.engine.connection import connected
    from pretrain.parallel.ranks import placed_ranks

    with placed_ranks() as ranks, connected(ranks):
        steps = {"engine": engine_step(recipe), "plain torch": plain_step(recipe)}
        for step in steps.values():
            timed(step, _SETTLE)
        rounds: list[dict[str, float]] = []
        for _ in range(arguments.rounds):
            rounds.append({name: timed(step, arguments.steps) for name, step in steps.items()})
            print(", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in rounds[-1].items()), flush=True)
    ratio = statistics.median(entry["engine"] / entry["plain torch"] for entry in rounds)
    print(f"engine / plain torch: {ratio:.3f} (median of {len(rounds)} rounds)")


if __name__ == "__main__":
    main()
