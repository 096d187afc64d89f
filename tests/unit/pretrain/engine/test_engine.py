"""What DeepSpeed is told, which precision is chosen, and who a process is."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.schema.batch_plan import solve_batch
from configs.schema.recipe import Recipe
from configs.schema.train import Train
from pretrain.engine.compiling import compiler_left_out, keep_compiled, should_compile
from pretrain.engine.deepspeed_config import deepspeed_config, resolve_precision
from pretrain.engine.engine import Engine, StepResult
from pretrain.metrics.meter import Meter
from pretrain.parallel.ranks import check_ranks, find_ranks
from tests.parts.training_run import tiny_recipe


def config(recipe: Recipe, precision: str = "fp32", **passed: Any) -> dict[str, Any]:
    recipe = recipe.model_copy(update={"deepspeed": passed})
    return deepspeed_config(recipe, solve_batch(recipe.train, 2), precision)


def test_what_the_recipe_says_is_derived_and_the_rest_passed_on(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, tmp_path, micro_batch_size=2, grad_clip=0.7)
    derived = config(recipe, "bf16", zero_optimization={"reduce_bucket_size": 10}, wall_clock_breakdown=True)
    assert derived["train_batch_size"] == 8
    assert derived["train_micro_batch_size_per_gpu"] == 2 and derived["gradient_accumulation_steps"] == 2
    assert derived["gradient_clipping"] == 0.7 and derived["bf16"]["enabled"] is True
    assert derived["zero_optimization"] == {"stage": 1, "compute_grad_norm": True, "reduce_bucket_size": 10}
    assert derived["wall_clock_breakdown"] is True
    assert config(recipe, zero_optimization={"stage": 1})["zero_optimization"]["stage"] == 1, "agreeing is no clash"


@pytest.mark.parametrize(
    ("passed", "message"),
    [
        ({"gradient_clipping": 0.5}, r"deepspeed.gradient_clipping: 0.5 clashes with 1.0"),
        ({"zero_optimization": {"stage": 3}}, r"deepspeed.zero_optimization.stage: 3 clashes with 1"),
        ({"bf16": {"enabled": False}}, r"deepspeed.bf16.enabled: False clashes with True"),
        # Either would let an update with a non-finite gradient pass.
        ({"bf16": {"check_grad_overflow": False}}, r"deepspeed.bf16.check_grad_overflow: False clashes with True"),
        ({"zero_optimization": {"compute_grad_norm": False}}, r"compute_grad_norm: False clashes with True"),
        ({"train_batch_size": 16}, r"deepspeed.train_batch_size: 16 clashes with 8"),
    ],
)
def test_clashes_are_refused(tmp_path: Path, passed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(tiny_recipe(tmp_path, tmp_path), "bf16", **passed)


@pytest.mark.parametrize(
    ("zero", "message"),
    [
        ({"stage": 0, "offload_optimizer": "cpu"}, r"offload_optimizer needs train.zero.stage 1 or 2 or 3, not 0"),
        ({"stage": 2, "offload_parameters": "cpu"}, r"offload_parameters needs train.zero.stage 3, not 2"),
        ({"stage": 3, "offload_optimizer": "nvme"}, r"train.zero.offload_optimizer: .*nvme is not supported"),
        ({"stage": 3, "offload_parameters": "nvme"}, r"train.zero.offload_parameters: .*nvme is not supported"),
    ],
)
def test_offload_that_cannot_be(tmp_path: Path, zero: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(tiny_recipe(tmp_path, tmp_path, zero=zero))


@pytest.mark.parametrize("gpu", [False, True])
def test_offload_is_derived(tmp_path: Path, gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    on_host = {"device": "cpu", "pin_memory": gpu}
    for written, parameters in ((True, "none"), ("cpu", "cpu"), (False, "cpu")):
        zero = {"stage": 3, "offload_optimizer": written, "offload_parameters": parameters}
        derived = config(tiny_recipe(tmp_path, tmp_path, zero=zero))["zero_optimization"]
        assert derived.get("offload_optimizer") == (on_host if written else None)
        assert derived.get("offload_param") == (on_host if parameters == "cpu" else None)
    with pytest.raises(ValueError, match=r"deepspeed.zero_optimization.offload_param.device: 'none' clashes"):
        passed = {"offload_param": {"device": "none"}}
        config(tiny_recipe(tmp_path, tmp_path, zero=zero), zero_optimization=passed)


def test_precision_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr("pretrain.engine.deepspeed_config.cpu_computes_bf16", lambda: True)
    assert resolve_precision("auto", cpu) == "bf16" and resolve_precision("fp32", cpu) == "fp32"
    monkeypatch.setattr("pretrain.engine.deepspeed_config.cpu_computes_bf16", lambda: False)
    assert resolve_precision("auto", cpu) == "fp32" and resolve_precision("bf16", cpu) == "bf16"
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        resolve_precision("fp16", cpu)


def test_ranks_of_each_launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def launched(**variables: str) -> Any:
        monkeypatch.setattr(os, "environ", dict(variables))  # which `find_ranks` completes
        ranks = find_ranks()
        return ranks.rank, ranks.count, ranks.local_rank, ranks.local_count

    assert launched() == (0, 1, 0, 1)
    assert launched(RANK="5", WORLD_SIZE="8", LOCAL_RANK="1", LOCAL_SIZE="4") == (5, 8, 1, 4)  # deepspeed
    assert launched(RANK="5", WORLD_SIZE="8", LOCAL_RANK="1", LOCAL_WORLD_SIZE="4") == (5, 8, 1, 4)  # torchrun
    slurm = {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_TASKS_PER_NODE": "2(x2)"}
    assert launched(**slurm, SLURM_JOB_ID="7", SLURM_JOB_NODELIST="n[1-2]", MASTER_ADDR="n1") == (3, 4, 1, 2)
    with pytest.raises(ValueError, match="WORLD_SIZE, LOCAL_RANK is not"):
        launched(RANK="0")
    launched(RANK="0", WORLD_SIZE="2", LOCAL_RANK="0")
    with pytest.raises(ValueError, match=r"asks for 4 processes on this machine, but 2 were started"):
        check_ranks(find_ranks(), tiny_recipe(tmp_path, tmp_path, ranks=4).train)


def test_meter_counts_nats_of_fresh_windows_only() -> None:
    meter = Meter(flops_per_token=10.0, peak_flops=1e6, state={})
    result = StepResult(loss=2.0, total=200.0, targets=100.0, target_bytes=80, grad_norm=1.0)
    meter.add(result, fresh=True, data_wait=0.5)
    meter.add(result, fresh=False, data_wait=0.25)
    values = meter.measure(result, 1e-3)
    assert values["tokens"] == 200.0 and values["train/data_wait_s"] == 0.75
    assert values["train/code_length_bits"] == pytest.approx(200 / 0.6931471805599453)
    assert values["train/code_bits_per_byte"] == pytest.approx(200 / 0.6931471805599453 / 80)
    assert values["train/mfu"] == pytest.approx(values["train/tokens_per_s"] * 10.0 / 1e6)


def test_an_mfu_above_one_is_a_wrong_peak(capsys: pytest.CaptureFixture[str]) -> None:
    result = StepResult(loss=2.0, total=200.0, targets=100.0, target_bytes=80, grad_norm=1.0)

    def mfus(*again: float) -> tuple[list[float], int]:
        peaks = iter(again)
        meter = Meter(flops_per_token=1e12, peak_flops=1.0, state={}, measure_peak=lambda: next(peaks))
        values = []
        for _ in range(3):
            meter.add(result, fresh=True, data_wait=0.0)
            values.append(meter.measure(result, 1e-3))
        assert all(
            v["train/mfu"] == pytest.approx(v["train/tokens_per_s"] * 1e12 / v["train/peak_flops"]) for v in values
        )
        return [v["train/mfu"] for v in values], sum(1 for _ in peaks)

    assert max(mfus(1e30, 2.0)[0]) < 1, "measured again, once"
    assert capsys.readouterr().err == ""
    found, left = mfus(3.0, 4.0, 5.0)
    assert min(found) > 1 and left == 2, "measured again once, then believed no more"
    said = capsys.readouterr().err
    assert said.count("warning: an MFU of") == 1 and "measured twice" in said


def test_values_that_are_said_once_stand_in_the_next_line_alone() -> None:
    meter = Meter(flops_per_token=10.0, peak_flops=1e6, state={})
    result = StepResult(loss=2.0, total=200.0, targets=100.0, target_bytes=80, grad_norm=1.0)
    meter.remark({"check/loss": 1e-7})
    assert meter.measure(result, 1e-3)["check/loss"] == 1e-7
    assert "check/loss" not in meter.measure(result, 1e-3)


@pytest.mark.parametrize(
    ("setting", "stage", "flops", "expected"),
    [
        ("auto", 1, 1e14, True),
        ("auto", 1, 1e12, False),
        ("auto", 3, 1e14, False),
        (True, 1, 1.0, True),
        (False, 1, 1e20, False),
    ],
)
def test_compiles_where_it_pays(
    setting: str | bool, stage: int, flops: float, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    train = Train.model_validate({"steps": 1, "compile": setting, "zero": {"stage": stage}})
    assert should_compile(train, torch.device("cpu"), flops) is expected


@pytest.mark.parametrize(("given", "kept"), [(None, False), ("torch's own", False), ("the user's", True)])
def test_compiled_code_is_kept_in_the_users_cache(
    given: str | None, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    if given is not None:  # torch writes its own into the environment when it is asked
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / given) if kept else default_cache_dir())
    keep_compiled()
    assert cache_dir() == str(tmp_path / given if kept and given else tmp_path / "gpt-replica" / "compiled")


def test_no_compiled_code_is_kept_where_the_compiler_cannot_write(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "my cache"))  # paths reach the C++ compiler without quotes
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    keep_compiled()
    assert " " not in cache_dir()


def test_compiles_nothing_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not should_compile(Train(steps=1), torch.device("cpu"), 1e20)


def test_a_torch_that_cannot_leave_compiled_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine.__new__(Engine)
    engine.module, engine.compiled = torch.nn.Linear(1, 1), True  # type: ignore[assignment]
    monkeypatch.delattr(torch.nn.Module, "_compiled_call_impl")
    with pytest.raises(ValueError, match=r"cannot be told to leave compiled code; set train\.compile=false"):
        engine.uncompile()
    assert engine.compiled


def test_an_engine_that_compiles_nothing_loads_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `tests/distributed/train_many.py` asserts of whole trainings; a later engine finds all as torch has it."""
    mark, guarded = "__dynamo_disable", torch.optim.Optimizer.add_param_group.__wrapped__  # type: ignore[attr-defined]
    disable = torch.compiler.disable
    monkeypatch.delitem(vars(guarded), mark, raising=False)
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    with compiler_left_out(True):
        assert vars(guarded)[mark] is guarded
        assert torch.compiler.disable(len) is len and torch.compiler.disable(reason="none")(len) is len
    assert torch.compiler.disable is disable and vars(guarded)[mark] is guarded
    with compiler_left_out(False):
        assert mark not in vars(guarded) and torch.compiler.disable is disable
