"""Trains in one process of a run: puts recipe, data, model, engine and loop together."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.common.locks import held_for_training
from configs.common.notices import say
from configs.schema.batch_plan import total_steps
from configs.schema.recipe import Recipe, save
from configs.schema.train import Train
from data_prep.tokens.shards import DataManifest, load_manifest
from pretrain.batches.mixture import is_packing
from pretrain.batches.order import ORDER_VERSION
from pretrain.batches.packing import packing_lines
from pretrain.checkpoint.base_model import BASE, base_fingerprints
from pretrain.checkpoint.compatible import (
    CHANGES,
    OBJECTIVE,
    changes,
    check_belongs,
    check_past,
    objective_code,
    rate_jump,
)
from pretrain.checkpoint.manifest import OBJECTIVE_STATE, CheckpointInfo
from pretrain.checkpoint.mirror import Mirror
from pretrain.checkpoint.parents import PARENTS, parents_now
from pretrain.checkpoint.resume import load_checkpoint, newest_checkpoint
from pretrain.checkpoint.saver import Saver
from pretrain.engine.compiling import keep_compiled, should_compile
from pretrain.engine.connection import connected
from pretrain.engine.devices import matrix_peak, peak_flops
from pretrain.engine.engine import Engine
from pretrain.engine.loss_module import LossModule
from pretrain.garbage import imports_set_apart
from pretrain.interchange.warm_start import weights_to_start_from
from pretrain.loop import TrainingRun, fit
from pretrain.metrics.evaluated import MakeEvaluator
from pretrain.metrics.meter import Meter, Tracker
from pretrain.metrics.start_times import Laps
from pretrain.model.transformer import Transformer
from pretrain.numerics.record import Numerics
from pretrain.numerics.repeatable import deterministic_algorithms, is_deterministic
from pretrain.objectives.chosen import make_objective
from pretrain.objectives.objective import Objective
from pretrain.parallel.collectives import background_group, gather
from pretrain.parallel.ranks import Ranks, check_ranks, limit_threads, placed_ranks
from pretrain.parallel.rows import SlicedBatches
from pretrain.phases import CurrentPhase
from pretrain.reliability.loss_guard import LossGuard, Rewind
from pretrain.reliability.watching import watched
from pretrain.signals import StoppedEarly
from pretrain.sizes.flops import float8_share

NUMERICS = "numerics"  # in the state: what `Numerics` kept


@dataclass(frozen=True)
class Session:
    """What one process knows of a training run from the beginning."""

    recipe: Recipe
    data: DataManifest
    ranks: Ranks
    device: torch.device
    laps: Laps
    make_evaluator: MakeEvaluator | None = None
    make: Callable[[Recipe], Objective] | None = None

    def mirror(self) -> Mirror | None:
        """A new connection to the mirror, where the recipe has one."""
        policy = self.recipe.train.checkpoint
        return Mirror(policy) if policy.mirror else None


@dataclass(frozen=True)
class StartPoint:
    """Where training begins or goes on, the same on all ranks."""

    checkpoint: CheckpointInfo | None
    changes: list[dict[str, Any]]  # of settings, over the whole run

    @property
    def step(self) -> int:
        """Updates made."""
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def state(self) -> dict[str, Any]:
        """What the checkpoint keeps beside weights and moments."""
        return self.checkpoint.state if self.checkpoint else {}


@dataclass(frozen=True)
class Prepared:
    """What is made once and used until the process ends, by every rewind again."""

    objective: Objective
    engine: Engine
    phases: CurrentPhase  # of the engine
    numerics: Numerics
    initial: Callable[[str], Tensor]  # the weights of a run without a checkpoint
    flops_per_token: float
    float8_share: float  # of these operations
    peak: float  # FLOP/s of all devices together
    base: str | None  # fingerprint of the weights of `train.init_from`; on rank 0
    parents: list[dict[str, Any]]  # the checkpoints that a stage reads, see `parents_now`


def run(
    recipe: Recipe,
    laps: Laps | None = None,
    make_evaluator: MakeEvaluator | None = None,
    make: Callable[[Recipe], Objective] | None = None,
) -> bool:
    """Trains to the end, or until a signal; see `pretrain.train.train`.

    Args:
        recipe: validated.
        laps: has run since the start, for what is said about the time until the first step.
        make_evaluator: makes what scores parts of the evaluation during training; None: nothing does.
        make: makes the objective; None: that of the recipe.
    """
    laps = laps or Laps()
    data = load_manifest(recipe.data_directory)
    with imports_set_apart(), placed_ranks() as ranks, _held(recipe, ranks):
        check_ranks(ranks, recipe.train)
        limit_threads(ranks)
        with connected(ranks) as device, deterministic_algorithms(is_deterministic(recipe.train, device)):
            laps.lap("imports and rendezvous")
            if is_packing(recipe):
                _pack(data, recipe.model.context_length, ranks)
                laps.lap("packing")
            session = Session(recipe, data, ranks, device, laps, make_evaluator, make)
            start = _find_start(session)
            if ranks.rank == 0:
                if start.checkpoint is not None and (jump := rate_jump(start.checkpoint, recipe)):
                    say(jump)
                save(recipe, recipe.run_directory)
            number = _train(session, start)
    if number:
        raise StoppedEarly(number)
    return True


@contextmanager
def _held(recipe: Recipe, ranks: Ranks) -> Iterator[None]:
    """Holds the run directory's lock on rank 0: no other process trains there, however it was started."""
    if ranks.rank:
        yield
        return
    recipe.run_directory.mkdir(parents=True, exist_ok=True)
    with held_for_training(recipe.run_directory, float(os.environ.get("REPLICA_GRACE", 60))):
        yield


def _pack(data: DataManifest, context: int, ranks: Ranks) -> None:
    """Packs the documents once, on each machine where machines do not share the data's files; prints how well."""
    with background_group() as group:
        for turn in (ranks.rank == 0, ranks.local_rank == 0):
            lines = packing_lines(data, context) if turn else []
            gather(None, group)
    if ranks.rank == 0:
        say("\n".join(lines))


def _find_start(session: Session) -> StartPoint:
    """Chooses the checkpoint to go on from; raises `ValueError` when the recipe cannot go on from it."""
    recipe, data = session.recipe, session.data
    with background_group() as group:  # hashing and fetching may take long
        info = newest_checkpoint(recipe, session.ranks, lambda value: gather(value, group), session.mirror())
    if info is not None:
        check_belongs(info, recipe, data)
        check_past(info, recipe, data)
    session.laps.lap("newest checkpoint")
    return StartPoint(info, changes(info, recipe, data) if info is not None else [])


def _train(session: Session, start: StartPoint) -> int:
    """Makes the engine and uses it until training ends; returns 0 or the number of the signal that ended it."""
    prepared = _prepare(session, start)
    work = partial(_train_through_rewinds, session, prepared, start)
    try:
        return watched(session.recipe, prepared.engine, prepared.phases, start.step, work)
    finally:
        prepared.engine.close()


def _prepare(session: Session, start: StartPoint) -> Prepared:
    recipe, device = session.recipe, session.device
    model = build_model(recipe, session.data.vocab_size, device)
    flops_per_token = model.flops_per_token()
    objective = (session.make or make_objective)(recipe)
    module = objective.module(model)
    compile_model, phases = _compiles(session, flops_per_token), CurrentPhase()
    engine = Engine(recipe, module, session.ranks, device, compile_model, phases.enter)
    numerics = Numerics(recipe, engine)
    initial = initial_weights(module, engine.state.shapes(), recipe.seed)
    if recipe.train.init_from and start.checkpoint is None:
        initial = objective.initial(weights_to_start_from(recipe, session.data, initial))
    share = float8_share(model.config, model.vocab_size)
    peak = sum(gather(peak_flops(device, engine.precision, share)))
    base = _base(recipe, start) if session.ranks.rank == 0 else None
    session.laps.lap("engine")
    parents = start.state.get(PARENTS) or [] if start.checkpoint else parents_now(recipe)
    return Prepared(objective, engine, phases, numerics, initial, flops_per_token, share, peak, base, parents)


def _base(recipe: Recipe, start: StartPoint) -> str | None:
    if start.checkpoint is not None:
        known: str | None = start.state.get(BASE)
        return known
    return base_fingerprints(Path(recipe.train.init_from))[0] if recipe.train.init_from else None


def _compiles(session: Session, flops_per_token: float) -> bool:
    """Whether to compile the model, which all ranks decide alike."""
    recipe = session.recipe
    windows = sum(source.tokens for source in session.data.train) // recipe.model.context_length
    positions = total_steps(recipe, windows) * recipe.train.global_batch_size * recipe.model.context_length
    if chosen := should_compile(recipe.train, session.device, positions * flops_per_token / session.ranks.count):
        keep_compiled()
    return chosen


def _train_through_rewinds(session: Session, prepared: Prepared, start: StartPoint, every: int) -> int:
    """Trains from `start` with a checkpoint `every` so many steps; after a rewind from the newest checkpoint."""
    while True:
        try:
            return _train_from(session, prepared, start, every)
        except Rewind:
            start = _find_start(session)


def _train_from(session: Session, prepared: Prepared, start: StartPoint, every: int) -> int:
    recipe, data, laps, engine = session.recipe, session.data, session.laps, prepared.engine
    objective, base = prepared.objective, engine.gather(prepared.base)[0]
    if start.checkpoint is not None and not objective.resumes:
        raise ValueError(
            f"{start.checkpoint.directory} is there, and what this command does must begin with the first step: start "
            "again with another --out"
        )
    objective.prepare(data, engine, base, partial(_set_base, session, prepared, start, base))
    source, validator = objective.batches(data, engine), objective.validator(data, engine)
    laps.lap("data")
    if start.checkpoint is None:
        engine.state.set_weights(prepared.initial)
    else:
        load_checkpoint(engine, start.checkpoint)
    objective.state = start.state.get(OBJECTIVE_STATE, {})
    laps.lap("weights")
    measure_peak = partial(_peak_again, prepared) if engine.is_main else None
    sums = start.state.get("meter", {})
    meter = Meter(prepared.flops_per_token, prepared.peak, sums, measure_peak, objective.codes_text)
    spans_of, faults = objective.spans(data, source, session.ranks.count), start.state.get("faults", {})
    guard = LossGuard(recipe, start.step, faults, session.ranks, spans_of, objective.watched)
    tracker = Tracker(recipe, start.step, engine.is_main)
    evaluator = None if session.make_evaluator is None else session.make_evaluator(recipe, data, engine, start.step)
    saver = Saver(engine, recipe, data, source.windows, session.mirror())
    laps.lap("first save's buffers")
    if engine.is_main:
        laps.print_report()
    try:
        batches = SlicedBatches(source, engine.rows)
        steps = range(start.step, total_steps(recipe, source.windows))
        with meter.paused():
            known = start.state.get(NUMERICS, {})
            sample = partial(objective.sample, engine, batches, start.step)
            meter.remark(prepared.numerics.settle(sample, start.step, known, steps.stop))
        facts = {
            "order": ORDER_VERSION,
            CHANGES: start.changes,
            NUMERICS: prepared.numerics.state,
            OBJECTIVE: objective_code(recipe),
            BASE: prepared.base,
            PARENTS: prepared.parents,
        }
        number = fit(
            TrainingRun(
                engine=engine,
                objective=objective,
                batches=batches,
                train=_saving_every(recipe.train, every),
                steps=steps,
                meter=meter,
                tracker=tracker,
                guard=guard,
                validator=validator,
                saver=saver,
                facts=facts,
                evaluator=evaluator,
            )
        )
        if not number:
            objective.finish(engine)
        return number
    finally:
        saver.close()
        tracker.close()
        if evaluator is not None:
            evaluator.close()


def _set_base(session: Session, prepared: Prepared, start: StartPoint, base: str) -> None:
    """Gives the engine the weights that the run started from; raises `ValueError` where they are there no longer."""
    recipe, initial = session.recipe, prepared.initial
    if start.checkpoint is not None:
        assert recipe.train.init_from
        if base not in base_fingerprints(Path(recipe.train.init_from))[:1]:
            raise ValueError(
                f"train.init_from {recipe.train.init_from} holds other weights than this run started from, so what "
                "follows from them cannot be computed again; put them back, or start a new run with another --out"
            )
        initial = prepared.objective.initial(weights_to_start_from(recipe, session.data, initial))
    prepared.engine.state.set_weights(initial)


def _saving_every(train: Train, every: int) -> Train:
    """The settings with another number of steps between checkpoints."""
    return train.model_copy(update={"checkpoint": train.checkpoint.model_copy(update={"every": every})})


def _peak_again(prepared: Prepared) -> float:
    """The peak of all devices, measured again on this one: no other rank has to stop for it."""
    engine = prepared.engine
    matrix_peak.cache_clear()
    return peak_flops(engine.device, engine.precision, prepared.float8_share) * engine.ranks.count


def build_model(recipe: Recipe, tokenizer_size: int, device: torch.device) -> Transformer:
    """The recipe's model with undefined weights; at ZeRO-3 on the meta device."""
    with torch.device("meta"):
        model = Transformer(recipe.model, recipe.model.padded_vocab(tokenizer_size))
    if recipe.train.zero.stage == 3:  # the engine gives memory to one module after the other
        return model.make_tables(device)
    return model.materialize(device)


def initial_weights(
    module: LossModule | Transformer, shapes: dict[str, list[int]], seed: int
) -> Callable[[str], Tensor]:
    """Draws a parameter by its name: the same values at every ZeRO stage, number of ranks and device."""

    def draw(name: str) -> Tensor:
        key = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(int.from_bytes(key, "little") % 2**63)
            value = torch.empty(shapes[name])
            module.init_parameter(name, value)
        return value

    return draw
