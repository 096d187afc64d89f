"""Makes one optimizer step on all ranks: processes, precision and ZeRO are DeepSpeed's, the arithmetic is here.

Each micro-batch gives a *sum*; the step's loss is the sum over all micro-batches and ranks divided by the global
`count` of what it is a mean over (`Batch.count`: for language modelling the sum of weights). So neither micro-batches
nor ranks nor padding change it. DeepSpeed averages gradients over ranks (with tensor parallelism: over those that have
different rows), so what goes backward is sum x ranks / count; its own division by the accumulation steps is turned off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from configs.schema.batch_plan import solve_batch
from configs.schema.recipe import Recipe
from pretrain.batches.source import Batch
from pretrain.engine.by_target import values_by_target
from pretrain.engine.compiling import compiler_left_out
from pretrain.engine.deepspeed_config import BF16, deepspeed_config, resolve_precision
from pretrain.engine.deepspeed_layout import buffer_ranges, update_groups
from pretrain.engine.deepspeed_private import UnknownDeepSpeed, check_engine, forget_tensor_groups, imported
from pretrain.engine.drop_update import drop_update, gradient_is_finite
from pretrain.engine.forward_clock import ForwardClock
from pretrain.engine.loss_module import LossModule
from pretrain.engine.non_finite import non_finite
from pretrain.engine.training_state import TrainingState
from pretrain.engine.wrapping import partition, wrap
from pretrain.model.float8 import use_float8
from pretrain.model.transformer import Transformer
from pretrain.model.weight_names import transformers
from pretrain.optimizer.groups import build_optimizer
from pretrain.optimizer.muon import Muon
from pretrain.parallel.collectives import gather, set_timeouts
from pretrain.parallel.fragments import remember_shapes
from pretrain.parallel.ranks import Ranks
from pretrain.parallel.rows import check_sequence, row_slice, split_rows
from pretrain.parallel.tensor import check_tensor, mark_shards, use_local_heads
from pretrain.phases import Phase, ReportPhase, report_nothing
from pretrain.signals import STOP_SIGNALS

# Dropout masks: a seed per (seed, step, rank), so that no generator state has to be saved. Odd constants keep the
# products of different triples apart (Knuth, TAOCP 2, 3.3.4).
COMPILED_WIDTHS = 64  # micro-batches of compiled code have a multiple of it as width: each new width compiles again
_SEED_STEP, _SEED_RANK = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F


@dataclass(frozen=True)
class StepResult:
    """The outcome of one optimizer step."""

    loss: float  # the sum over the global batch divided by its `count`, before the update; nats per target with weight
    total: float  # the sum
    targets: float  # tokens of the global batch: targets with weight, or all of rows whose lengths are known
    target_bytes: int  # UTF-8 bytes of the global batch's targets
    grad_norm: float  # global L2 norm before clipping
    stop: int = 0  # the signal that asked some rank to stop, or 0
    applied: bool = True  # the update was made
    statistics: dict[str, float] = field(default_factory=dict)  # `LossModule.stat_names` over `count`; the batch's own


class Engine:
    """The model, its optimizer and its gradients on all ranks."""

    def __init__(
        self,
        recipe: Recipe,
        module: LossModule,
        ranks: Ranks,
        device: torch.device,
        compile_model: bool = False,
        report_phase: ReportPhase = report_nothing,
    ) -> None:
        """Wraps `module`; its weights are undefined until `state.set_weights`.

        At ZeRO-3 the parameters may be on the meta device: then no rank ever holds more than one whole and its share.
        `report_phase` is told where in a step this rank is.

        Raises:
            ValueError: for settings that cannot be combined, or sizes that cannot be divided between the ranks.
            UnknownDeepSpeed: when the installed version lacks a name that training uses.
        """
        check_sequence(recipe)
        check_tensor(recipe)
        train = recipe.train
        self.ranks, self.device, self.report_phase = ranks, device, report_phase
        self.plan = solve_batch(train, ranks.count)
        assert self.plan.micro_batch % module.unit_rows == 0  # see `plan_batch`
        self.precision = resolve_precision(train.precision, device)
        self.rows = row_slice(ranks, train.parallel)
        self.clock = ForwardClock(device)
        self.module, self.compiled = module, compile_model
        self._copy: Transformer | None = None  # of `reading`
        self._grad_clip, self._seed, self._dropout = train.grad_clip, recipe.seed, recipe.model.dropout
        self._tensor = train.parallel.tensor  # consecutive ranks with the same rows
        config = deepspeed_config(recipe, self.plan, self.precision)
        self.stage: int = config["zero_optimization"]["stage"]
        with compiler_left_out(not compile_model):
            self._deepspeed = self._start(recipe, config)
        self.state = TrainingState(self._deepspeed, self._layout, module, ranks, self._tensor, self.precision == "fp16")
        set_timeouts(timedelta(seconds=train.watch.timeout_seconds))
        if compile_model:
            self._deepspeed.compile()

    def _start(self, recipe: Recipe, config: dict[str, Any]) -> Any:
        """DeepSpeed's engine of the model and a new optimizer; the order of what is done to the model matters."""
        module, model, settings = self.module, self.module.model, recipe.train
        remember_shapes(module.parameters())
        for _, one in transformers(module):
            one.activation_checkpointing = settings.activation_checkpointing
            split_rows(one, self.rows)
            if self.precision == "fp8":
                use_float8(one, emulate=self.device.type == "cpu")  # on a CPU, which is refused, only tests get here
        if self.stage == 3 and any(parameter.is_meta for parameter in module.parameters()):
            partition(module, config, self.precision, self.device)
        optimizer = build_optimizer(
            module, settings.optimizer, torch.bfloat16 if self.precision in BF16 else torch.float32
        )
        if self._tensor > 1:
            mark_shards(model, self.ranks.rank % self._tensor, self._tensor)
        engine = wrap(module, optimizer, config)
        self._layout = check_engine(engine, self.stage, module.parameters())
        if self._tensor > 1:
            use_local_heads(model, self._tensor)
        if isinstance(optimizer, Muon):
            ranges = buffer_ranges(engine, self._layout, module.named_weights())
            optimizer.attach(update_groups(engine, self._layout), ranges, gather, self.device)
        # One rank has nothing to reduce; stage 0 would still copy all gradients to and fro.
        engine.enable_backward_allreduce = self.stage > 0 or self.ranks.count > 1
        return engine

    @property
    def is_main(self) -> bool:
        """Tells whether this process writes files and shows progress."""
        return self.ranks.rank == 0

    def step(
        self,
        batch: Batch,
        step: int,
        learning_rate: float,
        stop: int = 0,
        accepts: Callable[[float, dict[str, float]], bool] = lambda loss, statistics: True,
    ) -> StepResult:
        """One optimizer step on this rank's share of the global batch; every rank must call it.

        `stop` is the signal that this rank got, or 0. `accepts(loss, statistics)` is asked on every rank before the
        update: where it refuses, the gradients are discarded and nothing changes. A batch in which nothing counts has
        the loss 0 and no gradient.

        Raises:
            NonFiniteLoss: on every rank, before the update, if the loss or the gradient is not finite on any.
        """
        self.module.train()
        self._seed_dropout(step)
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate * group["ratio"]
        batch = batch.to(self.device)
        self.report_phase(Phase.SUM_TARGETS, step + 1)
        totals = self._sum(self._totals(batch))
        # 0 where nothing counts: then no row has a loss, and infinity would make NaN of its gradient.
        scale = torch.where(totals[0] == 0, 0.0, self.ranks.count // self._tensor / totals[0]).float()
        own = self._gradients(batch, scale)
        self.report_phase(Phase.SUM_LOSS)
        orders = torch.tensor([float(stop == number) for number in STOP_SIGNALS], dtype=torch.float64).to(self.device)
        sums = self._sum(torch.cat([own, orders])).tolist()
        self.clock.end_step()
        stopped = sums[len(own) :]
        stop = next((int(number) for number, ranks in zip(STOP_SIGNALS, stopped, strict=True) if ranks), 0)
        count, targets, target_bytes = totals.tolist()
        loss, *statistics = (value / count if count else value for value in sums[: len(own)])
        named = dict(zip(self.module.stat_names, statistics, strict=True)) | batch.statistics
        self.report_phase(Phase.UPDATE)
        if not math.isfinite(loss):
            drop_update(self._deepspeed, self._layout)
            raise non_finite("loss", loss, step, gather(bool(torch.isfinite(own[0]))))
        applied = False
        try:
            applied = accepts(loss, named)
        finally:  # it may also raise, and training go on from a checkpoint
            if not applied:
                drop_update(self._deepspeed, self._layout)
        grad_norm = self._update(step, batch) if applied else 0.0
        self.report_phase(Phase.BETWEEN_STEPS)
        return StepResult(loss, sums[0], targets, int(target_bytes), grad_norm, stop, applied, named)

    def _totals(self, batch: Batch) -> Tensor:
        """(3,) float64: this rank's count, targets and bytes."""
        count = batch.weights.sum(dtype=torch.float64) if batch.count is None else self._scalar(batch.count)
        read = batch.read if batch.lengths is None else sum(batch.lengths)
        targets = batch.weights.count_nonzero().double() if read is None else self._scalar(read)
        return torch.stack([count, targets, self._scalar(batch.target_bytes)])

    def _seed_dropout(self, step: int) -> None:
        if self._dropout:
            torch.manual_seed((self._seed + step * _SEED_STEP + self.ranks.rank * _SEED_RANK) % 2**63)

    def micro_batches(self, batch: Batch) -> Iterator[Batch]:
        """The parts of this rank's share of a batch that go through the model at once, in order."""
        size, multiple = self.plan.micro_batch, COMPILED_WIDTHS if self.compiled else 1
        for start in range(0, self.plan.accumulation * size, size):
            yield batch.rows(start, start + size, multiple)

    def _gradients(self, batch: Batch, scale: Tensor) -> Tensor:
        """Sums up the gradients of all micro-batches; returns this rank's sums (1 + S,): loss and statistics."""
        sums = torch.zeros(1 + len(self.module.stat_names), dtype=torch.float64, device=self.device)
        for micro, part in enumerate(self.micro_batches(batch)):
            self.report_phase(Phase.FORWARD)
            with self.clock.running(), self.autocast():
                found = self._deepspeed(*part.inputs, **part.columns).reshape(-1)
            if len(found) != len(sums):
                raise ValueError(f"the objective names {len(sums) - 1} statistics and gives {len(found) - 1}")
            sums += found.detach()
            self.report_phase(Phase.BACKWARD)
            self._deepspeed.backward(found[0] * scale, scale_wrt_gas=False)
            if micro < self.plan.accumulation - 1:
                self._deepspeed.step()
        return sums

    def _update(self, step: int, batch: Batch) -> float:
        """Clips and updates; returns the norm before clipping."""
        if self.stage == 0:
            norm = self._clip(self._grad_clip or math.inf)
            if not math.isfinite(norm):
                drop_update(self._deepspeed, self._layout)
                raise non_finite("gradient norm", norm, step, self._finite_gradients(batch, step))
            self._deepspeed.step()
            return norm
        self._deepspeed.step()  # makes no update when the norm is not finite
        norm = float(self._deepspeed.get_global_grad_norm())
        if not math.isfinite(norm) and self._deepspeed.was_step_applied():
            raise UnknownDeepSpeed([f"it made an update with a gradient norm of {norm}"])
        if self.precision != "fp16" and not math.isfinite(norm):  # fp16 lowers the loss scale instead
            raise non_finite("gradient norm", norm, step, self._finite_gradients(batch, step))
        return norm

    def _clip(self, limit: float) -> float:
        if self._tensor == 1:
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            norm = float(get_total_norm(gradients))
            if norm > limit:  # `clip_grad_norm_` multiplies by one otherwise, which takes as long
                clip_grads_with_norm_(self.module.parameters(), limit, torch.tensor(norm))
            return norm
        clip_grad_norm_ = imported("deepspeed.runtime.utils", "clip_grad_norm_")
        return float(clip_grad_norm_(self.module.parameters(), limit, mpu=self._deepspeed.mpu))

    def _finite_gradients(self, batch: Batch, step: int) -> list[bool]:
        """For each rank whether its own gradients, computed once more and apart, are finite."""
        self._seed_dropout(step)
        with self.autocast():
            parts = self.micro_batches(batch)
            finite = [gradient_is_finite(self.module, *part.inputs, **part.columns) for part in parts]
        return gather(all(finite))

    def uncompile(self) -> None:
        """Goes on without compiled code; every rank must call it.

        Raises:
            ValueError: when this version of torch keeps compiled code elsewhere: it would go on being used.
        """
        if not hasattr(torch.nn.Module, "_compiled_call_impl"):
            raise ValueError(
                f"torch {torch.__version__} cannot be told to leave compiled code; set train.compile=false"
            )
        self.compiled = False
        self.module._compiled_call_impl = None
        torch._dynamo.reset()

    @property
    def precision_of_autocast(self) -> torch.dtype | None:
        """What fp32 weights are cast to where they are multiplied: bf16 without ZeRO; None: they are not."""
        return torch.bfloat16 if self.precision in BF16 and self.stage == 0 else None

    def autocast(self) -> AbstractContextManager[Any]:
        """Casts as `precision_of_autocast` says."""
        casts = self.precision_of_autocast
        return torch.autocast(self.device.type, casts or torch.bfloat16, enabled=casts is not None)

    @contextmanager
    def reading(self, keep: bool = True) -> Iterator[Transformer]:
        """Yields the weights of now as a plain model in evaluation mode, to generate with; every rank must call it.

        At ZeRO stages 0 to 2 the trained module itself; at stage 3 a copy, whole on every rank in training's dtype,
        which is made again parameter by parameter. So no rank waits for another inside. With `keep` its memory stays
        for the next time; without, the caller must keep no reference either.
        """
        model, training = self.module.model, self.module.training
        self.module.eval()
        try:
            with torch.no_grad(), self.autocast():
                yield self._refreshed_copy() if self.stage == 3 else model
        finally:
            self.module.train(training)
            if not keep:
                self._copy = None

    def _refreshed_copy(self) -> Transformer:
        model = self.module.model
        if self._copy is None:
            with torch.device("meta"):
                copy = Transformer(model.config, model.vocab_size)
            dtype = next(model.parameters()).dtype
            self._copy = copy.to(dtype).materialize(self.device).eval().requires_grad_(False)
        for mine, parameter in zip(self._copy.parameters(), model.parameters(), strict=True):
            with self.state.gathered(parameter, written=False):
                mine.copy_(parameter)
        return self._copy

    @torch.no_grad()
    def score(self, batch: Batch) -> Tensor:
        """Sum of nats of this rank's rows, without gradient or dropout; a float64 scalar on the device."""
        self.module.eval()
        self.report_phase(Phase.VALIDATION)  # each batch of it may take as long as a collective
        batch = batch.to(self.device)
        with self.autocast():
            nats: Tensor = self._deepspeed(*batch.inputs)
        return nats.double()

    @torch.no_grad()
    def measure(self, batch: Batch) -> Tensor:
        """This rank's sums (1 + S,) of the objective's own loss and statistics, without gradient or dropout.

        A float64 tensor on the device. Every rank must call it as often.
        """
        own = torch.zeros(1 + len(self.module.stat_names), dtype=torch.float64, device=self.device)
        with self.module.taking(self.module.loss):
            for part in self._measured_parts(batch):
                own += self._deepspeed(*part.inputs, **part.columns).reshape(-1)
        return own

    @torch.no_grad()
    def evaluate(self, batch: Batch, take: Callable[..., Tensor]) -> Tensor:
        """What `take` gives for each position of this rank's rows: (K, B, T) fp32, 0 behind a row's end.

        `take(tokens, targets, weights, positions, **columns)` gives (K, b, t) of a micro-batch, computed with the
        kernels of training, without gradient or dropout. Every rank must call it as often, with as many micro-batches.
        """
        batch = batch.to(self.device)
        with self.module.taking(take):
            return values_by_target(batch, self._measured_parts(batch), self._deepspeed)

    def log_probs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """(B, T) fp32: log-probabilities of the targets, by `evaluate`."""
        model, chunk = self.module.model, self.module.chunk

        def take(tokens: Tensor, targets: Tensor, weights: Tensor, positions: Tensor | None, **_: Tensor) -> Tensor:
            return model.log_probs(tokens, targets, positions, chunk, temperature)[None]

        return self.evaluate(batch, take)[0]

    def _measured_parts(self, batch: Batch) -> Iterator[Batch]:
        """The micro-batches of rows to evaluate, however many there are, in evaluation mode."""
        self.module.eval()
        batch, size = batch.to(self.device), self.plan.micro_batch
        for start in range(0, len(batch.tokens), size):
            self.report_phase(Phase.VALIDATION)  # each of them may take as long as a collective
            with self.autocast():
                yield batch.rows(start, start + size, COMPILED_WIDTHS if self.compiled else 1)

    def sum(self, values: list[float]) -> list[float]:
        """Sums each value over ranks."""
        result: list[float] = self._sum(torch.tensor(values, dtype=torch.float64, device=self.device)).tolist()
        return result

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank; waits for all of them."""
        return gather(value)

    def _sum(self, tensor: Tensor) -> Tensor:
        if self.ranks.count > 1:
            dist.all_reduce(tensor)
        return tensor / self._tensor  # each row once

    def _scalar(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64, device=self.device)

    def close(self) -> None:
        """Releases DeepSpeed's hooks and buffers."""
        self._deepspeed.destroy()
        if self._tensor > 1:  # or the next engine of this process would take them up
            forget_tensor_groups()
