"""Gives the speed and memory of devices: of known GPUs from data sheets, of this machine's CPU by measuring."""

from __future__ import annotations

import difflib
import math
import os
import re
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from pretrain.model.float8 import LEAST_CAPABILITY

_MEASURED_SIZE, _MEASUREMENTS = 1024, 6
_MEASURED_COPY_BYTES = 64 * 2**20
_GB, _TERA = 1e9, 1e12
# Between processes of one machine over its memory, as a share of what a copy reaches: gloo reads and writes twice.
_CPU_LINK_SHARE = 0.25
# One 400 Gb/s adapter per GPU, as in DGX H100 and the HGX references.
NETWORK_BYTES_PER_S = 50 * _GB
_FP8_SPEED = 2.0  # of bf16's, on every GPU of the table that has fp8


@dataclass(frozen=True)
class Device:
    """One accelerator, or this machine's CPU: bytes, FLOP/s and bytes/s."""

    name: str
    memory: float
    bf16: float  # dense matrix products, accumulated in fp32
    fp32: float  # without TF32, which training here does not use
    bandwidth: float  # of its memory
    link: float  # to another one of the same machine, one direction
    cpu: bool = False
    fp8: float = 0.0  # dense, as bf16; 0: it has none

    def peak(self, precision: str, float8_share: float = 1.0) -> float:
        """FLOP/s of matrix products in this precision; in fp8 with the rest of the operations in bf16.

        Raises:
            ValueError: for fp8 where there is none.
        """
        if precision == "fp8":
            if not self.fp8:
                raise ValueError(
                    f"train.precision fp8: {self.name} has no fp8 products; use bf16, or GPUs that have (H100)"
                )
            return _mixed(self.bf16, self.fp8, float8_share)
        return self.fp32 if precision == "fp32" else self.bf16


def _mixed(bf16: float, fp8: float, float8_share: float) -> float:
    return 1.0 / (float8_share / fp8 + (1.0 - float8_share) / bf16)


def _gpu(name: str, memory: float, bf16: float, fp32: float, bandwidth: float, link: float, fp8: float = 0.0) -> Device:
    """A GPU from the units of a data sheet: GB, TFLOP/s, TFLOP/s, GB/s, GB/s, TFLOP/s."""
    rates = bf16 * _TERA, fp32 * _TERA, bandwidth * _GB, link * _GB
    return Device(name, memory * _GB, *rates, fp8=fp8 * _TERA)


# NVIDIA's data sheets: dense figures (half of those "with sparsity"); GB are taken as 10^9 bytes, which leaves out the
# few percent that the driver keeps; links are half of what the sheets give for both directions together.
# Names as torch tells them contain the keys; of several keys in a name the first counts.
_KNOWN: dict[str, Device] = {
    "B200": _gpu("B200", 180, 2250, 75, 7700, 900, fp8=4500),
    "H200": _gpu("H200", 141, 989, 67, 4800, 450, fp8=1979),
    "H100 PCIe": _gpu("H100-PCIe", 80, 756, 51, 2000, 64, fp8=1513),
    "H100": _gpu("H100", 80, 989, 67, 3350, 450, fp8=1979),
    "A100-SXM4-40GB": _gpu("A100-40", 40, 312, 19.5, 1555, 300),
    "A100-PCIE-40GB": _gpu("A100-40", 40, 312, 19.5, 1555, 32),
    "A100": _gpu("A100-80", 80, 312, 19.5, 2039, 300),
    "L40S": _gpu("L40S", 48, 362, 91.6, 864, 32, fp8=733),
    "L40": _gpu("L40", 48, 181, 90.5, 864, 32, fp8=362),
    "L4": _gpu("L4", 24, 121, 30.3, 300, 32, fp8=242),
    "A10": _gpu("A10", 24, 125, 31.2, 600, 32),
    "RTX 4090": _gpu("RTX4090", 24, 165, 82.6, 1008, 32, fp8=330),
    "RTX 3090": _gpu("RTX3090", 24, 71, 35.6, 936, 32),
}
_ALIASES = {"a100": "a10080", "a10080gb": "a10080", "a10040gb": "a10040", "h100sxm": "h100", "4090": "rtx4090"}
_ALIASES |= {"3090": "rtx3090", "h100sxm5": "h100", "h200sxm": "h200"}


def known_gpus() -> dict[str, Device]:
    """The table by the names that `--gpus` takes."""
    return {device.name: device for device in reversed(_KNOWN.values())}


def identify(torch_name: str) -> Device | None:
    """The entry for a name that torch gives a GPU, or None."""
    return next((device for key, device in _KNOWN.items() if key in torch_name), None)


def parse_gpus(text: str) -> tuple[int, Device]:
    """`8xH100` -> 8 and the device; a name alone is one.

    Raises:
        ValueError: for anything else, naming the devices that are known.
    """
    match = re.fullmatch(r"\s*(?:(\d+)\s*[x×*]\s*)?([A-Za-z0-9][\w -]*?)\s*", text)
    names = {_plain(name): device for name, device in known_gpus().items()}
    if match is None or match[1] == "0" or (match[1] and len(match[1]) > 6):
        raise ValueError(f"--gpus {text!r}: write the number and the name of a node's GPUs, such as 8xH100")
    wanted = _plain(match[2])
    device = names.get(_ALIASES.get(wanted, wanted))
    if device is None:
        near = difflib.get_close_matches(wanted, names, n=1)
        hint = f"did you mean {names[near[0]].name}? " if near else ""
        raise ValueError(f"--gpus {text!r}: {match[2]} is not in the table; {hint}Known: {', '.join(known_gpus())}")
    return int(match[1] or 1), device


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower()).removeprefix("nvidia")


# -------------------------------------------------------------------------------------------------------- this machine
def tell_deepspeed_of_cpu() -> None:
    """Tells DeepSpeed that there is no GPU, before it is imported: it would print a warning on standard output."""
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def this_machine(ranks: int | None = None) -> tuple[int, Device]:
    """This machine's GPUs and their kind, or its CPU shared by `ranks` processes (None: one), measured now."""
    if torch.cuda.is_available():
        shown, count = torch.cuda.get_device_properties(0), torch.cuda.device_count()
        known = identify(shown.name) or _measured_gpu(shown.name)
        return ranks or count, replace(known, memory=float(shown.total_memory))
    count = ranks or 1
    cpu = torch.device("cpu")
    bandwidth = copy_rate(cpu)
    return count, Device(
        name=f"CPU ({len(os.sched_getaffinity(0))} cores)",
        memory=host_memory() / count,
        bf16=matrix_peak(cpu, torch.bfloat16) / count,
        fp32=matrix_peak(cpu, torch.float32) / count,
        bandwidth=bandwidth / count,
        link=bandwidth * _CPU_LINK_SHARE,
        cpu=True,
    )


def with_peak(device: Device, precision: str, flops: float) -> Device:
    """The device with this FLOP/s of matrix products in this precision."""
    if precision == "fp8":
        return replace(device, fp8=flops)
    return replace(device, fp32=flops) if precision == "fp32" else replace(device, bf16=flops)


def _measured_gpu(name: str) -> Device:
    device = torch.device("cuda")
    peaks = [matrix_peak(device, dtype) for dtype in (torch.bfloat16, torch.float32)]
    fp8 = _FP8_SPEED * peaks[0] if torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY else 0.0
    return Device(name, 0.0, peaks[0], peaks[1], copy_rate(device), 32 * _GB, fp8=fp8)  # a PCIe 4.0 link


def host_memory() -> float:
    """Bytes of memory that this machine, or the control group around this process, has."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limits = [Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    words = [file.read_text(encoding="ascii").strip() for file in limits if file.is_file()]
    return min([total, *(float(word) for word in words if word.isdecimal())])


@cache
def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of a few products of square matrices, measured once in a process."""
    matrix = torch.randn(_MEASURED_SIZE, _MEASURED_SIZE, device=device).to(dtype)
    best = math.inf
    for _ in range(_MEASUREMENTS):
        start = time.perf_counter()
        (matrix @ matrix).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2.0 * _MEASURED_SIZE**3 / best


def copy_rate(device: torch.device) -> float:
    """Bytes/s, read and written together, of the best of a few copies."""
    source = torch.ones(_MEASURED_COPY_BYTES // 4, device=device)
    target, best = torch.zeros_like(source), math.inf
    for _ in range(_MEASUREMENTS):
        start = time.perf_counter()
        target.copy_(source)
        target[-1].item()  # waits for the copy
        best = min(best, time.perf_counter() - start)
    return 2.0 * _MEASURED_COPY_BYTES / best


def peak_flops(device: torch.device, precision: str, float8_share: float = 1.0) -> float:
    """FLOP/s of one device in this precision: from the table of known GPUs, otherwise the best of a few products.

    In fp8 only `float8_share` of the operations are fp8's, the others bf16's.
    """
    if device.type == "cuda" and precision != "fp32":
        known = identify(torch.cuda.get_device_name(device))
        if known is not None:
            return known.peak(precision, float8_share)
    if precision == "fp8":
        bf16 = matrix_peak(device, torch.bfloat16)
        return _mixed(bf16, _FP8_SPEED * bf16, float8_share)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    return matrix_peak(device, dtype)
