"""Lists the keys of DeepSpeed's configuration that a recipe may set: those that import no code and write no files.

Other keys do. `torch_autocast.lower_precision_safe_modules` imports the modules it names. `flops_profiler.output_file`,
the monitors (`csv_monitor`, `tensorboard`, `wandb`, `comet`), `autotuning` and `nvme_path` write to paths of their
value.

Names are those of DeepSpeed 0.19 (https://www.deepspeed.ai/docs/config-json/).
"""

from __future__ import annotations

from typing import Any

# Mapping -> the keys allowed in it. Values are scalars or lists of scalars.
_SECTIONS: dict[str, str] = {
    "zero_optimization": """
        stage contiguous_gradients reduce_scatter reduce_bucket_size use_multi_rank_bucket_allreduce
        allgather_partitions allgather_bucket_size overlap_comm compute_grad_norm sub_group_size
        stage3_prefetch_bucket_size stage3_param_persistence_threshold stage3_model_persistence_threshold
        stage3_max_live_parameters stage3_max_reuse_distance stage3_module_granularity_threshold
        stage3_use_all_reduce_for_fetch_params stage3_allgather_sequential prefetch_bucket_size
        param_persistence_threshold model_persistence_threshold max_live_parameters max_reuse_distance
        module_granularity_threshold use_all_reduce_for_fetch_params allgather_sequential ignore_unused_parameters
        round_robin_gradients parameter_alignment zero_hpz_partition_size zero_quantized_weights
        zero_quantized_nontrainable_weights zero_quantized_gradients memory_efficient_linear override_module_apply
        log_trace_cache_warnings enable_sanity_checks""",
    "zero_optimization.offload_param": "device pin_memory buffer_count buffer_size max_in_cpu",
    "zero_optimization.offload_optimizer": "device pin_memory buffer_count fast_init ratio cpuadam_cores_perc",
    "bf16": "enabled immediate_grad_update check_grad_overflow bf16_master_weights_and_grads bf16_optimizer_states",
    "fp16": """
        enabled auto_cast loss_scale initial_scale_power loss_scale_window hysteresis consecutive_hysteresis
        min_loss_scale fp16_master_weights_and_grads""",
    "torch_autocast": "enabled dtype",
    "data_types": "grad_accum_dtype",
    "comms_logger": "enabled verbose prof_all debug prof_ops",
    "flops_profiler": "enabled recompute_fwd_factor profile_step module_depth top_modules detailed",
    "": """
        train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps gradient_clipping
        zero_force_ds_cpu_optimizer zero_allow_untested_optimizer steps_per_print communication_data_type
        seq_parallel_communication_data_type prescale_gradients gradient_predivide_factor sparse_gradients
        disable_allgather wall_clock_breakdown memory_breakdown dump_state log_level""",
}
PASSED = frozenset(f"{section}.{name}".lstrip(".") for section, names in _SECTIONS.items() for name in names.split())
_MAPPINGS = frozenset(section for section in _SECTIONS if section)


def check_deepspeed(settings: dict[str, Any], path: str = "") -> None:
    """Refuses settings that are not in `PASSED`.

    Raises:
        ValueError: naming the first key that is not in `PASSED`, or whose value is an unexpected mapping.
    """
    for name, value in settings.items():
        key = f"{path}.{name}".lstrip(".")
        if key in _MAPPINGS and isinstance(value, dict):
            check_deepspeed(value, key)
        elif key == "tensor_parallel":
            raise ValueError(
                "deepspeed.tensor_parallel cannot be set: use train.parallel.tensor, which also adapts batches and "
                "checkpoints"
            )
        elif key not in PASSED or _holds_mappings(value):
            known = sorted(other for other in PASSED | _MAPPINGS if other.rpartition(".")[0] == path)
            raise ValueError(
                f"deepspeed.{key} cannot be set: only keys that import no code and write no files are passed to "
                f"DeepSpeed; remove it (allowed here: {', '.join(known)})"
            )


def _holds_mappings(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict | list) for item in value))
