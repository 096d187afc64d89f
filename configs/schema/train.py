"""Defines the recipe's `train` section: optimizer, schedule, ZeRO, checkpoints, faults and run length.

Names or descriptions give the units. *Sequences* are windows of `model.context_length` tokens, *tokens* are target
positions.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from configs.schema.objectives import Objective
from configs.schema.section import PathText, Section
from configs.schema.validation import CURVE, ValidationPolicy, more_is_better


class MuonPolicy(Section):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon), for `name: muon`."""

    lr: float = Field(0.02, gt=0, description="Peak learning rate of Muon. It follows the same schedule.")
    momentum: float = Field(0.95, ge=0, lt=1, description="Decay of the moving average of gradients.")
    nesterov: bool = Field(True, description="Use Nesterov momentum.")
    steps: int = Field(5, ge=1, le=20, description="Number of Newton-Schulz iterations.")
    polynomial: Literal["jordan", "polar_express"] = Field(
        "jordan",
        description="Polynomial of the iterations. jordan: the same in each. polar_express: the optimal one for each "
        "(arXiv:2505.16932), so that three or four iterations may be enough.",
    )
    weight_decay: float | None = Field(
        None, ge=0, description="Decoupled weight decay; null: `train.optimizer.weight_decay`."
    )
    scale: Literal["spectral", "adamw_rms"] = Field(
        "spectral",
        description="Scale of an orthogonal update of shape (R, C). spectral: max(1, R / C)^0.5. adamw_rms: "
        "0.2 max(R, C)^0.5, which has the RMS of an AdamW update, so that `muon.lr` is chosen like `lr` (Moonlight, "
        "arXiv:2502.16982).",
    )


class Optimizer(Section):
    """AdamW with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101), alone or beside Muon."""

    name: Literal["adamw", "muon"] = Field(
        "adamw",
        description="Optimizer. muon: Muon for the matrices inside the blocks, AdamW for embeddings, head, norms and "
        "biases.",
    )
    lr: float = Field(6e-4, gt=0, description="Peak learning rate of AdamW.")
    embedding_lr: float | None = Field(
        None, gt=0, description="Peak learning rate of token and position embeddings and of a tied head; null: `lr`."
    )
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = Field(
        [0.9, 0.95], description="Decay rates of AdamW's two moments."
    )
    eps: float = Field(1e-8, gt=0, description="Epsilon in AdamW's denominator.")
    weight_decay: float = Field(
        0.1, ge=0, description="Decoupled weight decay of matrices and embeddings; norms and biases have none."
    )
    muon: MuonPolicy = MuonPolicy()


class Schedule(Section):
    """Learning rate schedule: linear warm-up, then a curve."""

    kind: Literal["cosine", "wsd", "linear", "constant"] = Field(
        "cosine",
        description="Curve after warm-up. wsd: constant, then linear decay over the last `decay_fraction` "
        "(arXiv:2405.18392).",
    )
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up from zero to the peak.")
    min_lr_ratio: float = Field(0.1, ge=0, le=1, description="Final learning rate as a fraction of the peak.")
    decay_fraction: float = Field(0.2, gt=0, le=1, description="wsd only: share of all steps in the decay.")


class Zero(Section):
    """DeepSpeed ZeRO (Rajbhandari et al., arXiv:1910.02054)."""

    stage: Literal[0, 1, 2, 3] = Field(
        1,
        description="State partitioned over ranks. 0: nothing. 1: optimizer state. 2: also gradients. 3: also weights.",
    )
    offload_optimizer: Literal["none", "cpu"] = Field(
        "none",
        description="cpu: keep optimizer state and fp32 weights in host memory, and update there (stages 1 to 3). true "
        "and false mean cpu and none.",
    )
    offload_parameters: Literal["none", "cpu"] = Field(
        "none", description="cpu: keep unused weights in host memory (stage 3)."
    )

    @field_validator("offload_optimizer", "offload_parameters", mode="before")
    @classmethod
    def _offload_by_name(cls, value: Any) -> Any:
        if value == "nvme":
            raise ValueError("nvme is not supported (docs/large-models.md explains why); use cpu and more ranks")
        return ("cpu" if value else "none") if isinstance(value, bool) else value


class Parallel(Section):
    """Sequence and tensor parallelism, in addition to ZeRO; see docs/large-models.md."""

    sequence: int = Field(
        1,
        ge=1,
        description="Number of ranks that share a row of the batch, each with a slice of its tokens (Ulysses, "
        "arXiv:2309.14509). Use it if the activations of a context do not fit on one rank. Heads, key/value heads and "
        "context_length must be multiples of it.",
    )
    tensor: int = Field(
        1,
        ge=1,
        description="Number of ranks that share the matrices of each block (DeepSpeed AutoTP), at ZeRO stages 0 to 2 "
        "with AdamW. Heads, key/value heads and the MLP's width must be multiples of it.",
    )

    @property
    def sharing(self) -> int:
        """Number of consecutive ranks that compute the same rows of the batch, or slices of them."""
        return self.sequence * self.tensor


class CheckpointPolicy(Section):
    """Saving and retention of checkpoints; see docs/checkpoints.md."""

    every: int = Field(1000, ge=1, description="Steps between checkpoints. The last step is always saved.")
    keep: int = Field(2, ge=1, description="Number of newest checkpoints to keep.")
    keep_every: int | None = Field(
        None, ge=1, description="Never delete checkpoints of steps that are multiples of this."
    )
    keep_best: int = Field(
        0,
        ge=0,
        description="Number of checkpoints to keep in addition, those that are best by `best_by`. `every` must then be "
        "a multiple of the steps between its measurements.",
    )
    best_by: str = Field(
        "val/loss",
        pattern=r"^(val|eval)/\S+$",
        description="Curve that decides which checkpoint is the best, for `keep_best` and `--best`: `val/loss`, "
        "`val/reward`, …, or a score of `train.validation.evaluation` behind `eval/`, such as "
        "`eval/benchmark/piqa/acc`. Whether less or more of it is better is known.",
    )
    asynchronous: bool = Field(
        True,
        description="Write during training, from a copy in host memory of 12 bytes per parameter, over all ranks.",
    )
    mirror: str | None = Field(
        None,
        description="fsspec URL (s3://…, gs://…, file://…) for this run alone. Checkpoints are copied there after each "
        "commit. An empty run directory starts from the newest one there.",
    )
    mirror_options: dict[str, Any] = Field({}, description="Options for fsspec with the mirror.")
    accept_changed: list[Literal["global_batch_size", "data"]] = Field(
        [],
        description="Continue even if these changed since the checkpoint. The step is kept, and the position in the "
        "data is step x global_batch_size; see docs/resume.md.",
    )


class Faults(Section):
    """Reaction to a non-finite loss or a loss spike; see docs/faults.md."""

    action: Literal["record", "stop", "skip", "rewind"] = Field(
        "record",
        description="Action on a loss spike. record: write the batch's documents to `RUN/faults/` and continue. stop: "
        "stop before the update. skip: make no update with this batch. rewind: go back to the newest checkpoint, and "
        "skip the batches from there to this one. On a non-finite loss or gradient, skip and rewind do the same; "
        "record and stop end the run.",
    )
    zscore: float = Field(
        10.0,
        gt=0,
        description="A loss is a spike if it is this many robust standard deviations (1.4826 MAD) above the median.",
    )
    window: int = Field(
        128, ge=8, description="Number of recent losses for the median. With less than half of them, none is a spike."
    )
    rewind_steps: int | None = Field(
        None,
        ge=1,
        description="rewind only: number of batches to skip, with the spike's batch as the last; null: all since the "
        "checkpoint.",
    )
    max_skips: int = Field(3, ge=0, description="Maximum number of skips and rewinds in a run. The next one stops it.")


class Watch(Section):
    """Detection of stuck, slow and diverged ranks; see docs/faults.md."""

    timeout_seconds: float = Field(
        900.0,
        gt=0,
        description="End the run if a collective, or a phase of a rank, takes longer. It must exceed the time of a "
        "save.",
    )
    heartbeat_seconds: float = Field(5.0, gt=0, description="Seconds between heartbeats of a rank in `RUN/ranks/`.")
    compare_every: int = Field(
        100, ge=0, description="Steps between comparisons of ranks: replicated weights, and speed; 0: never."
    )
    slow_ratio: float = Field(
        1.5, gt=1, description="A rank is slow if its computing time is this many times the median."
    )


class WandB(Section):
    """Logging to Weights & Biases (`pip install wandb`)."""

    project: str = Field(description="Project in Weights & Biases.")
    entity: str | None = Field(None, description="User or team; null: your default.")
    name: str | None = Field(None, description="Name of the run in Weights & Biases; null: the recipe's name.")


class Train(Section):
    """Training."""

    steps: int | None = Field(None, ge=1, description="Optimizer steps. Set exactly one of steps, tokens and epochs.")
    tokens: int | None = Field(None, ge=1, description="Target tokens to train on, rounded up to whole steps.")
    epochs: float | None = Field(None, gt=0, description="Passes over the training split, rounded up to whole steps.")
    init_from: PathText | None = Field(
        None,
        description="Start from the weights of a run directory, a checkpoint or a Hugging Face directory, with a new "
        "optimizer; `model.context_length`, rope_scaling, rope_theta and dropout may differ.",
    )
    tokens_per_parameter: float | None = Field(
        None,
        gt=0,
        description="With `model.size` or `model.depth`: training tokens per parameter; null: 20 (docs/scaling.md).",
    )
    global_batch_size: int = Field(64, ge=1, description="Sequences per optimizer step, over all ranks.")
    packing: Literal["stream", "best_fit"] = Field(
        "stream",
        description="stream: cut the token stream every context_length tokens. best_fit: place whole documents side "
        "by side, cut only longer ones, and fill up with padding (arXiv:2404.10830). Use best_fit with "
        "document_masking. See docs/batches.md.",
    )
    document_masking: bool = Field(
        False,
        description="Let tokens attend only within their own document, and count positions from its beginning; see "
        "docs/batches.md.",
    )
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="Sequences per rank and forward pass; null: the largest number up to 16 that divides evenly.",
    )
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    grad_clip: float = Field(1.0, ge=0, description="Maximum global gradient norm; 0: no clipping.")
    precision: Literal["auto", "bf16", "fp32", "fp16", "fp8"] = Field(
        "auto",
        description="auto: bf16 if the hardware supports it (GPU; CPU with AVX512-BF16 or AMX), else fp32. fp16 "
        "needs a GPU. fp8: bf16, with the matrix products of the blocks' linear layers in fp8. It needs torchao, a "
        "GPU of the Ada or Hopper generation or newer, and ZeRO stage 0 to 2 (docs/large-models.md).",
    )
    zero: Zero = Zero()
    parallel: Parallel = Parallel()
    activation_checkpointing: Literal["none", "selective", "full"] = Field(
        "none",
        description="Recompute activations in the backward pass instead of storing them. selective: all except the "
        "outputs of matrix products and attention. full: all except the block's input. true and false mean full and "
        "none.",
    )
    objective: Objective | None = Field(
        None,
        description="Training objective; null: cross-entropy of the next token. `kind` names one of the stages after "
        "the base (docs/assistant.md), `code` a `LossModule` of one's own, whose validation stays in nats.",
    )
    loss_chunk: int | None = Field(
        None,
        ge=1,
        description="Number of positions whose logits are in memory at a time; null: 64 million logits. It changes "
        "memory, not the loss.",
    )
    compile: Literal["auto"] | bool = Field(
        "auto",
        description="Compile the model with torch.compile. auto: if the run is long enough to save time (1e13 "
        "operations per rank on CPU, 2e16 on GPU), at ZeRO stages 0 to 2, with a compiler installed. Before the "
        "first step, compiled code is compared with plain code. If they differ, auto trains uncompiled with a "
        "warning, and true stops with an error.",
    )
    deterministic: Literal["auto"] | bool = Field(
        "auto",
        description="Use deterministic algorithms: the same command on the same machine with as many ranks and threads "
        "gives bitwise the same values. auto: on CPUs only. true: on GPUs too, at a cost that is not measured. An "
        "operation without a deterministic algorithm stops the run. See docs/numerics.md.",
    )
    faults: Faults = Faults()
    watch: Watch = Watch()
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    validation: ValidationPolicy = ValidationPolicy()
    log_every: int = Field(10, ge=1, description="Steps between lines of metrics.jsonl.")
    ranks: int | None = Field(None, ge=1, description="Ranks on this machine; null: one per GPU, or one on CPU.")
    tensorboard: bool = Field(True, description="Also write TensorBoard files.")
    wandb: WandB | None = Field(None, description="Also log to Weights & Biases.")

    @field_validator("activation_checkpointing", mode="before")
    @classmethod
    def _checkpointing_by_name(cls, value: Any) -> Any:
        return ("full" if value else "none") if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _settings_fit(self) -> Train:
        given = [name for name in ("steps", "tokens", "epochs") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of steps, tokens and epochs (given: {', '.join(given) or 'none'})")
        _check_best(self.checkpoint, self.validation)
        return self


def _check_best(saves: CheckpointPolicy, measured: ValidationPolicy) -> None:
    """Raises `ValueError` when the best checkpoint is to be kept by what is not measured at each."""
    if not saves.keep_best:
        return
    curve = saves.best_by.startswith(CURVE)
    if not curve and more_is_better(saves.best_by) is None:
        raise ValueError(f"checkpoint.best_by {saves.best_by}: neither more nor less of it is known to be better")
    if curve and not measured.evaluation.parts:
        raise ValueError(
            f"checkpoint.best_by {saves.best_by} is a score, but validation.evaluation.parts names none; add its part, "
            f"such as {saves.best_by.removeprefix(CURVE).rpartition('/')[0]}"
        )
    every, key = measured.every, "validation.every"
    if curve:
        every, key = measured.evaluation_every, "validation.evaluation.every"
    if saves.every % every:
        raise ValueError(
            f"checkpoint.keep_best needs a validation at every checkpoint, but {saves.every} (checkpoint.every) is "
            f"not a multiple of {every} ({key}); change one of them"
        )
