"""The recipe's `train` section: optimizer, schedule, ZeRO, checkpoints, faults, and the run itself.

Units are part of the names or the descriptions: *sequences* are windows of `model.context_length` tokens, *tokens* are
target positions.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from configs.schema.section import Custom, PathText, Section


class MuonPolicy(Section):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon), for `name: muon`."""

    lr: float = Field(0.02, gt=0, description="Peak learning rate of the matrices; it follows the same schedule.")
    momentum: float = Field(0.95, ge=0, lt=1, description="Decay of the average of gradients.")
    nesterov: bool = Field(True, description="Look one gradient ahead of that average.")
    steps: int = Field(5, ge=1, le=20, description="Newton-Schulz iterations.")
    polynomial: Literal["jordan", "polar_express"] = Field(
        "jordan",
        description="Of those iterations. jordan: the same each time. polar_express: the best one after those before "
        "it (arXiv:2505.16932), so that three or four may do.",
    )
    weight_decay: float | None = Field(None, ge=0, description="Decoupled; null: the optimizer's.")
    scale: Literal["spectral", "adamw_rms"] = Field(
        "spectral",
        description="Size of an orthogonal update of R x C numbers. spectral: max(1, R / C)^0.5. adamw_rms: "
        "0.2 max(R, C)^0.5, as large as AdamW's, so that `muon.lr` is chosen like `lr` (Moonlight, arXiv:2502.16982).",
    )


class Optimizer(Section):
    """AdamW with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101), alone or beside Muon."""

    name: Literal["adamw", "muon"] = Field(
        "adamw",
        description="The update rule. muon: Muon for the matrices inside the blocks, AdamW for embeddings, head, norms "
        "and biases.",
    )
    lr: float = Field(6e-4, gt=0, description="Peak learning rate of what AdamW updates.")
    embedding_lr: float | None = Field(
        None, gt=0, description="Peak for token and position embeddings, a tied head with them; null: `lr`."
    )
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = Field(
        [0.9, 0.95], description="Decay of the two moments."
    )
    eps: float = Field(1e-8, gt=0, description="Added to the denominator.")
    weight_decay: float = Field(0.1, ge=0, description="Applied to matrices and embeddings, not to norms and biases.")
    muon: MuonPolicy = MuonPolicy()


class Schedule(Section):
    """Learning rate over steps: linear warm-up, then this curve."""

    kind: Literal["cosine", "wsd", "linear", "constant"] = Field(
        "cosine",
        description="wsd: warm-up, stable, then linear decay over the last `decay_fraction` (arXiv:2405.18392).",
    )
    warmup_steps: int = Field(0, ge=0, description="Steps from zero to the peak.")
    min_lr_ratio: float = Field(0.1, ge=0, le=1, description="Last learning rate as a fraction of the peak.")
    decay_fraction: float = Field(0.2, gt=0, le=1, description="wsd only: share of all steps spent decaying.")


class Zero(Section):
    """DeepSpeed ZeRO (Rajbhandari et al., arXiv:1910.02054)."""

    stage: Literal[0, 1, 2, 3] = Field(
        1, description="What is partitioned over ranks: 1 optimizer, 2 + gradients, 3 + weights."
    )
    offload_optimizer: Literal["none", "cpu"] = Field(
        "none",
        description="Where the optimizer's state and the fp32 weights lie, and the update is made: cpu is host memory "
        "(stages 1 to 3). true and false are cpu and none.",
    )
    offload_parameters: Literal["none", "cpu"] = Field("none", description="Where unused weights lie (stage 3).")

    @field_validator("offload_optimizer", "offload_parameters", mode="before")
    @classmethod
    def _offload_by_name(cls, value: Any) -> Any:
        if value == "nvme":
            raise ValueError("nvme is not offered (docs/large-models.md says why); use cpu and more ranks")
        return ("cpu" if value else "none") if isinstance(value, bool) else value


class Parallel(Section):
    """How ranks share rows and matrices, beside ZeRO; see docs/large-models.md."""

    sequence: int = Field(
        1,
        ge=1,
        description="Ranks that share a row of the batch, each with a slice of its tokens (Ulysses, arXiv:2309.14509): "
        "for contexts whose activations do not fit one rank. Heads, key/value heads and context_length must be "
        "multiples.",
    )
    tensor: int = Field(
        1,
        ge=1,
        description="Ranks that share the matrices of each block (DeepSpeed AutoTP), at ZeRO stages 0 to 2 with AdamW. "
        "Heads, key/value heads and the MLP's width must be multiples.",
    )

    @property
    def sharing(self) -> int:
        """Consecutive ranks that have the same rows of the batch, or slices of them."""
        return self.sequence * self.tensor


class CheckpointPolicy(Section):
    """Saving and keeping checkpoints; see docs/checkpoints.md."""

    every: int = Field(1000, ge=1, description="Steps between checkpoints; the last step is always saved.")
    keep: int = Field(2, ge=1, description="Newest checkpoints kept.")
    keep_every: int | None = Field(
        None, ge=1, description="Checkpoints of steps that are multiples of this are kept for good."
    )
    keep_best: int = Field(
        0,
        ge=0,
        description="As many checkpoints with the lowest validation loss are kept as well; needs `every` to be a "
        "multiple of `train.validation.every`.",
    )
    asynchronous: bool = Field(
        True, description="Write beside training, from a copy in host memory: 12 bytes per parameter, over all ranks."
    )
    mirror: str | None = Field(
        None,
        description="fsspec URL (s3://…, gs://…, file://…) of this run's own: checkpoints are copied there after "
        "each commit, and an empty run directory starts from the newest there.",
    )
    mirror_options: dict[str, Any] = Field({}, description="Passed to fsspec with the mirror.")
    accept_changed: list[Literal["global_batch_size", "data"]] = Field(
        [],
        description="Continue although this changed since the checkpoint. The step stays, and the place in the data is "
        "step x global_batch_size; see docs/resume.md.",
    )


class ValidationPolicy(Section):
    """Loss on the validation split during training."""

    every: int = Field(250, ge=1, description="Steps between validations; the last step is always validated.")
    max_tokens: int = Field(200_000, ge=1, description="Target tokens scored each time, from the start of the split.")


class Faults(Section):
    """What to do on a NaN loss or a loss spike; see docs/faults.md."""

    action: Literal["record", "stop", "skip", "rewind"] = Field(
        "record",
        description="On a loss spike. record: write the batch's documents to `RUN/faults/` and go on. stop: stop "
        "before the update. skip: make no update with this batch. rewind: go back to the newest checkpoint, and make "
        "no updates from there to this batch. On a NaN or infinite loss or gradient skip and rewind do the same; "
        "record and stop end the run.",
    )
    zscore: float = Field(
        10.0, gt=0, description="A spike: a loss this many robust standard deviations (1.4826 MAD) above the median."
    )
    window: int = Field(
        128, ge=8, description="Steps whose losses make that median; no spike is reported before half of them."
    )
    rewind_steps: int | None = Field(
        None, ge=1, description="rewind only: batches left out, the spike's included; null: all since the checkpoint."
    )
    max_skips: int = Field(3, ge=0, description="How often a run may skip or rewind; the next time stops it.")


class Watch(Section):
    """Timeouts, heartbeats and comparisons between ranks; see docs/faults.md."""

    timeout_seconds: float = Field(
        900.0,
        gt=0,
        description="A collective, or a rank's phase, that takes longer ends the run. Longer than any save.",
    )
    heartbeat_seconds: float = Field(5.0, gt=0, description="Seconds between a rank's heartbeats in `RUN/ranks/`.")
    compare_every: int = Field(
        100, ge=0, description="Steps between comparisons of replicated weights over ranks, and of speeds; 0: never."
    )
    slow_ratio: float = Field(1.5, gt=1, description="A rank is slow when it computes this many times the median.")


class WandB(Section):
    """Weights & Biases, if wanted (`pip install wandb`)."""

    project: str = Field(description="Project there.")
    entity: str | None = Field(None, description="User or team; null: your default.")
    name: str | None = Field(None, description="Name of the run there; null: the recipe's name.")


class Train(Section):
    """The training run."""

    steps: int | None = Field(None, ge=1, description="Optimizer steps. Give exactly one of steps, tokens and epochs.")
    tokens: int | None = Field(None, ge=1, description="Target tokens to train on, rounded up to whole steps.")
    epochs: float | None = Field(None, gt=0, description="Passes over the training split, rounded up to whole steps.")
    init_from: PathText | None = Field(
        None,
        description="Start from the weights of a run directory, a checkpoint or a Hugging Face directory, with a fresh "
        "optimizer; `model.context_length`, rope_scaling, rope_theta and dropout may differ.",
    )
    tokens_per_parameter: float | None = Field(
        None,
        gt=0,
        description="With the dial of `model`: training tokens for each parameter; null: 20 (docs/scaling.md).",
    )
    global_batch_size: int = Field(64, ge=1, description="Sequences per optimizer step, over all ranks.")
    packing: Literal["stream", "best_fit"] = Field(
        "stream",
        description="stream: the stream cut every context_length tokens. best_fit: whole documents side by side, cut "
        "only where longer, the rest padding (arXiv:2404.10830); goes well with document_masking. See docs/batches.md.",
    )
    document_masking: bool = Field(
        False,
        description="Tokens attend only within their own document, and positions count from its beginning; "
        "see docs/batches.md.",
    )
    micro_batch_size: int | None = Field(
        None, ge=1, description="Sequences per rank and forward pass; null: as many as divide evenly, at most 16."
    )
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    grad_clip: float = Field(1.0, ge=0, description="Largest global gradient norm; 0 turns clipping off.")
    precision: Literal["auto", "bf16", "fp32", "fp16", "fp8"] = Field(
        "auto",
        description="auto: bf16 where the hardware computes in it (GPU; CPU with AVX512-BF16 or AMX), else fp32. "
        "fp16 needs a GPU. fp8: bf16, with the products of the blocks' linear layers in fp8; needs torchao, a GPU from "
        "Ada or Hopper on, and ZeRO stage 0 to 2 (docs/large-models.md).",
    )
    zero: Zero = Zero()
    parallel: Parallel = Parallel()
    activation_checkpointing: Literal["none", "selective", "full"] = Field(
        "none",
        description="Compute parts of each block again in the backward pass instead of storing them. selective: all "
        "but matrix products and attention; full: all but the block's input. true and false are full and none.",
    )
    objective: Custom | None = Field(
        None,
        description="What is trained, a `LossModule`; null: language modelling, the likelihood of the next "
        "token. Validation and evaluation are in nats whatever it is.",
    )
    loss_chunk: int | None = Field(
        None,
        ge=1,
        description="Positions whose logits are held at a time; null: as many as make 64 million logits. "
        "Changes memory, not the loss.",
    )
    compile: Literal["auto"] | bool = Field(
        "auto",
        description="torch.compile the model. auto: where it pays, that is in runs of 1e13 operations a rank (CPU) or "
        "2e16 (GPU) at ZeRO stages 0 to 2, with a compiler installed. Before the first step compiled code is compared "
        "with plain code: if they differ, auto trains uncompiled with a warning, and true is refused.",
    )
    deterministic: Literal["auto"] | bool = Field(
        "auto",
        description="Take algorithms that repeat bit for bit: the same command on the same machine with as many ranks "
        "and threads gives the same values. auto: on CPUs. true: on GPUs too, at a cost not measured here; an "
        "operation without such an algorithm stops the run. See docs/numerics.md.",
    )
    faults: Faults = Faults()
    watch: Watch = Watch()
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    validation: ValidationPolicy = ValidationPolicy()
    log_every: int = Field(10, ge=1, description="Steps between lines of metrics.jsonl.")
    ranks: int | None = Field(None, ge=1, description="Processes on this machine; null: one per GPU, or one on CPU.")
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
        saves, scores = self.checkpoint, self.validation.every
        if saves.keep_best and saves.every % scores:
            raise ValueError(
                f"checkpoint.keep_best needs a validation at every checkpoint: {saves.every} (checkpoint.every) is no "
                f"multiple of {scores} (validation.every)"
            )
        return self
