"""Joins this process to the others of a run, with the communication backend of its device."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from pretrain.engine.deepspeed_private import COMPATIBLE_OPS, check_imported, imported
from pretrain.engine.devices import tell_deepspeed_of_cpu
from pretrain.parallel.ranks import Ranks
from pretrain.parallel.rendezvous import open_store


@contextmanager
def connected(ranks: Ranks) -> Iterator[torch.device]:
    """Joins the processes of the run, yields this one's device, and leaves at the end (unless it had joined before).

    Raises:
        ValueError: when the rendezvous port is taken.
        UnknownDeepSpeed: when the installed version lacks a name that training uses.
    """
    if dist.is_initialized():
        yield _connect(ranks)
        return
    linear = torch.nn.functional.linear  # ZeRO-3 puts a function of its own there, and leaves it
    try:
        yield _connect(ranks)
    finally:
        torch.nn.functional.linear = linear
        if dist.is_initialized():
            import deepspeed

            deepspeed.comm.destroy_process_group()


def _connect(ranks: Ranks) -> torch.device:
    tell_deepspeed_of_cpu()
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    _quieten()
    check_imported()
    if get_accelerator().device_name() == "cpu":
        # DeepSpeed would compile its shared-memory all-reduce now (30-80 s); only its inference engine calls it.
        imported(*COMPATIBLE_OPS[:2])["deepspeed_shm_comm"] = False
        deepspeed.utils.nvtx.enable_nvtx = False  # marks for a GPU's profiler: ZeRO-3 sets hundreds in a step
    else:
        get_accelerator().set_device(ranks.local_rank)
    backend = get_accelerator().communication_backend_name()
    if not dist.is_initialized():
        _join(ranks, backend)
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    return torch.device(get_accelerator().current_device_name())


def _join(ranks: Ranks, backend: str) -> None:
    import deepspeed

    try:
        if (store := open_store(ranks)) is not None:
            dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.count)
        else:
            deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    except (OSError, RuntimeError) as error:
        # torch's errors of a taken port carry no error number, only these words.
        if "EADDRINUSE" not in str(error) and "address already in use" not in str(error).lower():
            raise
        port = os.environ.get("MASTER_PORT", "?")
        raise ValueError(
            f"port {port} on {os.environ.get('MASTER_ADDR', 'this machine')} is in use by another process; choose "
            "another (deepspeed --master_port, torchrun --master-port, or MASTER_PORT) or end that process"
        ) from error


def _quieten() -> None:
    """Hides warnings that a user of this project cannot act on: the progress bar is what people watch."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed.*")
    for name in ("DeepSpeed", "deepspeed", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
