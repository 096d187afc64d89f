"""The one file that knows DeepSpeed: processes, precision, ZeRO, one optimizer step.

Loss arithmetic: each micro-batch gives a *sum* of nats; the step's loss is the sum over all micro-batches and ranks
divided by the sum of weights over all of them. DeepSpeed averages gradients over ranks, so what goes backward is
nats x ranks / weights; its own division by the accumulation steps is turned off.
"""

from __future__ import annotations

import io
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from configs.recipe import BatchPlan, Recipe, solve_batch
from pretrain.batches import Batch
from pretrain.objectives.base import LossModule
from pretrain.optim import build_optimizer
from pretrain.partition import Fragment, fragments, shares
from pretrain.ranks import Ranks

# Dropout masks: a seed per (seed, step, rank), so that no generator state has to be saved. Odd constants keep the
# products of different triples apart (Knuth, TAOCP 2, 3.3.4).
_SEED_STEP, _SEED_RANK = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F

# A rank that writes or fetches a checkpoint of terabytes may take this long; a rank that died is noticed at once.
BACKGROUND_TIMEOUT = timedelta(hours=2)


class NonFiniteLoss(ValueError):
    """The loss or the gradient is not a number any more; nothing was saved with it."""


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step says."""

    loss: float  # nats per target with weight, over the global batch, before the update
    nats: float  # their sum
    targets: float  # the global sum of weights
    target_bytes: int  # UTF-8 bytes of the global batch's targets
    grad_norm: float  # global L2 norm before clipping
    stop: bool  # some rank was asked to stop


def resolve_precision(setting: str, device: torch.device) -> str:
    """`auto` to what the device computes in: bf16 or fp32.

    Raises:
        ValueError: for fp16 on a CPU, and for bf16 on a GPU without it.
    """
    if device.type == "cpu":
        if setting == "fp16":
            raise ValueError("train.precision fp16 needs a GPU; use bf16, fp32 or auto on a CPU")
        return setting if setting != "auto" else "bf16" if cpu_computes_bf16() else "fp32"
    if setting == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError("train.precision bf16: this GPU does not compute in it; use fp16, fp32 or auto")
    if setting == "auto":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return setting


def cpu_computes_bf16() -> bool:
    """Whether this CPU multiplies bf16 numbers in hardware (AVX512-BF16, AMX, or Arm's BF16)."""
    cpuinfo = Path("/proc/cpuinfo")
    words = set(cpuinfo.read_text(encoding="utf-8").split()) if cpuinfo.is_file() else set()
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def deepspeed_config(recipe: Recipe, plan: BatchPlan, precision: str) -> dict[str, Any]:
    """DeepSpeed's configuration: derived from the recipe, with the recipe's `deepspeed` mapping on top.

    Raises:
        ValueError: when that mapping sets something that the recipe says elsewhere.
    """
    train = recipe.train
    # 0.19.8's bf16 at stage 0 (FP16_UnfusedOptimizer) strays from the reference tenfold farther than stages 1 to 3;
    # stage 1 computes the same step, with less memory.
    stage = 1 if train.zero.stage == 0 and precision != "fp32" else train.zero.stage
    derived: dict[str, Any] = {
        "train_batch_size": plan.global_batch,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        # Without ZeRO, DeepSpeed neither reports the norm nor clips by it in fp32: `Engine` does.
        "gradient_clipping": train.grad_clip if stage else 0.0,
        "zero_optimization": {"stage": stage},
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }
    if precision == "bf16":
        derived["bf16"] = {"enabled": True}
        # Micro-batches add up in fp32: bf16 sums lose small gradients (DeepSpeed #1800).
        derived["data_types"] = {"grad_accum_dtype": "fp32"}
    if precision == "fp16":
        derived["fp16"] = {"enabled": True}
    if train.zero.offload_optimizer:
        if stage == 0:
            raise ValueError("train.zero.offload_optimizer needs train.zero.stage 1, 2 or 3")
        derived["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return _merged(derived, recipe.deepspeed, "deepspeed")


def _merged(derived: dict[str, Any], extra: dict[str, Any], path: str) -> dict[str, Any]:
    merged = dict(derived)
    for key, value in extra.items():
        if isinstance(value, dict) and isinstance(derived.get(key, {}), dict):
            merged[key] = _merged(derived.get(key, {}), value, f"{path}.{key}")
        elif key in derived and derived[key] != value:
            raise ValueError(
                f"{path}.{key}: {value!r} clashes with {derived[key]!r}, which follows from the recipe's own settings; "
                "drop it here and change the recipe's setting"
            )
        else:
            merged[key] = value
    return merged


def _connect(ranks: Ranks) -> torch.device:
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns that it found no GPU
    import deepspeed.ops
    from deepspeed.accelerator import get_accelerator

    _quieten()

    if get_accelerator().device_name() == "cpu":
        # DeepSpeed would compile its shared-memory all-reduce now (30-80 s); only its inference engine calls it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    else:
        get_accelerator().set_device(ranks.local_rank)
    backend = get_accelerator().communication_backend_name()
    if not dist.is_initialized():
        try:
            if ranks.count == 1:
                store = dist.HashStore()  # type: ignore[attr-defined]  # one process needs no port
                dist.init_process_group(backend, store=store, rank=0, world_size=1)
            else:
                deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
        except RuntimeError as error:
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


def gather(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Every rank's value, on every rank; waits for all of them. `group`: another way between the same processes."""
    values: list[Any] = [None] * dist.get_world_size()
    if len(values) == 1:
        return [value]
    dist.all_gather_object(values, value, group=group)
    return values


@contextmanager
def background_group() -> Iterator[dist.ProcessGroup | None]:
    """A way between all processes for a thread that works beside training; None for a single process.

    Its collectives never meet training's, and may wait for slow disks longer than training may wait for a rank.
    """
    if dist.get_world_size() == 1:
        yield None
        return
    group = dist.new_group(backend="gloo", timeout=BACKGROUND_TIMEOUT)
    try:
        yield group
    finally:
        dist.destroy_process_group(group)


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


class Engine:
    """The model, its optimizer and its gradients on all ranks."""

    def __init__(self, recipe: Recipe, module: LossModule, ranks: Ranks, device: torch.device) -> None:
        """Wraps `module`; its weights are undefined until `set_weights`."""
        import deepspeed

        self.ranks, self.device = ranks, device
        self.plan = solve_batch(recipe.train, ranks.count)
        self.precision = resolve_precision(recipe.train.precision, device)
        config = deepspeed_config(recipe, self.plan, self.precision)
        self.stage: int = config["zero_optimization"]["stage"]
        self._grad_clip, self._seed, self._dropout = recipe.train.grad_clip, recipe.seed, recipe.model.dropout
        module.model.activation_checkpointing = recipe.train.activation_checkpointing
        optimizer = build_optimizer(module, recipe.train.optimizer)
        with redirect_stdout(io.StringIO()):  # it prints memory figures there
            self._deepspeed, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
        # One rank has nothing to reduce; stage 0 would still copy all gradients to and fro.
        self._deepspeed.enable_backward_allreduce = self.stage > 0 or ranks.count > 1
        self.module = module
        if recipe.train.compile:
            if self.stage == 3 and self.is_main:
                print(
                    "train.compile at ZeRO-3: DeepSpeed's hooks cut the graph at every module, which costs minutes of "
                    "compilation and gains little; stages 0 to 2 compile whole",
                    file=sys.stderr,
                )
            self._deepspeed.compile()

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.ranks.rank == 0

    # ------------------------------------------------------------------------------------------------------- one step
    def step(self, batch: Batch, step: int, learning_rate: float, stop: bool = False) -> StepResult:
        """One optimizer step on this rank's share of the global batch; every rank must call it.

        Raises:
            NonFiniteLoss: on every rank, before the update if the loss is not finite.
        """
        self.module.train()
        if self._dropout:
            torch.manual_seed((self._seed + step * _SEED_STEP + self.ranks.rank * _SEED_RANK) % 2**63)
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate
        batch_bytes = float(batch.target_bytes)
        batch = batch.to(self.device)
        totals = self._sum(torch.stack([batch.weights.sum(dtype=torch.float64), self._scalar(batch_bytes)]))
        scale = (self.ranks.count / totals[0]).float()
        nats = torch.zeros((), dtype=torch.float64, device=self.device)
        for micro in range(self.plan.accumulation):
            rows = slice(micro * self.plan.micro_batch, (micro + 1) * self.plan.micro_batch)
            loss = self._deepspeed(batch.tokens[rows], batch.targets[rows], batch.weights[rows])
            nats += loss.detach()
            self._deepspeed.backward(loss * scale, scale_wrt_gas=False)
            if micro < self.plan.accumulation - 1:
                self._deepspeed.step()
        sums = self._sum(torch.stack([nats, self._scalar(float(stop))])).tolist()
        targets, target_bytes = totals.tolist()
        loss_value = sums[0] / targets if targets else math.nan
        if not math.isfinite(loss_value):
            raise NonFiniteLoss(
                f"the loss of step {step + 1} is {loss_value}; its update was not made. Lower train.optimizer.lr, "
                f"lengthen the warm-up, or look at the batch with `replica trace RUN --step {step + 1}`"
            )
        grad_norm = self._update(step)
        return StepResult(loss_value, sums[0], targets, int(target_bytes), grad_norm, sums[1] > 0)

    def _update(self, step: int) -> float:
        if self.stage == 0:
            limit = self._grad_clip or math.inf
            norm = float(torch.nn.utils.clip_grad_norm_(self.module.parameters(), limit))
            self._check_norm(norm, step)
            self._deepspeed.step()
            return norm
        self._deepspeed.step()
        norm = float(self._deepspeed.get_global_grad_norm())
        if self.precision != "fp16":  # there a skipped update with a lower loss scale is the answer
            self._check_norm(norm, step)
        return norm

    def _check_norm(self, norm: float, step: int) -> None:
        if not math.isfinite(norm):
            raise NonFiniteLoss(
                f"the gradient norm of step {step + 1} is {norm}, although its loss is finite; training stopped and "
                "saved nothing after it. Lower train.optimizer.lr or lengthen the warm-up"
            )

    @torch.no_grad()
    def score(self, batch: Batch) -> Tensor:
        """Sum of nats of this rank's rows, without gradient or dropout; a float64 scalar on the device."""
        self.module.eval()
        batch = batch.to(self.device)
        nats: Tensor = self._deepspeed(batch.tokens, batch.targets, batch.weights)
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
        return tensor

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
        pieces = {piece.name: piece for piece in self.fragments()}
        for name, parameter in self.parameters():
            value = read(name)
            with self._gathered(parameter), torch.no_grad():
                parameter.copy_(value)
            if piece := pieces.get(name):
                piece.weight.copy_(value.flatten()[piece.offset : piece.offset + piece.numel])
                piece.updates.zero_()
                for moment in piece.moments.values():
                    moment.zero_()

    @contextmanager
    def _gathered(self, parameter: torch.nn.Parameter) -> Iterator[None]:
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self.stage == 3):
            yield

    def fragments(self) -> list[Fragment]:
        """This rank's pieces of fp32 weights and moments, as live views; at stage 0 all of them on every rank."""
        return fragments(self._deepspeed, self.stage, self.parameters())

    def own_fragments(self) -> list[Fragment]:
        """The pieces that this rank writes to a checkpoint: of all ranks together each number once."""
        return self.fragments() if self.stage else shares(self.fragments(), self.ranks.rank, self.ranks.count)

    def shapes(self) -> dict[str, list[int]]:
        """The full shape of every parameter."""
        return {name: list(getattr(p, "ds_shape", p.shape)) for name, p in self.parameters()}

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
