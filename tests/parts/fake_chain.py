"""A run with stages as training and evaluation leave it, made up in a moment, for tests of the report."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.schema.evaluation import ChatSet, Evaluation, PreferenceSet
from configs.schema.recipe import Recipe, save
from configs.schema.stage import Stage
from eval.results import Change, Result, Sample
from eval.statistics import wilson
from pretrain.rollout.rollout_record import RecordedAnswer, write_rollout
from tests.parts.fake_run import fake_recipe, fake_results, write_metrics


def _stage(name: str, shape: str, **more: Any) -> dict[str, Any]:
    source = {"name": name, "path": f"/nowhere/{name}.jsonl", "shape": shape}
    return {"name": name, "data": {"sources": [source]}, "train": {"steps": 200}, **more}


_REWARDS = {"exact_answer": 1.0, "format": 0.1}
STAGES = [
    _stage("sft", "gsm8k", objective={"kind": "sft"}),
    _stage("reward", "hh", objective={"kind": "reward"}, **{"from": "sft"}),
    _stage("dpo", "hh", objective={"kind": "dpo"}, **{"from": "sft"}),
    _stage("grpo", "gsm8k", objective={"kind": "grpo", "rewards": _REWARDS}, **{"from": "sft"}),
]
GATES = ["grpo:chat/sums/accuracy > 0.8", "grpo:chat/sums/accuracy > sft:chat/sums/accuracy"]


def chain_recipe(directory: Path, gates: list[str] | None = None) -> Recipe:
    own = fake_recipe(directory, GATES if gates is None else gates)
    sets = Evaluation(
        chat=[ChatSet(name="sums", path="/nowhere/sums.jsonl")],
        preference=[PreferenceSet(name="hh", path="/nowhere/hh.jsonl")],
    )
    return own.model_copy(update={"stages": [Stage.model_validate(stage) for stage in STAGES], "evaluation": sets})


def share(name: str, right: int, n: int, **more: Any) -> Result:
    low, high = wilson(right, n)
    return Result(name, right / n, low, high, n, "share", True, f"Wilson over {n} items", **more)


def write_fake_chain(directory: Path, gates: list[str] | None = None, without: str = "") -> Path:
    """Writes the run of the base and of each stage; `without` names a stage that has no results."""
    directory.mkdir(parents=True, exist_ok=True)
    recipe = chain_recipe(directory, gates)
    save(recipe, directory)
    base = [result for result in fake_results().results if "bits_per_byte" in result.name or "copa" in result.name]
    base += [share("chat/sums/accuracy", 0, 500), share("chat/sums/stop_rate", 4, 500)]
    replace(fake_results(), results=base).save(directory)
    write_metrics(directory)
    answered = {"sft": (212, 488), "dpo": (208, 489), "grpo": (431, 499)}
    for number, stage in enumerate(STAGES):
        run = directory / "stages" / stage["name"]
        run.mkdir(parents=True)
        parent = stage.get("from", "base")
        own = recipe.stage(stage["name"])
        save(own, run)
        write_stage_metrics(run, stage["objective"]["kind"])
        if stage["name"] == "grpo":
            write_rollouts(run)
        if stage["name"] == without:
            continue
        facts = {
            "name": stage["name"],
            "kind": stage["objective"]["kind"],
            "parent": parent,
            "parent_results": "0f" * 16,
        }
        changes, samples = [], []
        if stage["name"] == "reward":
            results = [
                share("preference/hh/accuracy", 287, 470, chance=0.5),
                share("preference/hh/longer", 279, 470, chance=0.5),
                share("preference/hh/less_repeated", 201, 470, chance=0.5),
            ]
        else:
            right, ended = answered[stage["name"]]
            results = [replace(base[0], value=2.2 + 0.02 * number), share("chat/sums/accuracy", right, 500)]
            results.append(share("chat/sums/stop_rate", ended, 500))
            before = 0 if parent == "base" else answered[parent][0]
            changes = [
                Change(
                    "chat/sums/accuracy", parent, before / 500, right / 500, (right - before - 15) / 500,
                    (right - before + 15) / 500, 1e-9 if right != 208 else 0.71,
                    "McNemar's exact test over 500 items: 230 gained, 11 lost",
                    "better" if right > before else "no difference",
                ),
                Change(base[0].name, parent, 2.2, 2.22, 0.01, 0.03, None, "paired bootstrap over 28 items", "worse"),
            ]  # fmt: skip
            samples = [
                Sample("chat", "sums, prompt 1", "What is 12 + 30?", "12 + 30 = 42\n#### 42", "greedy", "42", True),
                Sample("chat", "sums, prompt 2", "What is <b>7</b> & 9?", "#### 15", "greedy", "16", False),
            ]
        replace(
            fake_results(), results=results, stage=facts, changes=changes, samples=samples, funnel=[],
            checkpoint={"name": "step_00000200", "step": 200, "fingerprint": f"{number}c" * 16},
        ).save(run)  # fmt: skip
    return directory


def write_rollouts(run: Path) -> None:
    for step, right in ((1, 0), (200, 3)):
        answers = [_drawn(slot, sample, sample < right) for slot in range(3) for sample in range(4)]
        write_rollout(run, step, answers, ["exact_answer", "format"])


def _drawn(slot: int, sample: int, right: bool) -> RecordedAnswer:
    text = "#### 42" if right else "#### 17 and so on"
    return RecordedAnswer(
        source="sums",
        document=f"sums-{slot}",
        slot=slot,
        sample=sample,
        reference="42",
        prompt=[0, 5, 6],
        ids=[7, 8],
        prompt_text=f"What is {slot} + {42 - slot}?",
        text=text,
        log_probs=[-0.1, -0.2],
        reward=float(right),
        advantage=0.0,
        finish="stop" if sample < 3 else "length",
        rewards={"exact_answer": float(right), "format": 1.0},
        matched={"exact_answer": text.removeprefix("#### "), "format": None},
    )


def write_stage_metrics(run: Path, kind: str) -> None:
    noise, lines = random.Random(1), []
    for step in range(1, 201):
        rise = 1 - math.exp(-step / 60)
        values: dict[str, float] = {"train/loss": 2 - rise + noise.gauss(0, 0.05), "train/tokens_per_s": 7e3}
        if kind == "grpo":
            right = 0.4 + 0.45 * rise + noise.gauss(0, 0.03)
            values = {
                "train/loss": noise.gauss(0, 0.01), "train/reward": right + 0.1, "train/accuracy": right,
                "train/kl": 0.05 * rise, "train/length": 9 - 2 * rise, "train/stop_rate": 0.97 + 0.02 * rise,
            }  # fmt: skip
        elif kind in ("dpo", "reward"):
            values |= {"train/accuracy": 0.5 + 0.12 * rise + noise.gauss(0, 0.04), "train/margin": 0.6 * rise}
        lines.append({"step": step, "time": 1e9 + step, "tokens": step * 4096, **values})
        if step % 50 == 0 and kind != "grpo":
            lines.append({"step": step, "time": 1e9 + step, "val/loss": 2 - 0.9 * rise})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
