"""Calls DeepSpeed's own estimators of model states, to compare our formulas with; no decision uses them."""

from __future__ import annotations

from pretrain.engine.deepspeed_private import imported
from pretrain.engine.devices import tell_deepspeed_of_cpu


def deepspeed_states(parameters: int, largest_layer: int, stage: int, per_node: int, nodes: int) -> float:
    """Bytes of weights, gradients and optimizer per rank in half precision, without offload, at stage 2 or 3.

    For all of stage 3 DeepSpeed counts `largest_layer` parameters gathered in fp32; it counts neither buckets nor
    activations.
    """
    tell_deepspeed_of_cpu()
    if stage == 2:
        estimate = imported("deepspeed.runtime.zero.stage_1_and_2", "estimate_zero2_model_states_mem_needs")
        _, device = estimate(parameters, per_node, nodes, cpu_offload=False)
        return float(device)
    assert stage == 3
    estimate = imported("deepspeed.runtime.zero.stage3", "estimate_zero3_model_states_mem_needs")
    _, device, _ = estimate(parameters, largest_layer, per_node, nodes, cpu_offload=False, cpu_offload_params=False)
    return float(device)
