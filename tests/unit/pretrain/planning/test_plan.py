"""`replica plan`: memory by formula against what autograd saves, known facts, the command line."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from configs.schema.batch_plan import MOST_AUTOMATIC_MICRO_BATCH, solve_batch
from configs.schema.model import Model
from configs.schema.recipe import load
from launch.cli import main
from pretrain.engine.compiling import PAYS_FROM_FLOPS, pays_to_compile
from pretrain.engine.devices import Device, identify, parse_gpus
from pretrain.model.transformer import Transformer
from pretrain.planning.deepspeed_estimate import deepspeed_states
from pretrain.planning.memory import LIVE, PREFETCH, Setup, activation_bytes, memory, variants
from pretrain.planning.predict import make_plan
from pretrain.planning.step_time import Hardware, muon_operations
from pretrain.sizes.flops import count_parameters, float8_share

ROOT = Path(__file__).resolve().parents[4]
CONFIGS = ROOT / "configs"
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"family": "gpt2"},
    "llama": {"family": "llama"},
    "grouped": {"family": "llama", "num_kv_heads": 2, "qk_norm": True},
}


@pytest.mark.parametrize("precision", ["bf16", "fp32", "autocast"])
@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_what_autograd_saves(family: str, precision: str) -> None:
    config = Model(num_layers=2, hidden_size=128, num_heads=4, context_length=64, **FAMILIES[family])
    model = Transformer(config, 256).to(torch.bfloat16 if precision == "bf16" else torch.float32).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    text = torch.zeros(4, 64, dtype=torch.int64)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast")
    with saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        model.backbone(text).square().sum()  # the last norm's output is kept for the projection
    counted = sum(tensor.untyped_storage().nbytes() for tensor in saved.values()) / text.numel()
    if precision == "autocast":  # keeps a copy of each matrix of the blocks, which counts as weights
        counted -= 2 * sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2) / text.numel()
    setup = Setup("fp32" if precision == "fp32" else "bf16", 1, 4, 1, 0 if precision == "autocast" else 1, cpu=True)
    assert activation_bytes(config, setup) == pytest.approx(counted, rel=0.03)


def test_each_stage_needs_no_more_than_the_one_before() -> None:
    recipe = load(CONFIGS / "llama-8b.yaml")
    setup = Setup("bf16", 8, 1, 8, 0, checkpointing="full")
    totals = [memory(recipe.model, 128256, choice).total for choice in variants(setup, offload=False)]
    assert totals == sorted(totals, reverse=True)
    for one in variants(setup, offload=True):
        kept = {
            mode: activation_bytes(recipe.model, Setup("bf16", 8, 1, 8, one.stage, checkpointing=mode))
            for mode in ("none", "selective", "full")
        }
        assert kept["full"] < kept["selective"] < kept["none"]


def test_an_8b_model_fits_eight_gpus_in_parts_and_no_gpu_whole() -> None:
    """AdamW in mixed precision takes 16 to 20 bytes a parameter (arXiv:1910.02054, section 3.1)."""
    recipe = load(CONFIGS / "llama-8b.yaml")
    whole = make_plan(recipe, Hardware(parse_gpus("H100")[1], 1), None)
    assert not whole["recipe_settings"]["fits"] and whole["warnings"]
    states = sum(whole["stages"][1]["parts"][part] for part in ("weights", "gradients", "optimizer"))
    assert 16 <= states / whole["parameters"]["total"] <= 22
    parts = make_plan(recipe, Hardware(parse_gpus("8xH100")[1], 8), 2.5)
    assert parts["recipe_settings"]["stage"] == 3 and parts["recipe_settings"]["fits"]
    assert parts["fastest"]["cost"] > 0


def test_time_is_told_in_units_that_say_something(capsys: pytest.CaptureFixture[str]) -> None:
    """A small run takes minutes, not 0.00 days; beside the assumed MFU stands what its range means."""
    assert main(["plan", str(CONFIGS / "llama-8b.yaml"), "--gpus", "8xH100", "--nodes", "16"]) == 0
    assert "3.00 days (2.18 days to 4.80 days)" in " ".join(capsys.readouterr().out.split())
    assert main(["plan", str(CONFIGS / "gpt2-124m.yaml"), "--gpus", "8xH100"]) == 0
    assert "47 min 18 s (34 min 24 s to 1 h 15 min)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", ["gpt2-124m", "gpt3-1.3b", "llama-8b"])
def test_the_fastest_is_no_slower_than_what_the_recipe_says(name: str) -> None:
    """Its own micro-batch is among those tried, also when it is no power of two."""
    plan = make_plan(load(CONFIGS / f"{name}.yaml"), Hardware(parse_gpus("8xH100")[1], 8), None)
    assert plan["recipe_settings"]["fits"]
    assert plan["fastest"]["step_seconds"] <= plan["recipe_settings"]["step_seconds"]


@pytest.mark.parametrize("text", ["8xH1000000", "x", "0xH100", "8 of them"])
def test_unknown_gpus_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--gpus"):
        parse_gpus(text)


def test_a_number_of_nodes_that_cannot_be_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(CONFIGS / "gpt2-124m.yaml"), "--gpus", "H100", "--nodes", "0"]) == 2
    assert "--nodes 0" in capsys.readouterr().err


@pytest.mark.parametrize("stage", [2, 3])
def test_states_beside_deepspeeds_own_estimators(stage: int) -> None:
    """They count bf16 gradients beside fp32 ones, 2 bytes a number that sums in fp32 alone do not need."""
    recipe, rows = load(CONFIGS / "llama-8b.yaml"), 128256
    counted, layer = count_parameters(recipe.model, rows).total, rows * recipe.model.hidden_size
    setup = Setup("bf16", 64, 1, 8, stage, checkpoint_copy=False)
    parts = memory(recipe.model, rows, setup).parts
    ours = sum(parts[part] for part in ("weights", "gradients", "optimizer"))
    theirs = deepspeed_states(counted, layer, stage, 8, 8)
    allowed = 2.0 * (LIVE + PREFETCH) if stage == 3 else 0.0  # whole weights: they count one layer in fp32
    assert ours - allowed == pytest.approx(theirs - (4.0 * layer if stage == 3 else 0.0), rel=0.15)


def test_ranks_that_share_a_row_share_its_activations() -> None:
    recipe = load(CONFIGS / "llama-8b.yaml")
    one, four = (
        memory(recipe.model, 128256, Setup("bf16", 8, 4, 1, 0, sequence=ways)).parts["activations"] for ways in (1, 4)
    )
    assert four == pytest.approx(one / 4)


def test_muon_keeps_one_moment_for_matrices_inside_blocks() -> None:
    config = Model(num_layers=2, hidden_size=64, num_heads=4, context_length=64)
    adamw, muon = (
        memory(config, 256, Setup("fp32", 1, 1, 1, 0, optimizer=name)).parts["optimizer"] for name in ("adamw", "muon")
    )
    assert adamw - muon == pytest.approx(4 * sum(p.numel() for p in Transformer(config, 256).blocks.parameters()))
    square = Model(num_layers=1, hidden_size=64, num_heads=4, intermediate_size=64, activation="gelu")
    assert muon_operations(square) == 5 * 6 * 2 * 3 * 64**3  # six matrices, three products an iteration


def test_gpus_by_the_names_of_torch() -> None:
    names = {"NVIDIA A100-SXM4-40GB": "A100-40", "NVIDIA A10": "A10", "NVIDIA H100 PCIe": "H100-PCIe"}
    names["NVIDIA L40S"] = "L40S"
    for name, expected in names.items():
        device = identify(name)
        assert device is not None and device.name == expected


def test_the_command_prints_a_page_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", str(CONFIGS / "gpt2-124m.yaml"), "--gpus", "8xA100", "--price", "2"]
    assert main(command) == 0
    page = capsys.readouterr().out
    assert max(map(len, page.splitlines())) <= 80 and "the fastest" in page
    assert main([*command, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["parameters"]["total"] == 124_475_904
    assert {row["stage"] for row in plan["stages"]} == {0, 1, 2, 3}


@pytest.mark.slow
def test_a_probe_measures_beside_the_prediction(tmp_path: Path) -> None:
    shrink = ["train.global_batch_size=4", "train.micro_batch_size=4", f"out={tmp_path / 'run'}"]
    shrink += ["model.num_layers=2", "model.context_length=128"]
    command = ["plan", str(CONFIGS / "demo.yaml"), "--probe", "--json", *shrink, "train.compile=false"]
    # In a process of its own: what libraries print when they are first imported must not come before the JSON.
    done = subprocess.run([sys.executable, "-m", "launch.cli", *command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    probe = plan["probe"]
    assert probe["predicted_bytes"] == pytest.approx(probe["measured_bytes"], rel=0.3)
    assert probe["measured_step_seconds"] > 0 and not (tmp_path / "run").exists()
    # The page follows: the fixed part and the speed are the measured ones.
    own = plan["recipe_settings"]
    assert plan["assumed_mfu"] == [probe["mfu"]] * 3
    assert own["parts"]["overhead"] > 2e8 and own["total"] > probe["measured_bytes"]


def test_a_probe_whose_peak_is_after_the_activations(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There the allocator has no share, and what no part explains goes to the fixed part."""
    measured = {"base": 4e8, "ready": 3e9, "peak": 6e9, "seconds": [3.0] * 8, "peak_flops": 4e11}
    told = {"precision": "bf16", "stage": 1, "compiled": False}
    monkeypatch.setattr("launch.planning.plan.run_probe", lambda *_: measured | told)
    one = ["train.micro_batch_size=1", "train.global_batch_size=1", "train.compile=false", "train.zero.stage=1"]
    assert main(["plan", str(CONFIGS / "gpt2-124m.yaml"), "--probe", "--json", *one]) == 0
    plan = json.loads(capsys.readouterr().out)
    own, probe = plan["recipe_settings"], plan["probe"]
    assert own["moment"] == "reduce"
    assert own["parts"]["overhead"] == pytest.approx(4e8 + probe["measured_bytes"] - probe["explained_bytes"])


def test_fp8_is_planned_with_the_peaks_of_its_products() -> None:
    """Linear layers of blocks at fp8's peak, head and attention at bf16's; memory as in bf16; no ZeRO-3."""
    hardware = Hardware(parse_gpus("H100")[1], 8)
    recipes = [load(CONFIGS / "gpt3-1.3b.yaml", [f"train.precision={name}"]) for name in ("bf16", "fp8")]
    half, float8 = (make_plan(recipe, hardware, None) for recipe in recipes)
    assert half["recipe_settings"]["total"] == float8["recipe_settings"]["total"]
    share = float8_share(recipes[1].model, half["rows"])
    assert 0.7 < share < 0.9
    assert hardware.device.peak("fp8", share) == pytest.approx(1 / (share / 1979e12 + (1 - share) / 989e12))
    assert 1.2 < half["recipe_settings"]["step_seconds"] / float8["recipe_settings"]["step_seconds"] < 2.0
    assert {row["stage"] for row in float8["stages"]} == {0, 1, 2} and float8["fastest"]["stage"] < 3


@pytest.mark.parametrize("device", [parse_gpus("A100")[1], Device("CPU", 1e9, 1e12, 1e12, 1e9, 1e9, cpu=True)])
def test_fp8_is_not_planned_where_there_is_none(device: Device) -> None:
    recipe = load(CONFIGS / "gpt3-1.3b.yaml", ["train.precision=fp8"])
    with pytest.raises(ValueError, match=rf"train\.precision fp8: {device.name} has no fp8 products; use bf16"):
        make_plan(recipe, Hardware(device, 8), None)


@pytest.mark.parametrize("settings", [{}, {"micro_batch_size": 3}, {"global_batch_size": 34}, {"parallel.sequence": 2}])
def test_the_plan_solves_the_batch_as_training_does(settings: dict[str, Any]) -> None:
    """What divides is planned as training would have it; what does not is said in the words of its refusal."""
    overrides = ["train.global_batch_size=48", *(f"train.{key}={value}" for key, value in settings.items())]
    recipe = load(CONFIGS / "demo.yaml", overrides)
    own = make_plan(recipe, Hardware(parse_gpus("H100")[1], per_node=4), None)
    try:
        batch = solve_batch(recipe.train, 4)
    except ValueError as error:
        assert str(error) in own["warnings"]
    else:
        row = own["recipe_settings"]
        assert (row["micro_batch"], row["accumulation"]) == (batch.micro_batch, batch.accumulation)
        assert batch.micro_batch <= MOST_AUTOMATIC_MICRO_BATCH and batch.problems == []


def test_fewer_sequences_than_ranks_are_refused_alike() -> None:
    recipe = load(CONFIGS / "demo.yaml", ["train.global_batch_size=2"])
    for ask in (
        lambda: solve_batch(recipe.train, 4),
        lambda: make_plan(recipe, Hardware(parse_gpus("H100")[1], 4), None),
    ):
        with pytest.raises(ValueError, match="global_batch_size 2 is less than 4 ranks"):
            ask()


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_compilation_pays_in_one_place(kind: str) -> None:
    train = load(CONFIGS / "demo.yaml").train
    at_zero_3 = train.model_copy(update={"zero": train.zero.model_copy(update={"stage": 3})})
    enough = PAYS_FROM_FLOPS[kind]
    assert pays_to_compile(train, kind, enough) and not pays_to_compile(train, kind, enough / 2)
    assert not pays_to_compile(at_zero_3, kind, enough)
    assert pays_to_compile(at_zero_3.model_copy(update={"compile": True}), kind, 0)
    assert not pays_to_compile(train, "mps", math.inf)
