"""litgpt's pretraining, from an environment that has it: `python run_litgpt.py JOB.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import litgpt.pretrain
import torch
from clock import Clock, Windows, remember_model
from job import Job
from litgpt.args import EvalArgs, TrainArgs
from litgpt.config import Config
from litgpt.data import DataModule
from torch.utils.data import DataLoader


class Stream(DataModule):
    """Windows of the shared token stream as litgpt's kind of data."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job

    def connect(self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int | None = None) -> None:
        """The job says all of this already."""

    def train_dataloader(self) -> DataLoader[Any]:
        """Windows in order: each is drawn at random."""
        return DataLoader(Windows(self._job), batch_size=self._job.micro, pin_memory=self._job.device != "cpu")

    val_dataloader = train_dataloader


def main() -> None:
    """`litgpt.pretrain.setup` with a Llama-like model of the job's shape, 4-wide MLP as in nanoGPT, tied embeddings."""
    job = Job.load()
    if not job.compile:
        torch.compile = lambda model, *_, **__: model  # litgpt has no switch for it
    if job.device == "cpu":
        litgpt.pretrain.parse_devices = lambda _: 1
    litgpt.pretrain.save_checkpoint = lambda *_, **__: None
    Clock(job, remember_model(litgpt.pretrain, "GPT"), lambda module, tokens: module(tokens)).hook()
    config = Config(
        name="benchmark", block_size=job.context, vocab_size=job.vocab, padded_vocab_size=job.vocab,
        n_layer=job.layers, n_head=job.heads, n_embd=job.width, rotary_percentage=1.0, parallel_residual=False,
        bias=False, norm_class_name="RMSNorm", mlp_class_name="GptNeoxMLP", gelu_approximate="tanh",
    )  # fmt: skip
    train = TrainArgs(
        save_interval=None, log_interval=10, global_batch_size=job.batch, micro_batch_size=job.micro,
        max_tokens=job.steps * job.batch * job.context, max_norm=1.0, min_lr=job.lr / 10, lr_warmup_steps=job.warmup,
        tie_embeddings=True,
    )  # fmt: skip
    optimizer = {
        "class_path": "torch.optim.AdamW",
        "init_args": {"lr": job.lr, "weight_decay": 0.1, "betas": (0.9, 0.95)},
    }
    litgpt.pretrain.setup(
        "benchmark", config, Path(job.out + ".dir"), precision="bf16-mixed" if job.precision == "bf16" else "32-true",
        data=Stream(job), train=train, eval=EvalArgs(interval=10**9, max_iters=1, final_validation=False),
        optimizer=optimizer, devices=1, logger_name="csv", seed=job.seed,
    )  # fmt: skip


if __name__ == "__main__":
    main()
