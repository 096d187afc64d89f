"""Tells what a model's probabilities depend on beside its weights, and holds it still while a file is coded.

Encoder and decoder need equal probabilities to the last bit. The same calls in the same shapes give them on one kind of
machine with one version of torch. Threads are taken from the header. All else is compared, and a difference is named.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from configs.common.versions import code_version
from eval.codec.container import Circumstances

DTYPE = "fp32"
MOST_THREADS = 1024
# Code that computes probabilities, or decides in which order.
_CODE = ("pretrain/generation", "pretrain/model", "pretrain/coding/entropy", "eval/codec/rows", "eval/codec/tokens")


def here(device: torch.device, threads: int) -> Circumstances:
    """Returns the circumstances of this process."""
    code = code_version(*_CODE)[:12]
    return Circumstances(threads, DTYPE, device.type, _processor(device), torch.__version__, code)


def differences(coded: Circumstances, own: Circumstances) -> list[str]:
    """Names each field in which two circumstances differ, with both values."""
    before, now = asdict(coded), asdict(own)
    return [f"{name} {before[name]} (here {now[name]})" for name in before if before[name] != now[name]]


@contextmanager
def held(threads: int) -> Iterator[None]:
    """Computes with so many threads and whole fp32 products in the body; afterwards as before.

    Raises:
        ValueError: when torch does not take that number of threads.
    """
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        if not 1 <= threads <= MOST_THREADS:
            raise ValueError(f"{threads} threads: from 1 to {MOST_THREADS} are possible")
        torch.set_num_threads(threads)
        if (got := torch.get_num_threads()) != threads:
            raise ValueError(f"the file needs {threads} threads, and torch computes with {got} here")
        torch.set_float32_matmul_precision("highest")
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {_maker()} {torch.backends.cpu.get_cpu_capability()}"


def _maker() -> str:
    """The maker of the CPU: libraries of matrix products have other code for each."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("vendor_id", "CPU implementer"):
                return value.strip()
    return platform.system()
