"""The recipe's sections: every setting of a run, its type, default, bounds and meaning.

Units are part of the names or the descriptions: *sequences* are windows of `model.context_length` tokens, *tokens* are
target positions, *bytes* are UTF-8 bytes of normalised text. The descriptions become `docs/recipe.md` and the JSON
schema.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from configs.section import PathText, Section

# --------------------------------------------------------------------------------------------------------------- model
_FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"position": "learned", "norm": "layernorm", "activation": "gelu", "bias": True, "tied_embeddings": True},
    "llama": {"position": "rope", "norm": "rmsnorm", "activation": "swiglu", "bias": False, "tied_embeddings": False},
}


class Model(Section):
    """A decoder-only transformer. `family` sets the defaults of the choices below it; each can be set alone."""

    family: Literal["gpt2", "llama"] = Field(
        "llama", description="Defaults for position, norm, activation, bias and tied_embeddings."
    )
    num_layers: int = Field(12, ge=1, description="Transformer blocks.")
    hidden_size: int = Field(768, ge=8, description="Width of the residual stream.")
    num_heads: int = Field(12, ge=1, description="Query heads.")
    num_kv_heads: int | None = Field(
        None, ge=1, description="Key/value heads (grouped-query attention); null: `num_heads`."
    )
    head_dim: int | None = Field(None, ge=2, description="Width of a head; null: hidden_size / num_heads.")
    intermediate_size: int | None = Field(
        None,
        ge=1,
        description="Width inside the MLP; null: 4 x hidden_size (gelu), 8/3 x up to a multiple of 64 (swiglu).",
    )
    context_length: int = Field(1024, ge=2, description="Tokens a window holds, in training and in evaluation.")
    position: Literal["learned", "rope"] = Field(
        "rope", description="Learned absolute positions, or rotary embeddings."
    )
    norm: Literal["layernorm", "rmsnorm"] = Field("rmsnorm", description="Normalisation before each part of a block.")
    activation: Literal["gelu", "swiglu"] = Field("swiglu", description="gelu is the tanh form of GPT-2.")
    bias: bool = Field(False, description="Biases in linear layers and LayerNorms.")
    tied_embeddings: bool = Field(False, description="One matrix for the input embedding and the output projection.")
    qk_norm: bool = Field(False, description="RMSNorm over each query and key head before rotation (Qwen3).")
    rope_theta: float = Field(10000.0, gt=0, description="Base of the rotary frequencies.")
    norm_eps: float = Field(1e-5, gt=0, description="Epsilon of the norms.")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout on embeddings, attention weights and residual branches."
    )
    init_std: float = Field(0.02, gt=0, description="Standard deviation of the initial weights.")
    vocab_size: int | None = Field(None, ge=2, description="Rows of the embedding; null: the tokenizer's size, padded.")
    vocab_multiple: int = Field(64, ge=1, description="The vocabulary is padded up to a multiple of this for speed.")

    @model_validator(mode="before")
    @classmethod
    def _fill_from_family(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        defaults = _FAMILIES.get(values.get("family", "llama"), {})
        return {**defaults, **values}

    @model_validator(mode="after")
    def _shapes_fit(self) -> Model:
        if self.head_dim is None and self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}; "
                "set head_dim or change one"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.kv_heads}")
        if self.position == "rope" and self.head_width % 2:
            raise ValueError(f"rotary embeddings need an even head width, not {self.head_width}")
        return self

    @property
    def kv_heads(self) -> int:
        """Key/value heads after defaults."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        """Width of one head after defaults."""
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def mlp_width(self) -> int:
        """Width inside the MLP after defaults (swiglu: Shazeer 2020, arXiv:2002.05202, keeps the parameter count)."""
        if self.intermediate_size:
            return self.intermediate_size
        if self.activation == "gelu":
            return 4 * self.hidden_size
        return -(-8 * self.hidden_size // 3 // 64) * 64 if self.hidden_size >= 64 else 3 * self.hidden_size

    def padded_vocab(self, tokenizer_size: int) -> int:
        """Embedding rows for a tokenizer of this size; raises `ValueError` when `vocab_size` is too small for it."""
        if self.vocab_size is None:
            return -(-tokenizer_size // self.vocab_multiple) * self.vocab_multiple
        if self.vocab_size < tokenizer_size:
            raise ValueError(
                f"model.vocab_size is {self.vocab_size}, but the tokenizer has {tokenizer_size} tokens; "
                "raise it or leave it null"
            )
        return self.vocab_size


# --------------------------------------------------------------------------------------------------------------- train
class Optimizer(Section):
    """AdamW with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101) on matrices only."""

    name: Literal["adamw"] = Field("adamw", description="The update rule.")
    lr: float = Field(6e-4, gt=0, description="Peak learning rate.")
    betas: Annotated[list[float], Field(min_length=2, max_length=2)] = Field(
        [0.9, 0.95], description="Decay of the two moments."
    )
    eps: float = Field(1e-8, gt=0, description="Added to the denominator.")
    weight_decay: float = Field(0.1, ge=0, description="Applied to matrices and embeddings, not to norms and biases.")


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
    offload_optimizer: bool = Field(False, description="Keep the optimizer's state in host memory (stages 1-3, GPU).")


class CheckpointPolicy(Section):
    """When to save and what to keep."""

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
        description="Go on although this changed since the checkpoint. The step stays, and with it the place in the "
        "data, step x global_batch_size: windows before it are not trained on again, those between are passed over.",
    )


class ValidationPolicy(Section):
    """Loss on the validation split during training."""

    every: int = Field(250, ge=1, description="Steps between validations; the last step is always validated.")
    max_tokens: int = Field(200_000, ge=1, description="Target tokens scored each time, from the start of the split.")


class Faults(Section):
    """What training does when numbers fall ill; see docs/reliability.md."""

    action: Literal["record", "stop", "skip", "rewind"] = Field(
        "record",
        description="On a loss spike. record: write the batch's documents to `RUN/faults/` and go on. stop: before the "
        "update. skip: no update with this batch. rewind: back to the newest checkpoint, and no updates from there to "
        "this batch. skip and rewind take a loss or gradient that is no number likewise; otherwise that stops.",
    )
    zscore: float = Field(
        10.0, gt=0, description="A spike: so many robust standard deviations (1.4826 MAD) above the median."
    )
    window: int = Field(
        128, ge=8, description="Steps whose losses make that median; the first half-window judges none."
    )
    rewind_steps: int | None = Field(
        None, ge=1, description="rewind only: batches left out, the spike's included; null: all since the checkpoint."
    )
    most: int = Field(3, ge=0, description="How often a run may skip or rewind; the next time stops it.")


class Watch(Section):
    """What training watches on all ranks; see docs/reliability.md."""

    timeout_seconds: float = Field(
        900.0,
        gt=0,
        description="A collective, or a rank's phase, that takes longer ends the run. Longer than any save.",
    )
    heartbeat_seconds: float = Field(5.0, gt=0, description="Seconds between a rank's signs of life in `RUN/ranks/`.")
    compare_every: int = Field(
        100, ge=0, description="Steps between comparisons of replicated weights over ranks, and of speeds; 0: never."
    )
    slow_ratio: float = Field(1.5, gt=1, description="A rank is slow when it computes this many times the median.")


class WandB(Section):
    """Weights & Biases, if wanted (`pip install wandb`)."""

    project: str
    entity: str | None = None
    name: str | None = None


class Train(Section):
    """The training run."""

    steps: int | None = Field(None, ge=1, description="Optimizer steps. Give exactly one of steps, tokens and epochs.")
    tokens: int | None = Field(None, ge=1, description="Target tokens to train on, rounded up to whole steps.")
    epochs: float | None = Field(None, gt=0, description="Passes over the training split, rounded up to whole steps.")
    global_batch_size: int = Field(64, ge=1, description="Sequences per optimizer step, over all ranks.")
    micro_batch_size: int | None = Field(
        None, ge=1, description="Sequences per rank and forward pass; null: as many as divide evenly, at most 16."
    )
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    grad_clip: float = Field(1.0, ge=0, description="Largest global gradient norm; 0 turns clipping off.")
    precision: Literal["auto", "bf16", "fp32", "fp16"] = Field(
        "auto",
        description="auto: bf16 where the hardware computes in it (GPU; CPU with AVX512-BF16 or AMX), else fp32. "
        "fp16 needs a GPU.",
    )
    zero: Zero = Zero()
    activation_checkpointing: bool = Field(
        False, description="Recompute blocks in the backward pass instead of storing them."
    )
    compile: bool = Field(False, description="torch.compile the model.")
    faults: Faults = Faults()
    watch: Watch = Watch()
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    validation: ValidationPolicy = ValidationPolicy()
    log_every: int = Field(10, ge=1, description="Steps between lines of metrics.jsonl.")
    ranks: int | None = Field(None, ge=1, description="Processes on this machine; null: one per GPU, or one on CPU.")
    tensorboard: bool = Field(True, description="Also write TensorBoard files.")
    wandb: WandB | None = Field(None, description="Also log to Weights & Biases.")

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


# ---------------------------------------------------------------------------------------------------------- evaluation
class PerplexitySet(Section):
    """Documents scored whole: perplexity per token, bits per byte."""

    name: str
    path: PathText = Field(description="Any file that data_prep reads.")
    text_field: str = "text"
    text_documents: Literal["file", "line", "paragraph"] = "file"
    stride: int | None = Field(
        None, ge=1, description="New tokens per window of context_length; null: half the context."
    )
    max_documents: int | None = Field(None, ge=1)


class TranslationSet(Section):
    """Pairs for BLEU; `path` is .jsonl(.gz/.zst) with one object per pair."""

    name: str
    path: PathText
    source_field: str = "source"
    target_field: str = "target"
    source_label: str = Field("Source", description="Written before a source sentence in the prompt.")
    target_label: str = Field("Target", description="Written before a translation in the prompt.")
    shots: int = Field(
        4, ge=0, description="Solved examples in the prompt, taken from the start of the file and not scored."
    )
    max_items: int | None = Field(None, ge=1)
    max_new_tokens: int = Field(96, ge=1)
    tokenize: str = Field(
        "13a", description="sacrebleu tokenizer: 13a, zh, ja-mecab, char, flores200, …; part of the signature."
    )


class Benchmarks(Section):
    """lm-eval tasks."""

    tasks: list[str] = Field([], description="Names known to lm-eval or found under `include_path`.")
    include_path: PathText | None = Field(None, description="Directory with task YAML files.")
    num_fewshot: int | None = Field(None, ge=0, description="Overrides the tasks' own number of examples.")
    limit: int | None = Field(None, ge=1, description="Only the first n items of each task (said in the report).")
    batch_size: int = Field(16, ge=1)


class Samples(Section):
    """Text to show in the report."""

    prompts: list[str] = Field(["Once upon a time"])
    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(0.8, ge=0)
    top_k: int | None = Field(None, ge=1)
    top_p: float | None = Field(0.95, gt=0, le=1)


class Evaluation(Section):
    """What is scored after training."""

    perplexity: list[PerplexitySet] = Field([])
    translation: list[TranslationSet] = Field([])
    benchmarks: Benchmarks = Benchmarks()
    samples: Samples = Samples()
    batch_size: int = Field(16, ge=1, description="Windows per forward pass; changes speed, never a score.")
    bootstrap_samples: int = Field(1000, ge=100, description="Resamples behind each 95% interval.")


class Report(Section):
    """The page and its gates."""

    title: str | None = None
    gates: list[str] = Field(
        [],
        description="`metric op value`, such as `perplexity/heldout/bits_per_byte < 2.4`; "
        "the value may be another metric's name.",
    )
