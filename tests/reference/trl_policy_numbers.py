"""Computes policy losses and gradients with trl's GRPOTrainer, in a process of its own: accelerate is process-wide.

`python -m tests.reference.trl_policy_numbers DIRECTORY` reads `inputs.json` there, and the exported model `policy`. It
writes `numbers.json` and the gradients as safetensors. It uses nothing of the project.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer


def padded(rows: list[list[float]], value: float, left: bool = False) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor(
        [[value] * (width - len(row)) + row if left else row + [value] * (width - len(row)) for row in rows]
    )


def main(directory: Path) -> None:
    given: dict[str, Any] = json.loads((directory / "inputs.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(directory / "policy")
    data = Dataset.from_list([{"prompt": "a"}] * 8)  # made only to make a trainer
    prompts, answers = given["prompts"], given["answers"]
    count = len(answers)
    numbers: dict[str, float] = {}
    for name, case in given["cases"].items():
        model = AutoModelForCausalLM.from_pretrained(directory / "policy", dtype=torch.float32)
        arguments = GRPOConfig(
            output_dir=str(directory / "trl"), report_to=[], use_cpu=True, bf16=False, save_strategy="no",
            gradient_checkpointing=False, disable_tqdm=True, remove_unused_columns=False,
            per_device_train_batch_size=count, num_generations=count, steps_per_generation=1,
            max_completion_length=given["longest"], temperature=given["temperature"], **case["settings"],
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=model, reward_funcs=lambda completions, **_: [0.0] * len(completions), args=arguments,
            train_dataset=data, processing_class=tokenizer,
        )  # fmt: skip
        trainer.current_gradient_accumulation_steps = 1
        inputs = {
            "prompt_ids": padded(prompts, 0, left=True).long(),
            "prompt_mask": padded([[1.0] * len(row) for row in prompts], 0, left=True).long(),
            "completion_ids": padded(answers, 0).long(),
            "completion_mask": padded([[1.0] * len(row) for row in answers], 0).long(),
            "tool_mask": padded(given["masks"], 0).long(),
            "advantages": torch.tensor(given["advantages"]),
            "num_items_in_batch": torch.tensor(float(sum(map(sum, given["masks"])))),
        }
        if case["old"]:
            inputs["old_per_token_logps"] = padded(given["old"], 0)
        if trainer.beta:
            inputs["ref_per_token_logps"] = padded(given["reference"], 0)
        loss = trainer._compute_loss(trainer.model.train(), inputs)
        loss.backward()
        numbers[name] = loss.item()
        numbers[f"{name} clipped"] = trainer._metrics["train"]["clip_ratio/region_mean"][-1]
        found = {key: value.grad.contiguous() for key, value in model.named_parameters() if value.grad is not None}
        save_file(found, directory / f"{name}.st")
    (directory / "numbers.json").write_text(json.dumps(numbers))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
