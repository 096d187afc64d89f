"""How long training is blocked by a checkpoint, written before it goes on and beside it, and what loading costs.

    python benchmarks/checkpoint.py --layers 8 --width 768 --rounds 3

One process, AdamW in fp32, steps of a real model in between. Exits 1 when an asynchronous save blocks a step for 5% or
more of the time that a synchronous one takes (medians), or the two write other files.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from configs.schema.data import Data, Tokenizer
from configs.schema.model import Model
from configs.schema.recipe import Recipe
from configs.schema.sources import Source
from configs.schema.train import CheckpointPolicy, Train
from data_prep.tokens.shards import DataManifest
from data_prep.tokens.vocab_training import train_vocab
from pretrain.batches.source import Batch
from pretrain.checkpoint.manifest import find_damage, read_info, step_directories
from pretrain.checkpoint.resume import load_checkpoint
from pretrain.checkpoint.saver import Saver
from pretrain.engine.connection import connected
from pretrain.engine.engine import Engine
from pretrain.objectives.language_modelling import LanguageModelling
from pretrain.parallel.ranks import placed_ranks
from pretrain.session import build_model, initial_weights

LIMIT = 0.05
BATCH, CONTEXT = 4, 128


def recipe_for(directory: Path, layers: int, width: int, asynchronous: bool) -> Recipe:
    """A Llama of that size; its data is never read."""
    return Recipe(
        name="checkpoint",
        out=str(directory / ("beside" if asynchronous else "before")),
        data=Data(sources=[Source(name="none", path="none.txt")], tokenizer=Tokenizer(kind="byte")),
        model=Model(num_layers=layers, hidden_size=width, num_heads=width // 64, context_length=CONTEXT),
        train=Train(
            steps=1,
            global_batch_size=BATCH,
            precision="fp32",
            checkpoint=CheckpointPolicy(asynchronous=asynchronous, keep=1),
        ),
    )


class Bench:
    """One engine, and the means to step, save and load it."""

    def __init__(self, engine: Engine, data: DataManifest) -> None:
        self.engine, self.data, self._done = engine, data, 0
        tokens = torch.randint(0, data.vocab_size, (BATCH, CONTEXT + 1), generator=torch.Generator().manual_seed(1))
        weights = torch.ones(BATCH, CONTEXT)
        self._batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), weights, BATCH * CONTEXT, True)

    def step(self) -> float:
        start = time.perf_counter()
        self.engine.step(self._batch, self._done, 1e-4)
        self._done += 1
        return time.perf_counter() - start

    def saves(self, recipe: Recipe, rounds: int) -> tuple[list[float], list[float], list[float]]:
        """Seconds that `save` blocked, from there to the commit, and of the steps in between."""
        state = {"meter": {}, "updates": self.engine.state.updates(), "loss_scale": {}}
        saver = Saver(self.engine, recipe, self.data, 1, None)
        blocked, committed, steps = [], [], []
        for number in range(1, rounds + 1):
            os.sync()
            start = time.perf_counter()
            saver.save(number, state, last=False)
            blocked.append(time.perf_counter() - start)
            target = Path(recipe.out) / "checkpoints" / f"step_{number:08d}"
            while not target.is_dir():
                steps.append(self.step())
            committed.append(time.perf_counter() - start)
            saver.wait()
        saver.close()
        return blocked, committed, steps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as scratch, placed_ranks() as ranks, connected(ranks) as device:
        directory = Path(scratch).resolve()
        vocab = train_vocab(Tokenizer(kind="byte"), [])
        vocab.save(directory / "tokenizer")
        data = DataManifest(
            directory, "none", directory / "tokenizer", vocab.fingerprint, vocab.size, vocab.eod_id, [], [], []
        )
        recipes = {kind: recipe_for(directory, options.layers, options.width, kind == "beside") for kind in KINDS}
        model = build_model(recipes["before"], vocab.size, device)
        engine = Engine(recipes["before"], LanguageModelling(model), ranks, device)
        engine.state.set_weights(initial_weights(model, engine.state.shapes(), seed=1))
        count = sum(p.numel() for p in model.parameters())
        bench = Bench(engine, data)
        alone = statistics.median([bench.step() for _ in range(5)])
        results = {kind: bench.saves(recipes[kind], options.rounds) for kind in KINDS}
        info = read_info(step_directories(Path(recipes["beside"].out))[0])
        size = sum(file["bytes"] for file in info.files.values())
        start = time.perf_counter()
        assert find_damage(info, hashes=True) is None
        checked = time.perf_counter()
        load_checkpoint(engine, info)
        loaded = time.perf_counter()
        same = _same_files(engine, data, recipes)
        engine.close()
    print(f"{count / 1e6:.0f} M parameters, checkpoint {size / 1e9:.2f} GB, step alone {alone:.2f} s")
    for kind, (blocked, committed, steps) in results.items():
        during = f", steps meanwhile {statistics.median(steps):.2f} s" if steps else ""
        print(f"{kind}: blocked {_list(blocked)}, committed after {_list(committed)}{during}")
    share = statistics.median(results["beside"][0]) / statistics.median(results["before"][0])
    print(f"blocked: {share:.1%} of a synchronous save")
    print(f"checking {checked - start:.2f} s, loading {loaded - checked:.2f} s")
    print("the same files" if same else "OTHER FILES")
    return 0 if share < LIMIT and same else 1


KINDS = ("before", "beside")


def _same_files(engine: Engine, data: DataManifest, recipes: dict[str, Recipe]) -> bool:
    """Whether both ways write the state of now to the same bytes."""
    found = []
    for kind in KINDS:
        saver = Saver(engine, recipes[kind], data, 1, None)
        saver.save(1000, {}, last=False)
        saver.close()
        files = read_info(step_directories(Path(recipes[kind].out))[0]).files
        found.append({name: files[name] for name in files if name.endswith(".safetensors")})
    return found[0] == found[1]


def _list(seconds: list[float]) -> str:
    return " ".join(f"{value:.3f}" for value in seconds) + " s"


if __name__ == "__main__":
    sys.exit(main())
