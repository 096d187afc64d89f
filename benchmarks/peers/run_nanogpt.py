"""nanoGPT's train.py as it lies in a clone: `python run_nanogpt.py JOB.json DIRECTORY`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from clock import Clock, remember_model
from job import Job
from torch import Tensor, nn


def main() -> None:
    """Runs train.py with nanoGPT's own settings for small models, but the job's shape and budget."""
    job, directory = Job.load(), Path(sys.argv[2]).resolve()
    os.chdir(directory)
    sys.path.insert(0, str(directory))
    import model

    def logits(module: nn.Module, tokens: Tensor) -> Tensor:
        out: Tensor = module(tokens, tokens)[0]  # without targets it gives the last position alone
        return out

    torch.manual_seed(job.seed)
    Clock(job, remember_model(model, "GPT"), logits).hook()
    settings = {
        "device": job.device, "dtype": "bfloat16" if job.precision == "bf16" else "float32", "compile": job.compile,
        "dataset": job.data, "out_dir": job.out + ".dir", "eval_interval": 10**9, "eval_iters": 1, "log_interval": 10,
        "n_layer": job.layers, "n_head": job.heads, "n_embd": job.width, "block_size": job.context, "dropout": 0.0,
        "batch_size": job.micro, "gradient_accumulation_steps": job.batch // job.micro,
        "learning_rate": job.lr, "min_lr": job.lr / 10, "warmup_iters": job.warmup, "beta2": 0.99,
        "max_iters": job.steps - 1, "lr_decay_iters": job.steps,
    }  # fmt: skip
    sys.argv = ["train.py", *(f"--{name}={value}" for name, value in settings.items())]
    source = Path("train.py").read_text(encoding="utf-8")
    if job.precision == "bf16":  # nanoGPT has autocast, but only turns it on for GPUs
        only_gpu = "nullcontext() if device_type == 'cpu' else "
        assert source.count(only_gpu) == 1, "this train.py chooses its autocast in another way"
        source = source.replace(only_gpu, "")
    source = source.replace("torch.manual_seed(1337", f"torch.manual_seed({job.seed}")
    exec(compile(source, "train.py", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    main()
