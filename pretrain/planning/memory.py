"""Predicts the memory of training by part: what DeepSpeed and autograd will keep for a recipe.

Letters of shapes as in `pretrain.model.transformer`; N parameters, R ranks, n = B T tokens of a micro-batch on a rank,
s bytes of a number in the precision of the forward pass.

States (weights, gradients, optimizer): ZeRO, arXiv:1910.02054, section 5, with the buffers that DeepSpeed 0.19 really
makes (runtime/zero/stage_1_and_2.py, stage3.py) and gradients summed in fp32. Activations: counted as in Korthikanti et
al., arXiv:2205.05198, section 4, for the operations of `pretrain.model.transformer`; tests compare with what autograd
saves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from configs.schema.model import Model
from pretrain.sizes.flops import block_parameters, count_parameters
from pretrain.sizes.limits import (
    LONGEST_PRODUCT_ATTENTION,
    MUON_ROUND_ELEMENTS,
    PREFETCH_BATCHES,
    chunk_positions,
)

PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "overhead")
# DeepSpeed's defaults, in numbers: its bucket of gradients, and the weights that stage 3 keeps whole or fetches ahead.
BUCKET, LIVE, PREFETCH = 500_000_000, 1_000_000_000, 50_000_000
# Measured with a model of next to nothing. On a CPU: Python and all libraries in use after a first step. On a GPU:
# cuBLAS's workspace, which torch allocates; the driver's context lies outside what torch counts.
CPU_OVERHEAD, CPU_OVERHEAD_ZERO, CPU_COMPILER, GPU_OVERHEAD, GPU_CONTEXT = 375e6, 425e6, 65e6, 70e6, 700e6
# What glibc's allocator keeps beside tensors that come and go, as a share of them; with MALLOC_MMAP_THRESHOLD_=65536 it
# is nearly nothing. Larger tensors are mapped by themselves, and go back to the system (DEFAULT_MMAP_THRESHOLD_MAX).
CPU_WASTE, MAPPED_BYTES = 0.40, 32 * 2**20
_BATCH_BYTES = 20  # of a token: its id, its target, its weight


@dataclass(frozen=True)
class Setup:
    """The settings of training that memory depends on."""

    precision: str  # bf16, fp16, fp32, or fp8, which keeps what bf16 does
    ranks: int
    micro_batch: int  # sequences
    accumulation: int
    stage: int
    offload: bool = False  # of the optimizer's state to host memory
    checkpointing: str = "none"  # none, selective or full
    optimizer: str = "adamw"
    compiled: bool = False
    cpu: bool = False
    checkpoint_copy: bool = True  # asynchronous checkpoints keep a copy in host memory
    bucket: int = BUCKET
    loss_chunk: int | None = None  # positions
    sequence: int = 1  # ranks that share a row, and with it activations
    offload_weights: bool = False  # of weights that are not in use to host memory (stage 3)
    overhead: float | None = None  # bytes that no part explains, as a probe measured; None: assumed
    waste: float | None = None  # of CPU_WASTE's kind, as a probe measured; None: assumed

    @property
    def element(self) -> int:
        """Bytes of a number in the forward pass."""
        return 4 if self.precision == "fp32" else 2

    @property
    def residual(self) -> int:
        """Bytes of a number in the residual stream: autocast leaves it in fp32."""
        return 4 if self.real_stage == 0 else self.element

    @property
    def real_stage(self) -> int:
        """The stage that DeepSpeed runs: stage 0 in fp16 is stage 1 (see `pretrain.engine.deepspeed_config`)."""
        return 1 if self.stage == 0 and self.precision == "fp16" else self.stage


@dataclass(frozen=True)
class Memory:
    """Bytes per rank at the moment of the step that needs most; `host` beside a GPU, 0 on a CPU."""

    parts: dict[str, float]
    host: float
    moment: str

    @property
    def total(self) -> float:
        """All parts."""
        return sum(self.parts.values())


def memory(config: Model, rows: int, setup: Setup) -> Memory:
    """Peak memory per rank: the largest of four moments of a step.

    *loss*: all activations and the logits. *backward*: all activations, the first gradients, DeepSpeed's bucket.
    *reduce*: all gradients, no activations. *update*: the optimizer's own gradients.
    """
    counted = count_parameters(config, rows).total
    tokens = setup.micro_batch * config.context_length // setup.sequence
    states = _states(config, rows, counted, setup)
    kept = activation_bytes(config, setup) * tokens
    logits_most = logits_bytes(config, rows, setup, tokens)
    working = _working_bytes(config, setup) * tokens
    # Stages 1 and 3 keep their sums of gradients from step to step, whatever is in them.
    carried = states.carried if setup.accumulation > 1 or setup.real_stage in (1, 3) else 0.0
    head = min(states.carried, 4.0 * rows * config.hidden_size)
    moments = {
        "loss": (carried, kept, logits_most, 0.0),
        "backward": (max(carried, head), kept + working, 0.0, 0.0 if setup.cpu else states.bucket),
        "reduce": (states.reduced, 0.0, 0.0, states.bucket),
        "update": (states.updating, 0.0, 0.0, muon_bytes(config, setup)),
    }
    moment = max(moments, key=lambda name: sum(moments[name]))
    gradients, activations, logits, bucket = moments[moment]
    copy = states.own * (4.0 + _moment_bytes(config, rows, setup)) if setup.checkpoint_copy else 0.0
    host = copy + states.host
    parts = {
        "weights": states.weights,
        "gradients": gradients,
        "optimizer": states.optimizer,
        "activations": activations,
        "logits": logits,
        "buffers": states.buffers
        + bucket
        + ((PREFETCH_BATCHES + 1) * _batch_bytes(tokens, setup) + host if setup.cpu else 0.0),
        "overhead": _overhead(setup, activations + (logits if 4 * rows * tokens < MAPPED_BYTES else 0.0)),
    }
    return Memory(parts, 0.0 if setup.cpu else host, moment)


def _overhead(setup: Setup, passing: float) -> float:
    if not setup.cpu:
        return GPU_OVERHEAD if setup.overhead is None else setup.overhead
    libraries = (CPU_OVERHEAD_ZERO if setup.real_stage else CPU_OVERHEAD) + CPU_COMPILER * setup.compiled
    waste = CPU_WASTE if setup.waste is None else setup.waste
    return (libraries if setup.overhead is None else setup.overhead) + waste * passing


def _batch_bytes(tokens: int, setup: Setup) -> float:
    return float(_BATCH_BYTES * tokens * setup.accumulation)


# --------------------------------------------------------------------------------------- weights, gradients, optimizer
@dataclass(frozen=True)
class _States:
    """Bytes on the device, unless said otherwise."""

    own: float  # numbers (not bytes) whose optimizer state this rank keeps
    weights: float
    optimizer: float
    carried: float  # gradients between micro-batches
    reduced: float  # gradients when all are there
    updating: float  # gradients during the update
    bucket: float  # of gradients on their way
    buffers: float  # there all the time
    host: float


def _states(config: Model, rows: int, counted: int, setup: Setup) -> _States:
    """Stage 0: all of it on every rank, 4 + 4 + moments; in bf16 also autocast's copy of the weights.

    Stage 1 sums gradients up on all of N in fp32, reduces them through a bucket of fp32 numbers, and keeps a flat fp32
    part for the update; stage 2 keeps only that part, through a bucket of s bytes. Stage 3 keeps weights in parts as
    well, and up to 1.05e9 of them whole; a second flat part of fp32 gradients is made for the update.
    """
    element, stage = setup.element, setup.real_stage
    own = counted / (setup.ranks if stage else 1)
    moments = _moment_bytes(config, rows, setup) * own
    if stage == 0:
        bucket = 4.0 * counted if setup.ranks > 1 else 0.0
        weights = (4.0 if setup.precision == "fp32" else 6.0) * counted
        return _States(own, weights, moments, 4.0 * counted, 4.0 * counted, 4.0 * counted, bucket, 0.0, 0.0)
    master, part = 4.0 * own, 4.0 * own
    whole = 4.0 * counted if stage == 1 else part
    # Pages that nobody writes to are no memory on a CPU; on a GPU the bucket is as large as it is.
    numbers = min(setup.bucket, counted) if setup.cpu else setup.bucket
    bucket = float(numbers * (4 if stage == 1 else element))
    updating = part + (part if stage == 3 or setup.precision == "fp32" else 0.0)
    reduced = whole + part if stage == 1 else part
    if stage == 3:
        # With offloaded weights the whole ones are fetched into the same allowance.
        live = element * float(min(counted, LIVE + PREFETCH)) if setup.ranks > 1 or setup.offload_weights else 0.0
        weights = (0.0 if setup.offload_weights else element * own) + live
    else:
        weights = float(element * counted)
    host = element * own if setup.offload_weights else 0.0
    optimizer = master + moments
    if setup.offload:  # fp32 weights, moments and gradients, and a copy of the part in the forward's precision
        host, optimizer = host + optimizer + part + element * own, 0.0
        reduced, updating = reduced - part, updating - part
        if stage > 1:
            whole = 0.0
    return _States(own, weights, optimizer, whole, reduced, updating, bucket, 0.0, host)


def _moment_bytes(config: Model, rows: int, setup: Setup) -> float:
    """Bytes of optimizer moments per parameter: AdamW two in fp32; Muon one for the matrices of the blocks."""
    if setup.optimizer != "muon":
        return 8.0
    counted = count_parameters(config, rows).total
    return 8.0 - 4.0 * config.num_layers * block_parameters(config) / counted


# ----------------------------------------------------------------------------------------------------------- activatio
def muon_bytes(config: Model, setup: Setup) -> float:
    """Bytes that Muon's iterations work with on a rank: of a round's matrices the update and two copies."""
    if setup.optimizer != "muon":
        return 0.0
    own = config.num_layers * block_parameters(config) / setup.ranks
    return (4.0 + 2 * setup.element) * min(own, MUON_ROUND_ELEMENTS)


def activation_bytes(config: Model, setup: Setup) -> float:
    """Bytes per token that the forward pass keeps for the backward pass, without logits.

    With `full` checkpointing: the input of each block and all of one block, which is computed again. With `selective`
    beside the input: the outputs of the products for qkv, out and up, and attention's.
    """
    element = setup.element
    block = block_bytes(config, setup)
    ends = _norm_bytes(config, setup) + 8.0  # the last norm; tokens or targets
    if setup.checkpointing == "none":
        return config.num_layers * block + ends
    kept = float(element * config.hidden_size)
    if setup.checkpointing == "selective":
        inner = config.num_heads * config.head_width
        numbers = _qkv(config) + inner + (config.hidden_size if inner <= config.hidden_size else 0) + _up(config)
        kept += element * numbers + 4.0 * config.num_heads
    return config.num_layers * kept + block + ends


def block_bytes(config: Model, setup: Setup) -> float:
    """Bytes per token that one block keeps.

    Eager: inputs and outputs of norms, qkv (values are a view of it), rotated queries and keys, attention's output with
    its log-sum-exp, and what the activation function multiplies. Compiled: the same without what is cheap to compute
    again (torch's min-cut partitioner).
    """
    element, heads, width = setup.element, config.num_heads, config.head_width
    inner, keys = heads * width, config.kv_heads * width
    rope = inner + keys if config.position == "rope" else 0
    attention = element * (_qkv(config) + rope + inner) + 4.0 * heads
    if config.value_residual:
        attention += element * 2 * keys
    mlp = element * config.mlp_width * (2 if config.activation != "swiglu" else 3 if setup.compiled else 4)
    if config.activation == "relu2" and not setup.compiled:
        mlp += element * config.mlp_width
    norms = 2 * _norm_bytes(config, setup)
    if config.qk_norm:
        # In steps: the normalised heads in fp32, and the heads themselves where fp32 is not what they are.
        copies = (8.0 if element == 2 else 4.0) if _in_steps(setup) else 0.0
        norms += 4.0 * (heads + config.kv_heads) + copies * (inner + keys)
    if setup.compiled and setup.cpu and config.context_length <= LONGEST_PRODUCT_ATTENTION:
        attention += (
            element * heads * (_seen_on_average(config.context_length) if config.causal else config.context_length)
        )  # `pretrain.model.attention`: its weights
    drop = config.dropout > 0
    return attention + mlp + norms + (2.0 * config.hidden_size * (element if setup.cpu else 1) if drop else 0.0)


def _seen_on_average(length: int) -> float:
    """Keys a query is multiplied with, in blocks of 128 or more queries that see those up to their block's end."""
    block = max(128, length // 4) if length >= 128 else length
    return (length + block) / 2


def _qkv(config: Model) -> int:
    return (config.num_heads + 2 * config.kv_heads) * config.head_width


def _up(config: Model) -> int:
    return config.mlp_width * (2 if config.activation == "swiglu" else 1)


def _in_steps(setup: Setup) -> bool:
    """Whether RMSNorm is a chain of fp32 operations (eager on a CPU) and not one kernel."""
    return setup.cpu and not setup.compiled


def _norm_bytes(config: Model, setup: Setup) -> float:
    """Bytes per token of one norm over the residual stream: its input, its output, a statistic or two in fp32."""
    width = config.hidden_size
    ends = float(setup.residual + setup.element) * width
    if config.norm == "layernorm":
        return ends + (2.0 * setup.residual if setup.cpu else 8.0)
    if _in_steps(setup):  # the input and the normalised input in fp32, and the output
        return (8.0 + setup.element) * width + 4.0
    return ends + 4.0


def _working_bytes(config: Model, setup: Setup) -> float:
    """Bytes per token that the backward pass of a block works with: gradients of the MLP's inner width, of a norm."""
    gradients = setup.element * (_up(config) + config.mlp_width + 2 * config.hidden_size)
    return gradients + (12.0 * config.hidden_size if _in_steps(setup) else 0.0)


def logits_bytes(config: Model, rows: int, setup: Setup, tokens: int) -> float:
    """The most bytes that the projection to the vocabulary and its loss need (`pretrain.model.cross_entropy`).

    All positions at once: log-probabilities in fp32, their gradient and the logits' beside them; compiled, the logits
    and their gradient in the forward's precision. In chunks: one chunk's logits, their fp32 copy and log-probabilities,
    and the gradients of the matrix (fp32, and in its own precision twice) and of the hidden states.
    """
    chunk = chunk_positions(rows, setup.loss_chunk)
    capped = 2.0 * setup.element if config.logit_softcap is not None else 0.0
    if tokens <= chunk:
        return (2.0 * setup.element if setup.compiled else 12.0 + capped) * rows * tokens
    matrix = (4.0 + 2 * setup.element) * rows * config.hidden_size
    return (8.0 + setup.element) * rows * chunk + matrix + setup.element * config.hidden_size * tokens


def variants(setup: Setup, offload: bool) -> list[Setup]:
    """The same at every ZeRO stage, and with the optimizer in host memory where there is another memory."""
    stages = {"fp16": range(1, 4), "fp8": range(3)}.get(setup.precision, range(4))
    choices = [replace(setup, stage=stage, offload=False) for stage in stages]
    choices = [replace(one, offload_weights=setup.offload_weights and one.stage == 3) for one in choices]
    if offload and not setup.cpu:
        choices += [replace(setup, stage=stage, offload=True) for stage in stages if stage]
    return choices
