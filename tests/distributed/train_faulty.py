"""Trains several recipes one after the other, each with the fault that lies beside it as `fault.json`, on one rank.

Kinds: `loss` and `gradient` become NaN, `spike` multiplies the loss by 1,000, `flip` flips the lowest bit of one
weight. What training raises is written beside the recipe, with whether the weights were then those before the step.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.schema.recipe import load
from pretrain import loop
from pretrain.batches.source import Batch
from pretrain.engine.engine import Engine
from pretrain.objectives.language_modelling import LanguageModelling
from pretrain.parallel.ranks import Ranks
from pretrain.reliability.silent_corruption import digests
from pretrain.session import run


class Injected:
    """The fault of one run, between the loop and the real engine and objective."""

    def __init__(self, fault: dict[str, Any], rank: int) -> None:
        self.fault, self.mine = fault, rank == fault.get("rank")
        self.step, self.unchanged = -1, False

    def install(self) -> None:
        step, forward, check = Engine.step, LanguageModelling.forward, loop.compare_replicas

        def counted_step(engine: Engine, batch: Batch, number: int, *arguments: Any) -> Any:
            self.step, before = number, weights(engine)
            try:
                return step(engine, batch, number, *arguments)
            except ValueError:
                self.unchanged = bool((weights(engine) == before).all())
                raise

        def faulty_forward(module: LanguageModelling, *batch: Tensor) -> Tensor:
            loss = forward(module, *batch)
            if not (self.mine and module.training and self.step + 1 == self.fault["step"]):
                return loss
            if self.fault["kind"] == "gradient":
                loss.register_hook(lambda gradient: gradient * math.nan)
            return loss * {"loss": math.nan, "spike": 1000.0}.get(self.fault["kind"], 1.0)

        def flipped(engine: Engine, done: int) -> None:
            if self.mine and self.fault["kind"] == "flip" and done == self.fault["step"]:
                parameter = list(engine.state.parameters())[2][1]
                parameter.data.view(-1).view(torch.int32)[5] ^= 1
            check(engine, done)

        Engine.step, LanguageModelling.forward = counted_step, faulty_forward  # type: ignore[method-assign]
        loop.compare_replicas = flipped
        self.restore = lambda: (
            setattr(Engine, "step", step),
            setattr(LanguageModelling, "forward", forward),
            setattr(loop, "compare_replicas", check),
        )


def weights(engine: Engine) -> Tensor:
    """Digests of all numbers that this rank trains."""
    return digests([value for piece in engine.state.fragments() for value in (piece.weight, *piece.moments.values())])


def main(ranks: Ranks, files: list[Path]) -> None:
    for file in files:
        injected = Injected(json.loads((file.parent / "fault.json").read_text()), ranks.rank)
        injected.install()
        said = ""
        try:
            run(load(file))
        except ValueError as error:
            said = f"{type(error).__name__}: {error}"
        finally:
            injected.restore()
        outcome = {"said": said, "unchanged": injected.unchanged}
        (file.parent / f"said_{ranks.rank}.json").write_text(json.dumps(outcome))
