"""Fingerprints what compiled code depends on: hardware, software and settings."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from configs.common.files import fingerprint
from configs.common.versions import code_version, installed
from configs.schema.recipe import Recipe
from pretrain.engine.engine import Engine

_PACKAGES = ("torch", "triton", "torchao", "deepspeed", "numpy")
_VARIABLES = ("CXX", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "CUBLAS_WORKSPACE_CONFIG")
_PREFIXES = ("TORCHINDUCTOR_", "TRITON_", "TORCHDYNAMO_")
_PLACES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TRITON_HOME")  # where files lie changes nothing
_SETTINGS = (
    "precision", "zero", "parallel", "activation_checkpointing", "loss_chunk", "compile", "deterministic",
    "document_masking", "objective", "packing",
)  # fmt: skip


def circumstances(recipe: Recipe, engine: Engine) -> dict[str, Any]:
    """What this rank's code depends on, by group."""
    return {
        "hardware": _hardware(engine.device),
        "software": _software(),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if (name in _VARIABLES or name.startswith(_PREFIXES)) and name not in _PLACES
        },
        "settings": {
            "model": recipe.model.model_dump(mode="json"),
            "train": recipe.train.model_dump(mode="json", include=set(_SETTINGS)),
            "deepspeed": recipe.deepspeed,
            "micro_batch": engine.plan.micro_batch,
            "rows": engine.module.model.vocab_size,
            "ranks": engine.ranks.count,
        },
    }


def all_circumstances(recipe: Recipe, engine: Engine) -> str:
    """One fingerprint of what the code of all ranks depends on; every rank must ask."""
    return fingerprint(sorted(set(engine.gather(fingerprint(circumstances(recipe, engine))))))


def _hardware(device: torch.device) -> dict[str, Any]:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {"gpu": properties.name, "capability": [properties.major, properties.minor]}
    cpuinfo, facts = Path("/proc/cpuinfo"), dict[str, str]()
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").split("\n\n", 1)[0].splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "flags", "Features"):
                facts[key.strip()] = value.strip()
    return {
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        **facts,
    }


def _software() -> dict[str, str]:
    found = {"python": platform.python_version(), "cuda": str(torch.version.cuda), "compiler": _compiler()}
    for name in _PACKAGES:
        found[name] = installed(name) or "none"
    return {**found, "pretrain": code_version("pretrain")}


def _compiler() -> str:
    names = (os.environ.get("CXX"), "g++", "clang++")
    path = next((found for name in names if name and (found := shutil.which(name))), None)
    if path is None:
        return "none"
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"{path}: {error}"
    return said.splitlines()[0] if said else path
