"""One process's part of a training run: puts recipe, data, model, engine and loop together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from configs.recipe import Recipe, save, total_steps
from data_prep.shards import DataManifest, load_manifest
from pretrain.batches import BatchSource
from pretrain.checkpoint import VALIDATION_LOSS, CheckpointInfo, check_belongs
from pretrain.engine import Engine, background_group, connected, gather
from pretrain.loop import fit
from pretrain.metrics import Meter, Tracker, peak_flops
from pretrain.mirror import Mirror
from pretrain.mixture import check_past
from pretrain.model import Transformer
from pretrain.objectives.language_modelling import LanguageModelling
from pretrain.order import ORDER_VERSION
from pretrain.ranks import Ranks, check_ranks, placed_ranks, share_cores
from pretrain.resuming import load_checkpoint, newest_checkpoint
from pretrain.saving import Saver
from pretrain.validation import Validator


def run(recipe: Recipe) -> bool:
    """Trains to the end, or until a signal; see `pretrain.train.train`."""
    data = load_manifest(recipe.data_directory)
    with placed_ranks() as ranks:
        check_ranks(ranks, recipe.train)
        share_cores(ranks)
        with connected(ranks) as device:
            mirror = Mirror(recipe.train.checkpoint) if recipe.train.checkpoint.mirror else None
            checkpoint = _newest(recipe, data, ranks, mirror)
            if ranks.rank == 0:
                save(recipe, recipe.run_directory)
            return _train(recipe, data, ranks, device, checkpoint, mirror)


def _newest(recipe: Recipe, data: DataManifest, ranks: Ranks, mirror: Mirror | None) -> CheckpointInfo | None:
    """The checkpoint to go on from, the same on all ranks."""
    with background_group() as group:  # hashing and fetching may take long
        info = newest_checkpoint(recipe, ranks, lambda value: gather(value, group), mirror)
    if info is not None:
        check_belongs(info, recipe, data)
        check_past(info, recipe, data)
    return info


def _train(
    recipe: Recipe,
    data: DataManifest,
    ranks: Ranks,
    device: torch.device,
    checkpoint: CheckpointInfo | None,
    mirror: Mirror | None,
) -> bool:
    batches = BatchSource(recipe, data)
    model = build_model(recipe, data.vocab_size, device)
    flops_per_token = model.flops_per_token()
    engine = Engine(recipe, LanguageModelling(model), ranks, device)
    state: dict[str, float] = {}
    if checkpoint is None:
        engine.set_weights(initial_weights(model, engine.shapes(), recipe.seed))
    else:
        load_checkpoint(engine, checkpoint)
        state = checkpoint.state["meter"]
    start = checkpoint.step if checkpoint else 0
    peak = sum(gather(peak_flops(device, engine.precision)))
    meter = Meter(flops_per_token, peak, state)
    tracker = Tracker(recipe, start, engine.is_main)
    validator = Validator(recipe, data)

    saver = Saver(engine, recipe, data, batches.windows, mirror)
    validated: dict[float, float] = {}  # targets seen -> validation loss there

    def validate() -> dict[str, float]:
        values = validator(engine)
        if "val/loss" in values:
            validated.clear()
            validated[meter.state["targets"]] = values["val/loss"]
        return values

    def save_step(step: int, last: bool) -> None:
        state = {"meter": meter.state, "updates": engine.updates(), "loss_scale": engine.loss_scale()}
        state["order"] = ORDER_VERSION
        state[VALIDATION_LOSS] = validated.get(meter.state["targets"])
        saver.save(step, state, last)

    steps = range(start, total_steps(recipe, batches.windows))
    try:
        return fit(engine, batches, recipe.train, steps, meter, tracker, validate, save_step, saver.poll)
    finally:
        saver.close()
        tracker.close()
        engine.close()


def build_model(recipe: Recipe, tokenizer_size: int, device: torch.device) -> Transformer:
    """The recipe's model with undefined weights."""
    with torch.device("meta"):
        model = Transformer(recipe.model, recipe.model.padded_vocab(tokenizer_size))
    # ZeRO-3 moves its pieces to the device by itself: a whole model may not fit there.
    return model.materialize("cpu" if recipe.train.zero.stage == 3 else device)


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
