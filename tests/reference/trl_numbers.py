"""Computes losses, gradients and trained weights with trl; a process of its own, because accelerate is process-wide.

`python -m tests.reference.trl_numbers DIRECTORY` reads `inputs.json` there, and directories that we exported: `policy`
and `reference` (a causal language model each) and `classifier` (of one label). It writes `numbers.json`, and tensors as
safetensors files. It uses nothing of the project.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

COMMON: dict[str, Any] = {
    "report_to": [], "use_cpu": True, "bf16": False, "save_strategy": "no", "logging_steps": 1, "max_steps": 1,
    "gradient_checkpointing": False, "disable_tqdm": True, "max_grad_norm": 0.0, "lr_scheduler_type": "constant",
    "remove_unused_columns": False, "optim": "sgd", "disable_dropout": True,
}  # fmt: skip


def arguments(directory: Path, **more: Any) -> dict[str, Any]:
    return {**COMMON, "output_dir": str(directory / "trl"), **more}


def model_of(directory: Path, name: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory / name, dtype=torch.float32, attn_implementation="eager")


def gradients(model: Any, file: Path) -> None:
    found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    save_file({name: value.contiguous() for name, value in found.items()}, file)


def supervised(directory: Path, inputs: dict[str, Any], packed: bool) -> dict[str, float]:
    """One step of SGD on all conversations; saves the weights after it."""
    rows = [{"input_ids": ids, "assistant_masks": mask} for ids, mask in inputs["conversations"]]
    settings = arguments(
        directory, learning_rate=inputs["rate"], per_device_train_batch_size=1 if packed else len(rows) // 2,
        gradient_accumulation_steps=1 if packed else 2, packing=packed, max_length=512, shuffle_dataset=False,
    )  # fmt: skip
    settings.pop("disable_dropout")
    model = model_of(directory, "policy")
    tokenizer = AutoTokenizer.from_pretrained(directory / "policy")
    trainer = SFTTrainer(
        model=model, args=SFTConfig(**settings), train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.train()
    name = "packed" if packed else "plain"
    save_file({key: value.detach().contiguous() for key, value in model.state_dict().items()}, directory / f"{name}.st")
    return {f"sft {name}": next(line["loss"] for line in trainer.state.log_history if "loss" in line)}


def rewards(directory: Path, inputs: dict[str, Any]) -> dict[str, Any]:
    """Scores of all texts, loss and gradient of the pairs, with margin and centring and without."""
    found: dict[str, Any] = {}
    tokenizer = AutoTokenizer.from_pretrained(directory / "classifier")
    for center in (None, inputs["center"]):
        model = AutoModelForSequenceClassification.from_pretrained(directory / "classifier", dtype=torch.float32)
        pairs = [
            {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected}
            | ({} if center is None else {"margin": margin})
            for (prompt, chosen, rejected), margin in zip(inputs["pairs"], inputs["margins"], strict=True)
        ]
        settings = RewardConfig(**arguments(directory, center_rewards_coefficient=center, max_length=512))
        data = Dataset.from_list(pairs)
        trainer = RewardTrainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer)
        batch = trainer.data_collator(pairs)
        with torch.no_grad():
            found["scores"] = model(batch["input_ids"], batch["attention_mask"]).logits.flatten().tolist()
        loss = trainer.compute_loss(model, batch)
        loss.backward()
        name = "reward centred" if center else "reward"
        found[name] = loss.item()
        gradients(model, directory / f"{name}.st")
    return found


def preferences(directory: Path, inputs: dict[str, Any]) -> dict[str, Any]:
    """Loss, rewards, margin and gradient of the pairs for each loss of DPO's family."""
    found: dict[str, Any] = {}
    tokenizer = AutoTokenizer.from_pretrained(directory / "policy")
    reference = model_of(directory, "reference")
    text = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2)  # made only to make a trainer
    pairs = [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), pair, strict=True)) for pair in inputs["pairs"]]
    for name, settings in inputs["dpo"].items():
        model = model_of(directory, "policy")
        args = DPOConfig(**arguments(directory, max_length=512, **settings))
        trainer = DPOTrainer(
            model=model, ref_model=reference, args=args, train_dataset=text, processing_class=tokenizer
        )
        loss = trainer.compute_loss(model.train(), trainer.data_collator(pairs))
        loss.backward()
        metrics = {key: values[-1] for key, values in trainer._metrics["train"].items()}
        found[name] = {"loss": loss.item(), **metrics}
        gradients(model, directory / f"{name}.st")
    for name, config, kind in (("simpo", CPOConfig, CPOTrainer), ("orpo", ORPOConfig, ORPOTrainer)):
        settings = arguments(directory, **inputs[name])
        settings.pop("disable_dropout")
        trainer = kind.__new__(kind)
        trainer.args = config(**settings)
        for key, value in {
            "beta": 0.1,
            "alpha": 0.0,
            "simpo_gamma": 0.5,
            "loss_type": "simpo",
            "label_smoothing": 0.0,
        }.items():
            setattr(trainer, key, inputs[name].get(key, value))
        trainer.accelerator = type("Device", (), {"device": "cpu"})()
        means = torch.tensor(inputs["means"])
        of_pairs = trainer.cpo_loss if name == "simpo" else trainer.odds_ratio_loss
        found[name] = of_pairs(means[:, 0], means[:, 1])[0].tolist()
    return found


if __name__ == "__main__":
    where = Path(sys.argv[1])
    given = json.loads((where / "inputs.json").read_text())
    torch.manual_seed(0)
    numbers = {
        **supervised(where, given, packed=False),
        **supervised(where, given, packed=True),
        **rewards(where, given),
        **preferences(where, given),
    }
    (where / "numbers.json").write_text(json.dumps(numbers))
