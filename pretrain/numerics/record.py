"""Records how a run was checked: fast code against plain code, and whether its values repeat bit for bit.

Compared before the first step, and again after a resume on other hardware, software or settings
(`pretrain.numerics.circumstances`); otherwise a checkpoint's word counts, so that a resumed run goes on as the first
one did, compiled or not. What is said stands in `RUN/numerics.json` for the report.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from configs.common.files import write_json
from configs.common.notices import say
from configs.common.numerics_record import NUMERICS
from configs.schema.recipe import Recipe
from pretrain.batches.source import Batch
from pretrain.engine.engine import Engine
from pretrain.numerics.circumstances import all_circumstances
from pretrain.numerics.kernel_check import Check, check_kernels
from pretrain.numerics.repeatable import is_deterministic, promise
from pretrain.phases import Phase


class Numerics:
    """Checks and records the numerics of one training session; every rank has one."""

    def __init__(self, recipe: Recipe, engine: Engine) -> None:
        self._recipe, self._engine = recipe, engine
        self.state: dict[str, Any] = {}  # for checkpoints

    def settle(self, sample: Callable[[], Batch], step: int, state: dict[str, Any], last: int) -> dict[str, float]:
        """Compares where it must, before `step` (from 0) is made; returns values for metrics.jsonl.

        Args:
            sample: gives a batch of this rank as `step` may have one, of which the first micro-batch is taken.
            state: of the checkpoint that training goes on from.
            last: the steps of the whole run; after the last one there is nothing to compare.

        Raises:
            WrongKernels: see `check_kernels`.
        """
        engine, train = self._engine, self._recipe.train
        if self.state or step >= last:  # after a rewind
            self.state = self.state or state
            return {}
        found = all_circumstances(self._recipe, engine)
        if state.get("fingerprint") == found and state["decided"]:
            self.state = state
            if engine.compiled and not state["compiled"]:
                engine.uncompile()
            self._say(f"not compared again ({found[:12]}, as at step {state['step']:,}): {state['text']}")
            return {}
        engine.report_phase(Phase.COMPARING_KERNELS, step + 1)
        micro = next(engine.micro_batches(sample())).to(engine.device)
        if engine.is_main and engine.compiled:  # else nothing is heard for a minute
            say("compiling the model: seconds to minutes before the first step …")
        check = check_kernels(engine, micro, train.compile, train.loss_chunk)
        self._keep(check, found, step)
        return check.values

    def _keep(self, check: Check, found: str, step: int) -> None:
        self.state = {"fingerprint": found, "compiled": check.compiled, "decided": check.decided, "step": step}
        self.state["text"] = check.text
        self._say(check.text)

    def _say(self, text: str) -> None:
        engine = self._engine
        if not engine.is_main:
            return
        deterministic = is_deterministic(self._recipe.train, engine.device)
        repeats = promise(deterministic, engine.device, torch.get_num_threads(), engine.ranks.count)
        say(f"numerics: {text}; {repeats}")
        write_json(self._recipe.run_directory / NUMERICS, {**self.state, "repeats": repeats})
