"""`transformers.Trainer` on a GPT-2 of the job's shape: `python run_trainer.py JOB.json`."""

from __future__ import annotations

from typing import Any

from clock import Clock, Windows
from job import Job
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed


class Labelled(Windows):
    """Windows as the Trainer wants them: it shifts the labels itself."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = super().__getitem__(index)[:-1]
        return {"input_ids": ids, "labels": ids}


def main() -> None:
    """The Trainer's own defaults (fused AdamW), with the job's shape, budget and learning rate."""
    job = Job.load()
    set_seed(job.seed)
    config = GPT2Config(
        vocab_size=job.vocab, n_positions=job.context, n_embd=job.width, n_layer=job.layers, n_head=job.heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model: Any = GPT2LMHeadModel(config)
    Clock(job, lambda: model, lambda module, tokens: module(input_ids=tokens).logits).hook()
    arguments = TrainingArguments(
        output_dir=job.out + ".dir", max_steps=job.steps, per_device_train_batch_size=job.micro,
        gradient_accumulation_steps=job.batch // job.micro, learning_rate=job.lr, lr_scheduler_type="cosine",
        warmup_steps=job.warmup, weight_decay=0.1, adam_beta2=0.95, max_grad_norm=1.0, logging_steps=10,
        save_strategy="no", report_to=[], bf16=job.precision == "bf16", torch_compile=job.compile,
        use_cpu=job.device == "cpu", seed=job.seed, disable_tqdm=True,
    )  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=Labelled(job)).train()


if __name__ == "__main__":
    main()
