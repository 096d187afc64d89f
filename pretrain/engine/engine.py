"""The one file that knows DeepSpeed: processes, precision, ZeRO, one optimizer step.

Loss arithmetic: each micro-batch gives a *sum* of nats; the step's loss is the sum over all micro-batches and ranks
divided by the sum of weights over all of them. DeepSpeed averages gradients over ranks (with tensor parallelism:
over those that have different rows), so what goes backward is nats x ranks / weights; its own division by the
accumulation steps is turned off.
"""

from __future__ import annotations

import importlib
import io
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from configs.schema.recipe import Recipe, solve_batch
from pretrain.batches.source import Batch
from pretrain.engine.deepspeed_config import BF16, deepspeed_config, resolve_precision
from pretrain.engine.deepspeed_private import (
    COMPATIBLE_OPS,
    OWN_MUON,
    UnknownDeepSpeed,
    check_engine,
    check_imported,
    forget_tensor_groups,
    imported,
)
from pretrain.engine.devices import tell_deepspeed_of_cpu
from pretrain.engine.drop_update import drop_update, gradient_is_finite
from pretrain.engine.forward_clock import ForwardClock
from pretrain.engine.non_finite import NonFiniteLoss
from pretrain.model.float8 import use_float8
from pretrain.objectives.objective import LossModule
from pretrain.optimizer.groups import build_optimizer
from pretrain.optimizer.muon import Muon
from pretrain.parallel.collectives import gather, set_timeouts
from pretrain.parallel.fragments import Fragment, fragments, full_shape, shares
from pretrain.parallel.ranks import Ranks
from pretrain.parallel.rendezvous import open_store
from pretrain.parallel.rows import check_sequence, row_share, split_rows
from pretrain.parallel.tensor import check_tensor, local, mark_shards, split_heads
from pretrain.phases import Phase, ReportPhase, report_nothing
from pretrain.signals import STOP_SIGNALS

# Dropout masks: a seed per (seed, step, rank), so that no generator state has to be saved. Odd constants keep the
# products of different triples apart (Knuth, TAOCP 2, 3.3.4).
_SEED_STEP, _SEED_RANK = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step says."""

    loss: float  # nats per target with weight, over the global batch, before the update
    nats: float  # their sum
    targets: float  # the global sum of weights
    target_bytes: int  # UTF-8 bytes of the global batch's targets
    grad_norm: float  # global L2 norm before clipping
    stop: int = 0  # the signal that asked some rank to stop, or 0
    applied: bool = True  # the update was made


def _connect(ranks: Ranks) -> torch.device:
    tell_deepspeed_of_cpu()
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    _quieten()
    check_imported()
    if get_accelerator().device_name() == "cpu":
        # DeepSpeed would compile its shared-memory all-reduce now (30-80 s); only its inference engine calls it.
        imported(*COMPATIBLE_OPS[:2])["deepspeed_shm_comm"] = False
    else:
        get_accelerator().set_device(ranks.local_rank)
    backend = get_accelerator().communication_backend_name()
    if not dist.is_initialized():
        try:
            if (store := open_store(ranks)) is not None:
                dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.count)
            else:
                deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
        except (OSError, RuntimeError) as error:
            if "EADDRINUSE" not in str(error) and "address already in use" not in str(error).lower():
                raise
            port = os.environ.get("MASTER_PORT", "?")
            raise ValueError(
                f"port {port} on {os.environ.get('MASTER_ADDR', 'this machine')} is in use by another process; choose "
                "another (deepspeed --master_port, torchrun --master-port, or MASTER_PORT) or end that process"
            ) from error
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    return torch.device(get_accelerator().current_device_name())


@contextmanager
def connected(ranks: Ranks) -> Iterator[torch.device]:
    """Joins the processes of the run, yields this one's device, and leaves at the end (unless it had joined before).

    Raises:
        ValueError: when the rendezvous port is taken.
    """
    if dist.is_initialized():
        yield _connect(ranks)
        return
    try:
        yield _connect(ranks)
    finally:
        if dist.is_initialized():
            import deepspeed

            deepspeed.comm.destroy_process_group()


def _quieten() -> None:
    """Only warnings that a user of this project can act on: the progress bar is what people watch."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed.*")
    for name in ("DeepSpeed", "deepspeed", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _import_muon() -> None:
    """Imports DeepSpeed's own Muon without compiling it; call before `deepspeed.initialize`.

    DeepSpeed imports that optimizer only to ask whether ours is one. The import passes functions to `torch.compile`,
    which loads the whole compiler: two seconds of every start.
    """
    compile_function = torch.compile
    torch.compile = lambda function: function  # type: ignore[assignment]
    try:
        importlib.import_module(OWN_MUON)
    except ImportError:  # a DeepSpeed that keeps it elsewhere: the start takes longer
        pass
    finally:
        torch.compile = compile_function


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
        """Wraps `module`; its weights are undefined until `set_weights`.

        At ZeRO-3 the parameters may be on the meta device: then no rank ever holds more than one whole and its share.
        """
        import deepspeed

        self.ranks, self.device = ranks, device
        self.plan = solve_batch(recipe.train, ranks.count)
        self.precision = resolve_precision(recipe.train.precision, device)
        config = deepspeed_config(recipe, self.plan, self.precision)
        self.stage: int = config["zero_optimization"]["stage"]
        self._grad_clip, self._seed, self._dropout = recipe.train.grad_clip, recipe.seed, recipe.model.dropout
        module.model.activation_checkpointing = recipe.train.activation_checkpointing
        check_sequence(recipe)
        check_tensor(recipe)
        self.rows = row_share(ranks, recipe.train.parallel)
        self._tensor = recipe.train.parallel.tensor  # consecutive ranks with the same rows
        split_rows(module.model, self.rows)
        if self.precision == "fp8":
            use_float8(module.model, emulate=device.type == "cpu")  # on a CPU, which is refused, only tests get here
        if self.stage == 3 and any(parameter.is_meta for parameter in module.parameters()):
            self._partition(module, config)
        dtype = torch.bfloat16 if self.precision in BF16 else torch.float32
        optimizer = build_optimizer(module.model, recipe.train.optimizer, dtype)
        if self._tensor > 1:
            mark_shards(module.model, ranks.rank % self._tensor, self._tensor)
        _import_muon()
        with redirect_stdout(io.StringIO()):  # it prints memory figures there
            self._deepspeed, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
        self._layout = check_engine(self._deepspeed, self.stage, module.parameters())
        if self._tensor > 1:
            split_heads(module.model, self._tensor)
        set_timeouts(timedelta(seconds=recipe.train.watch.timeout_seconds))
        if isinstance(optimizer, Muon):
            optimizer.attach(self._deepspeed, self.stage, module.model.named_parameters(), gather, device)
        # One rank has nothing to reduce; stage 0 would still copy all gradients to and fro.
        self._deepspeed.enable_backward_allreduce = self.stage > 0 or ranks.count > 1
        self.module = module
        self.clock = ForwardClock(device)
        self.compiled = compile_model
        self.report_phase = report_phase  # is told where in a step this rank is
        if compile_model:
            self._deepspeed.compile()

    def _partition(self, module: LossModule, config: dict[str, Any]) -> None:
        import deepspeed

        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision, torch.float32)
        first: Any = None
        for part in module.modules():
            if next(part.parameters(recurse=False), None) is not None:
                part.to(dtype).to_empty(device=self.device, recurse=False)
                parameters = list(part.parameters(recurse=False))  # others: those on the meta device cannot leave it
                if first is None:
                    deepspeed.zero.Init(module=part, config_dict_or_path=config, dtype=dtype)
                    first = parameters[0]
                else:
                    first.convert_to_zero_parameters(param_list=parameters)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.ranks.rank == 0

    # ------------------------------------------------------------------------------------------------------- one step
    def step(
        self,
        batch: Batch,
        step: int,
        learning_rate: float,
        stop: int = 0,
        accepts: Callable[[float], bool] = lambda loss: True,
    ) -> StepResult:
        """One optimizer step on this rank's share of the global batch; every rank must call it.

        `stop` is the signal that this rank got, or 0. `accepts(loss)` is asked on every rank before the update: where
        it refuses, the gradients are dropped and nothing changes.

        Raises:
            NonFiniteLoss: on every rank, before the update, if the loss or the gradient is not finite on any.
        """
        self.module.train()
        self._seed_dropout(step)
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate * group["ratio"]
        batch_bytes = float(batch.target_bytes)
        batch = batch.to(self.device)
        self.report_phase(Phase.SUM_TARGETS, step + 1)
        totals = self._sum(torch.stack([batch.weights.sum(dtype=torch.float64), self._scalar(batch_bytes)]))
        nats = self._gradients(batch, (self.ranks.count // self._tensor / totals[0]).float())
        self.report_phase(Phase.SUM_LOSS)
        orders = torch.tensor([float(stop == number) for number in STOP_SIGNALS], dtype=torch.float64).to(self.device)
        sums = self._sum(torch.cat([nats.view(1), orders])).tolist()
        self.clock.end_step()
        stop = next((int(number) for number, ranks in zip(STOP_SIGNALS, sums[1:], strict=True) if ranks), 0)
        targets, target_bytes = totals.tolist()
        loss = sums[0] / targets if targets else math.nan
        self.report_phase(Phase.UPDATE)
        if not math.isfinite(loss):
            drop_update(self._deepspeed, self._layout)
            sick = [rank for rank, fine in enumerate(gather(bool(torch.isfinite(nats)))) if not fine]
            raise self._non_finite("loss", loss, step, sick)
        applied = False
        try:
            applied = accepts(loss)
        finally:  # it may also raise, and training go on from a checkpoint
            if not applied:
                drop_update(self._deepspeed, self._layout)
        grad_norm = self._update(step, batch) if applied else 0.0
        self.report_phase(Phase.BETWEEN_STEPS)
        return StepResult(loss, sums[0], targets, int(target_bytes), grad_norm, stop, applied)

    def uncompile(self) -> None:
        """Goes on without compiled code; every rank must."""
        self.compiled = False
        self.module._compiled_call_impl = None
        torch._dynamo.reset()

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 without ZeRO: fp32 weights, cast where they are multiplied."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision in BF16 and self.stage == 0)

    def _seed_dropout(self, step: int) -> None:
        if self._dropout:
            torch.manual_seed((self._seed + step * _SEED_STEP + self.ranks.rank * _SEED_RANK) % 2**63)

    def _micro_batches(self, batch: Batch) -> Iterator[tuple[Tensor, ...]]:
        for start in range(0, self.plan.accumulation * self.plan.micro_batch, self.plan.micro_batch):
            rows = slice(start, start + self.plan.micro_batch)
            yield tuple(part[rows] for part in batch.inputs)

    def _gradients(self, batch: Batch, scale: Tensor) -> Tensor:
        """Sums up the gradients of all micro-batches; returns this rank's nats, a float64 scalar."""
        nats = torch.zeros((), dtype=torch.float64, device=self.device)
        for micro, inputs in enumerate(self._micro_batches(batch)):
            self.report_phase(Phase.FORWARD)
            with self.clock.running(), self.autocast():
                loss = self._deepspeed(*inputs)
            nats += loss.detach()
            self.report_phase(Phase.BACKWARD)
            self._deepspeed.backward(loss * scale, scale_wrt_gas=False)
            if micro < self.plan.accumulation - 1:
                self._deepspeed.step()
        return nats

    def _update(self, step: int, batch: Batch) -> float:
        if self.stage == 0:
            limit = self._grad_clip or math.inf
            norm = self._clip(limit)
            if not math.isfinite(norm):
                drop_update(self._deepspeed, self._layout)
                raise self._non_finite("gradient norm", norm, step, self._sick_gradients(batch, step))
            self._deepspeed.step()
            return norm
        self._deepspeed.step()  # makes no update when the norm is not finite
        norm = float(self._deepspeed.get_global_grad_norm())
        if not math.isfinite(norm) and self._deepspeed.was_step_applied():
            raise UnknownDeepSpeed([f"it made an update with a gradient norm of {norm}"])
        if self.precision != "fp16" and not math.isfinite(norm):  # fp16 lowers the loss scale instead
            raise self._non_finite("gradient norm", norm, step, self._sick_gradients(batch, step))
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

    def _sick_gradients(self, batch: Batch, step: int) -> list[int]:
        """The ranks whose own gradients, computed once more and apart, are not finite."""
        self._seed_dropout(step)
        with self.autocast():
            finite = [gradient_is_finite(self.module, *micro) for micro in self._micro_batches(batch)]
        return [rank for rank, fine in enumerate(gather(all(finite))) if not fine]

    def _non_finite(self, what: str, value: float, step: int, ranks: list[int]) -> NonFiniteLoss:
        who = f" (not finite on rank {', '.join(map(str, ranks))})" if ranks else ""
        return NonFiniteLoss(
            f"the {what} of step {step + 1} is {value}{who}; its update was not made. Lower train.optimizer.lr, "
            f"lengthen the warm-up, or look at the batch with `replica trace RUN --step {step + 1}`",
            ranks or list(range(self.ranks.count)),
        )

    @torch.no_grad()
    def score(self, batch: Batch) -> Tensor:
        """Sum of nats of this rank's rows, without gradient or dropout; a float64 scalar on the device."""
        self.module.eval()
        self.report_phase(Phase.VALIDATION)  # each batch of it may take as long as a collective
        batch = batch.to(self.device)
        with self.autocast():
            nats: Tensor = self._deepspeed(*batch.inputs)
        return nats.double()

    # -------------------------------------------------------------------------------------------------- between ranks
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

    # --------------------------------------------------------------------------------------------- weights and states
    def parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The model's parameters under their own names, without the wrapping module's."""
        return self.module.model.named_parameters()

    def set_weights(self, read: Callable[[str], Tensor]) -> None:
        """Sets every weight from `read(name)`, a whole fp32 tensor on the CPU; master copies take it unrounded.

        Moments and counters become those of an optimizer that has made no update.
        """
        pieces: dict[str, list[Fragment]] = {}
        for piece in self.fragments():
            pieces.setdefault(piece.name, []).append(piece)
        for name, parameter in self.parameters():
            value = read(name)
            with self.gathered(parameter), torch.no_grad():
                parameter.copy_(local(parameter, value))
            for piece in pieces.get(name, []):
                piece.weight.copy_(piece.of(value.flatten()[piece.offset :]))
                piece.updates.zero_()
                for moment in piece.moments.values():
                    moment.zero_()

    @contextmanager
    def gathered(self, parameter: torch.nn.Parameter) -> Iterator[None]:
        """Inside, a parameter is whole on every rank; what the first one writes there, all have afterwards."""
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self.stage == 3):
            yield

    def fragments(self) -> list[Fragment]:
        """This rank's pieces of fp32 weights and moments, as live views; at stage 0 all of them on every rank."""
        return fragments(self._deepspeed, self.stage, self.parameters())

    def own_fragments(self) -> list[Fragment]:
        """The pieces that this rank writes to a checkpoint: of all ranks together each number once."""
        pieces = self.fragments()
        if self.ranks.rank % self._tensor:  # what is whole on all ranks of a group belongs to the first
            pieces = [piece for piece in pieces if piece.name in self._divided]
        rank, count = self.ranks.rank // self._tensor, self.ranks.count // self._tensor
        return pieces if self.stage else shares(pieces, rank, count)

    @property
    def _divided(self) -> set[str]:
        return {name for name, parameter in self.parameters() if hasattr(parameter, "shard")}

    def shapes(self) -> dict[str, list[int]]:
        """The full shape of every parameter."""
        return {name: list(full_shape(p)) for name, p in self.parameters()}

    def updates(self) -> int:
        """Updates that the optimizer has made; fewer than steps when fp16 skipped some."""
        return int(self.fragments()[0].updates.item())

    def loss_scale(self) -> dict[str, float]:
        """The state of fp16's loss scaling; empty in other precisions."""
        if self.precision != "fp16":
            return {}
        scaler = vars(self._deepspeed.optimizer.loss_scaler)
        return {key: value for key, value in scaler.items() if isinstance(value, int | float)}

    def set_loss_scale(self, state: dict[str, float]) -> None:
        """Restores `loss_scale`."""
        if self.precision == "fp16":
            vars(self._deepspeed.optimizer.loss_scaler).update(state)

    def close(self) -> None:
        """Releases DeepSpeed's hooks and buffers."""
        self._deepspeed.destroy()
        if self._tensor > 1:  # or the next engine of this process would take them up
            forget_tensor_groups()
