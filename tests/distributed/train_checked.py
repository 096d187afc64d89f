"""Trains several recipes one after the other as one rank, each with what lies beside it as `plant.json`.

`compiled`: what stands for torch's compiler, which would take a minute a recipe: `right` calls the model as it is,
`wrong` spoils the gradient on the rank `rank`. `compared`: false leaves the comparison of kernels out. What training
raises is written beside the recipe.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from configs.schema.recipe import load
from pretrain.engine import compiling
from pretrain.numerics import record
from pretrain.numerics.kernel_check import Check, check_kernels
from pretrain.parallel.ranks import Ranks
from pretrain.session import run


def compiler(wrong: bool) -> Any:
    def compile_(call: Any, *_: Any, **__: Any) -> Any:
        def compiled(*inputs: Any) -> Any:
            loss = call(*inputs)
            if wrong and loss.requires_grad:
                loss.register_hook(lambda gradient: gradient * 1.5)
            return loss

        return compiled

    return compile_


def main(ranks: Ranks, files: list[Path]) -> None:
    real, pays_from = torch.compile, compiling.PAYS_FROM_FLOPS
    compiling.PAYS_FROM_FLOPS = {"cpu": 0.0}
    for file in files:
        plant = json.loads((file.parent / "plant.json").read_text())
        torch.compile = compiler(plant["compiled"] == "wrong" and plant["rank"] == ranks.rank)
        record.check_kernels = check_kernels if plant["compared"] else _trusting  # type: ignore[attr-defined]
        said = ""
        try:
            run(load(file))
        except ValueError as error:
            said = f"{type(error).__name__}: {error}"
        finally:
            torch.compile, record.check_kernels = real, check_kernels  # type: ignore[attr-defined]
        (file.parent / f"said_{ranks.rank}.json").write_text(json.dumps(said))
    compiling.PAYS_FROM_FLOPS = pays_from


def _trusting(engine: Any, *_: Any) -> Check:
    return Check(engine.compiled, "not compared", True)
