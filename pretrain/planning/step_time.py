"""Predicts the time of a training step. Assumptions stand beside the figures, and a probe replaces them."""

from __future__ import annotations

from dataclasses import dataclass

from configs.schema.model import Model
from pretrain.engine.devices import NETWORK_BYTES_PER_S, Device
from pretrain.planning.memory import Setup
from pretrain.sizes.flops import count_parameters, float8_share, flops_per_token

# Model FLOPs utilisation: assumed, least, most. GPU: published 0.41 to 0.60 (Megatron-LM, llm-foundry, llm.c), less for
# small models. CPU: measured 0.2 to 0.5 of the product of square matrices on two cores.
MFU_GPU, MFU_CPU = (0.40, 0.25, 0.55), (0.25, 0.12, 0.50)
# Tokens of a micro-batch at which a GPU reaches half of that: small products do not fill it. An assumption.
_HALF_TOKENS = 512.0
_UPDATE_BYTES = 30.0  # AdamW reads weight, gradient and two moments in fp32, writes three, and the forward's weight
_HOST_BYTES_PER_S = 100e9  # of a node's memory, for an optimizer kept there; an assumption
_RECOMPUTED = {"none": 0.0, "selective": 0.03, "full": 1 / 3}  # of the counted operations


@dataclass(frozen=True)
class Hardware:
    """The devices that a run is planned for."""

    device: Device
    per_node: int
    nodes: int = 1
    network: float = NETWORK_BYTES_PER_S  # bytes/s of each rank to other nodes
    probed: float | None = None  # the MFU that a probe measured

    @property
    def ranks(self) -> int:
        """All processes."""
        return self.per_node * self.nodes

    @property
    def mfu(self) -> tuple[float, float, float]:
        """Assumed, least, most."""
        if self.probed is not None:
            return self.probed, self.probed, self.probed
        return MFU_CPU if self.device.cpu else MFU_GPU


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step."""

    compute: float
    update: float
    communication: float
    total: float


def step_time(config: Model, rows: int, setup: Setup, hardware: Hardware, mfu: float | None = None) -> StepTime:
    """Time of a step: computation at the given (None: assumed) MFU, the update at memory speed, communication.

    DeepSpeed overlaps communication with computation only in stage 3, where the longer of both counts.
    """
    counted = count_parameters(config, rows).total
    tokens = setup.micro_batch * config.context_length / setup.sequence
    share = mfu if mfu is not None else hardware.mfu[0]
    if mfu is None and hardware.probed is None and not hardware.device.cpu:
        share *= tokens / (tokens + _HALF_TOKENS)
    operations = setup.accumulation * tokens * flops_per_token(config, rows) * (1 + _RECOMPUTED[setup.checkpointing])
    compute = operations / (hardware.device.peak(setup.precision, float8_share(config, rows)) * share)
    own = counted / (setup.ranks if setup.real_stage else 1)
    bandwidth = _HOST_BYTES_PER_S / hardware.per_node if setup.offload else hardware.device.bandwidth
    update = _UPDATE_BYTES * own / bandwidth
    if setup.optimizer == "muon":
        products = "bf16" if setup.precision == "fp8" else setup.precision
        update += muon_operations(config) / setup.ranks / (hardware.device.peak(products) * share)
    communication = communication_bytes(counted, setup) / _link(hardware)
    both = max(compute, communication) if setup.real_stage == 3 else compute + communication
    return StepTime(compute, update, communication, both + update)


def muon_operations(config: Model) -> float:
    """Operations of Muon's five Newton-Schulz iterations over the matrices of all blocks (kellerjordan.github.io).

    For a matrix of s x l numbers, s <= l, an iteration makes s^2 l, s^3 and s^2 l products and sums.
    """
    inner, keys = config.num_heads * config.head_width, config.kv_heads * config.head_width
    heights = [inner, keys, keys, inner, *[config.mlp_width] * (3 if config.activation == "swiglu" else 2)]
    pairs = [sorted((height, config.hidden_size)) for height in heights]
    return 5.0 * config.num_layers * sum(2.0 * (2 * small * small * large + small**3) for small, large in pairs)


def communication_bytes(parameters: int, setup: Setup) -> float:
    """Bytes that a rank sends in a step; ZeRO, arXiv:1910.02054, section 7, on rings: (R-1)/R of a tensor each way.

    Stage 0: an all-reduce of fp32 gradients, twice their bytes. Stage 1: gradients once a step, and an all-gather of
    weights. Stage 2: gradients after every micro-batch. Stage 3: that, and two all-gathers of weights a micro-batch.
    """
    ring = (setup.ranks - 1) / setup.ranks
    element, often = setup.element, setup.accumulation
    volume = {
        0: 2.0 * 4,
        1: 1.0 * element + element,
        2: often * element + element,
        3: 3.0 * often * element,
    }[setup.real_stage]
    return ring * volume * parameters


def _link(hardware: Hardware) -> float:
    return hardware.device.link if hardware.nodes == 1 else min(hardware.device.link, hardware.network)
