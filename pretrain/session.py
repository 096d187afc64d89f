"""One process's part of a training run: puts recipe, data, model, engine and loop together."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from configs.common.locks import held_for_training
from configs.schema.recipe import Recipe, save, total_steps
from data_prep.tokens.shards import DataManifest, load_manifest
from data_prep.tokens.vocab import Vocab
from pretrain.batches.order import ORDER_VERSION
from pretrain.batches.packing import packing_lines
from pretrain.batches.source import BatchSource
from pretrain.checkpoint.compatible import (
    CHANGES,
    OBJECTIVE,
    changes,
    check_belongs,
    check_past,
    objective_code,
    rate_jump,
)
from pretrain.checkpoint.manifest import VALIDATION_LOSS, CheckpointInfo
from pretrain.checkpoint.mirror import Mirror
from pretrain.checkpoint.resume import load_checkpoint, newest_checkpoint
from pretrain.checkpoint.saver import Saver
from pretrain.engine.compiling import keep_compiled, should_compile
from pretrain.engine.devices import matrix_peak, peak_flops
from pretrain.engine.engine import Engine, connected
from pretrain.garbage import imports_set_apart
from pretrain.interchange.warm_start import weights_to_start_from
from pretrain.loop import fit
from pretrain.metrics.meter import Meter, Tracker
from pretrain.metrics.start_times import Laps
from pretrain.metrics.validation import Validator
from pretrain.model.transformer import Transformer
from pretrain.numerics.record import Numerics
from pretrain.numerics.repeatable import deterministic_algorithms, is_deterministic
from pretrain.objectives.chosen import make_objective
from pretrain.parallel.collectives import background_group, gather
from pretrain.parallel.ranks import Ranks, check_ranks, placed_ranks, share_cores
from pretrain.parallel.rows import SlicedBatches
from pretrain.phases import CurrentPhase
from pretrain.reliability.loss_guard import FaultGuard, Rewind
from pretrain.reliability.watching import watched
from pretrain.signals import StoppedEarly
from pretrain.sizes.flops import float8_share

NUMERICS = "numerics"  # in the state: what `Numerics` kept


def run(recipe: Recipe, laps: Laps | None = None) -> bool:
    """Trains to the end, or until a signal; see `pretrain.train.train`.

    `laps` has run since the start, for what is said about the time until the first step.
    """
    laps = laps or Laps()
    data = load_manifest(recipe.data_directory)
    with imports_set_apart(), placed_ranks() as ranks, _held(recipe, ranks):
        check_ranks(ranks, recipe.train)
        share_cores(ranks)
        with connected(ranks) as device, deterministic_algorithms(is_deterministic(recipe.train, device)):
            laps.lap("imports and rendezvous")
            if recipe.train.packing == "best_fit":
                _pack(data, recipe.model.context_length, ranks)
                laps.lap("packing")
            session = _Session(recipe, data, ranks, device, laps)
            checkpoint = session.newest()
            if ranks.rank == 0:
                if checkpoint is not None and (jump := rate_jump(checkpoint, recipe)):
                    print(jump, file=sys.stderr, flush=True)
                save(recipe, recipe.run_directory)
            number = session.train(checkpoint)
    if number:
        raise StoppedEarly(number)
    return True


@contextmanager
def _held(recipe: Recipe, ranks: Ranks) -> Iterator[None]:
    """The run directory's lock, on rank 0: nobody else trains there, whichever door they come by."""
    if ranks.rank:
        yield
        return
    recipe.run_directory.mkdir(parents=True, exist_ok=True)
    with held_for_training(recipe.run_directory, float(os.environ.get("REPLICA_GRACE", 60))):
        yield


def _pack(data: DataManifest, context: int, ranks: Ranks) -> None:
    """Packs the documents once, and says how well; on each machine, where machines do not share the data's files."""
    with background_group() as group:
        for turn in (ranks.rank == 0, ranks.local_rank == 0):
            lines = packing_lines(data, context) if turn else []
            gather(None, group)
    if ranks.rank == 0:
        print("\n".join(lines), file=sys.stderr, flush=True)


class _Session:
    """Training from one checkpoint to the end or a signal; after a rewind, from another one."""

    def __init__(self, recipe: Recipe, data: DataManifest, ranks: Ranks, device: torch.device, laps: Laps) -> None:
        self._recipe, self._data, self._ranks, self._device, self._laps = recipe, data, ranks, device, laps
        self._run = recipe.run_directory
        self._changes: list[dict[str, Any]] = []

    def _mirror(self) -> Mirror | None:
        return Mirror(self._recipe.train.checkpoint) if self._recipe.train.checkpoint.mirror else None

    def newest(self) -> CheckpointInfo | None:
        """The checkpoint to go on from, the same on all ranks."""
        with background_group() as group:  # hashing and fetching may take long
            info = newest_checkpoint(self._recipe, self._ranks, lambda value: gather(value, group), self._mirror())
        if info is not None:
            check_belongs(info, self._recipe, self._data)
            check_past(info, self._recipe, self._data)
            self._changes = changes(info, self._recipe, self._data)
        self._laps.lap("newest checkpoint")
        return info

    def train(self, checkpoint: CheckpointInfo | None) -> int:
        """Makes the engine and uses it until training ends; returns 0 or the number of the signal that ended it."""
        model = build_model(self._recipe, self._data.vocab_size, self._device)
        self._flops_per_token = model.flops_per_token()
        objective = make_objective(model, self._recipe.train)
        compile_model, phases = self._compiles(), CurrentPhase()
        self._engine = engine = Engine(self._recipe, objective, self._ranks, self._device, compile_model, phases.enter)
        self._numerics = Numerics(self._recipe, engine)
        self._initial = initial_weights(model, engine.shapes(), self._recipe.seed)
        if self._recipe.train.init_from and checkpoint is None:
            self._initial = weights_to_start_from(self._recipe, self._data, self._initial)
        self._float8_share = float8_share(model.config, model.vocab_size)
        self._peak = sum(gather(peak_flops(self._device, engine.precision, self._float8_share)))
        self._laps.lap("engine")

        def work(every: int) -> int:
            place = checkpoint
            while True:
                try:
                    return self._train_from(place, every)
                except Rewind:
                    place = self.newest()

        try:
            return watched(self._recipe, engine, phases, checkpoint.step if checkpoint else 0, work)
        finally:
            engine.close()

    def _compiles(self) -> bool:
        """Whether to compile the model, which all ranks decide alike."""
        recipe = self._recipe
        windows = sum(source.tokens for source in self._data.train) // recipe.model.context_length
        positions = total_steps(recipe, windows) * recipe.train.global_batch_size * recipe.model.context_length
        if chosen := should_compile(recipe.train, self._device, positions * self._flops_per_token / self._ranks.count):
            keep_compiled()
        return chosen

    def _peak_again(self) -> float:
        """The peak of all devices, measured anew on this one: no other rank has to stop for it."""
        matrix_peak.cache_clear()
        return peak_flops(self._device, self._engine.precision, self._float8_share) * self._ranks.count

    def _train_from(self, checkpoint: CheckpointInfo | None, every: int) -> int:
        engine, recipe, data = self._engine, self._recipe, self._data
        start, state = (checkpoint.step, checkpoint.state) if checkpoint else (0, {})
        batches, validator = BatchSource(recipe, data), Validator(recipe, data)
        self._laps.lap("data")
        if checkpoint is None:
            engine.set_weights(self._initial)
        else:
            load_checkpoint(engine, checkpoint)
        self._laps.lap("weights")
        again = self._peak_again if engine.is_main else None
        meter = Meter(self._flops_per_token, self._peak, state.get("meter", {}), again)
        guard = FaultGuard(recipe, start, state.get("faults", {}), (batches, Vocab.load(data.tokenizer)), self._ranks)
        tracker = Tracker(recipe, start, engine.is_main)
        saver = Saver(engine, recipe, data, batches.windows, self._mirror())
        validated: dict[float, float] = {}  # targets seen -> validation loss there

        def validate() -> dict[str, float]:
            values = validator(engine)
            if "val/loss" in values:
                validated.clear()
                validated[meter.state["targets"]] = values["val/loss"]
            return values

        def save_step(step: int, last: bool) -> None:
            state = {"meter": meter.state, "updates": engine.updates(), "loss_scale": engine.loss_scale()}
            state["order"], state["faults"] = ORDER_VERSION, guard.state
            state[CHANGES], state[NUMERICS] = self._changes, self._numerics.state
            state[OBJECTIVE] = objective_code(recipe)
            state[VALIDATION_LOSS] = validated.get(meter.state["targets"])
            saver.save(step, state, last)
            guard.newest_checkpoint = step

        steps = range(start, total_steps(recipe, batches.windows))
        policy = recipe.train.checkpoint.model_copy(update={"every": every})
        train = recipe.train.model_copy(update={"checkpoint": policy})
        self._laps.lap("first save's buffers")
        if engine.is_main:
            self._laps.tell()
        try:
            sliced = SlicedBatches(batches, engine.rows)
            with meter.paused():
                meter.remark(self._numerics.settle(sliced, start, state.get(NUMERICS, {}), steps.stop))
            return fit(engine, batches, train, steps, meter, tracker, guard, validate, save_step, saver.poll)
        finally:
            saver.close()
            tracker.close()


def build_model(recipe: Recipe, tokenizer_size: int, device: torch.device) -> Transformer:
    """The recipe's model with undefined weights; at ZeRO-3 on the meta device."""
    with torch.device("meta"):
        model = Transformer(recipe.model, recipe.model.padded_vocab(tokenizer_size))
    if recipe.train.zero.stage == 3:  # the engine gives memory to one module after the other
        return model.make_tables(device)
    return model.materialize(device)


def initial_weights(model: Transformer, shapes: dict[str, list[int]], seed: int) -> Callable[[str], Tensor]:
    """Draws a parameter by its name: the same values at every ZeRO stage, number of ranks and device."""

    def draw(name: str) -> Tensor:
        key = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(int.from_bytes(key, "little") % 2**63)
            value = torch.empty(shapes[name])
            model.init_parameter(name, value)
        return value

    return draw
