"""Makes steps of an objective with columns, statistics, a head and a second model, one file of settings after another.

A file holds the recipe, the steps to make, and the checkpoint to go on from; what came out is written beside it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema.recipe import load
from data_prep.tokens.shards import load_manifest
from pretrain.batches.source import Batch
from pretrain.checkpoint.fragment_files import HostCopy
from pretrain.checkpoint.frozen_model import FrozenModel
from pretrain.checkpoint.manifest import read_info
from pretrain.checkpoint.resume import load_checkpoint
from pretrain.checkpoint.saver import Snapshot, commit_checkpoint
from pretrain.engine.connection import connected
from pretrain.engine.engine import Engine
from pretrain.engine.loss_module import LossModule
from pretrain.model.transformer import Transformer
from pretrain.parallel.collectives import gather
from pretrain.parallel.ranks import Ranks
from pretrain.session import build_model, initial_weights

LENGTHS, MASKED = (32, 9, 17, 5, 30, 12, 20, 7), 3  # rows of the global batch; one of them counts nowhere
ROWS = 257


class Columns(LossModule):
    """Log-probabilities weighed by a column, and squared errors of two scores at the end of each row."""

    stat_names = ("entropy", "score")

    def __init__(self, model: Transformer) -> None:
        super().__init__(model, chunk=13)
        self.value = model.sibling()
        self.reward_head = nn.Linear(model.config.hidden_size, 1, bias=False, device=model.embed.weight.device)

    def loss(
        self, tokens: Tensor, targets: Tensor, weights: Tensor, positions: Tensor | None, **columns: Tensor
    ) -> Tensor:
        hidden = self.model.backbone(tokens)
        log_p, entropy = self.model.log_probs_and_entropy(tokens, targets, chunk=self.chunk, hidden=hidden)
        row = torch.arange(len(tokens))
        score = self.reward_head(hidden[row, columns["last"]]).squeeze(-1)
        value = self.reward_head(self.value.backbone(tokens)[row, columns["last"]]).squeeze(-1)
        errors = (score - columns["wanted"]).square() + (value - 1).square()
        loss = (columns["counts"] * errors).sum() - (log_p * columns["advantage"] * weights).sum()
        return torch.stack([loss, (entropy * weights).sum(), (columns["counts"] * score).sum()])


def batch_of(step: int, rank: int, ranks: int, garbage: int = 0) -> Batch:
    """This rank's rows of the global batch; `garbage` replaces the row that does not count."""
    generator = torch.Generator().manual_seed(step)
    rows, width = len(LENGTHS), max(LENGTHS)
    text = torch.randint(0, ROWS, (rows, width + 1), generator=generator)
    advantage, wanted = torch.randn(rows, width, generator=generator), torch.randn(rows, generator=generator)
    if garbage:
        text[MASKED] = garbage
    counts = torch.ones(rows)
    counts[MASKED] = 0
    lengths = torch.tensor(LENGTHS)
    weights = ((torch.arange(width) < lengths[:, None]) & (torch.arange(width) % 3 > 0)) * counts[:, None]
    columns = {"advantage": advantage, "wanted": wanted, "counts": counts, "last": lengths - 1}
    mine = slice(rank * rows // ranks, (rank + 1) * rows // ranks)
    tensors = [tensor[mine].contiguous() for tensor in (text[:, :-1], text[:, 1:], weights.float())]
    return Batch(
        *tensors,
        target_bytes=0,
        fresh=False,
        columns={name: column[mine].contiguous() for name, column in columns.items()},
        count=float(counts[mine].sum()),
        lengths=LENGTHS[mine],
    )


def work(settings: dict[str, Any], ranks: Ranks, device: torch.device) -> dict[str, Any]:
    recipe = load(settings["recipe"])
    module = Columns(build_model(recipe, ROWS, device))
    engine = Engine(recipe, module, ranks, device)
    if settings["load"]:
        load_checkpoint(engine, read_info(Path(settings["load"])))
    else:
        engine.state.set_weights(initial_weights(module, engine.state.shapes(), recipe.seed))
    found: dict[str, Any] = {"steps": {}, "gaps": []}
    for step in range(*settings["steps"]):
        result = engine.step(batch_of(step, ranks.rank, ranks.count, settings["garbage"]), step, 1e-2)
        found["steps"][step] = [result.loss, result.grad_norm, *result.statistics.values(), result.targets]
        if step + 1 == settings["save"]:
            directory = save(engine, recipe, step + 1)
            found["gaps"].append(_frozen_gap(engine, directory))
    found["gaps"] += _reading_gaps(engine)
    found["weights"] = {}
    for name, parameter in engine.state.parameters():
        with engine.state.gathered(parameter, written=False):
            found["weights"][name] = parameter.detach().flatten().tolist()
    engine.close()
    return found


def save(engine: Engine, recipe: Any, step: int) -> Path:
    state = {"updates": engine.state.updates(), "loss_scale": {}}
    tensors = HostCopy().take(engine.state.own_fragments())
    snapshot = Snapshot(step, 0, state, engine.state.shapes(), tensors)
    return commit_checkpoint(snapshot, recipe, load_manifest(recipe.data_directory), engine.ranks, gather)


def _frozen_gap(engine: Engine, directory: Path) -> float:
    """How far a frozen model of the weights of now is from them: 0."""
    batch = batch_of(7, engine.ranks.rank, engine.ranks.count)
    frozen = FrozenModel.beside(engine, directory)
    assert frozen.extra["reward_head.weight"].any() and "value.norm.weight" in frozen.extra
    return float((frozen.log_probs(batch, 0.7) - engine.log_probs(batch, 0.7)).abs().max())


def _reading_gaps(engine: Engine) -> list[float]:
    """How far what one would generate with is from the training forward, before and after a step."""
    gaps = []
    for step in (8, 9):
        batch = batch_of(step, engine.ranks.rank, engine.ranks.count)
        trained = engine.log_probs(batch)
        with engine.reading() as model:
            assert not model.training and (model is engine.module.model) == (engine.stage < 3)
            log_p = F.log_softmax(model(batch.tokens).float(), dim=-1)
        read = log_p.gather(2, batch.targets[..., None]).squeeze(-1)
        inside = torch.arange(read.shape[1]) < torch.tensor(batch.lengths)[:, None]
        gaps.append(float((read - trained)[inside].abs().max()))
        assert not trained[~inside].any()
        engine.step(batch, step, 1e-2)
    measured = engine.sum(engine.measure(batch).tolist())
    result = engine.step(batch, 10, 0.0)
    return [*gaps, abs(measured[0] / 7 - result.loss), abs(measured[2] / 7 - result.statistics["score"])]


def main(ranks: Ranks, files: list[Path]) -> None:
    with connected(ranks) as device:
        for file in files:
            found = work(json.loads(file.read_text()), ranks, device)
            if ranks.rank == 0:
                file.with_suffix(".out").write_text(json.dumps(found))
