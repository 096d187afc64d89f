"""Chooses answers from the first and the last rollout of a run: the same prompt's place, before and after training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pretrain.rollout.rollout_record import RecordedAnswer, read_rollout, recorded_steps

_GROUPS = 2  # prompts of a rollout
_SAMPLES = 2  # answers to each
_LONGEST = 600  # characters


def example_rollouts(run: Path, until: int | None) -> list[dict[str, Any]]:
    """Returns some answers of the first and the last rollout; none for a run that keeps none.

    Args:
        run: directory of a stage.
        until: the step of the checkpoint that the page is about; None: the last.
    """
    steps = [step for step in recorded_steps(run) if until is None or step <= until]
    chosen = dict.fromkeys([*steps[:1], *steps[-1:]])
    return [{"step": step, "answers": _answers(read_rollout(run, step))} for step in chosen]


def _answers(recorded: list[RecordedAnswer]) -> list[dict[str, Any]]:
    slots = sorted({answer.slot for answer in recorded})[:_GROUPS]
    shown = [answer for answer in recorded if answer.slot in slots and answer.sample < _SAMPLES]
    return [_answer(answer) for answer in sorted(shown, key=lambda answer: (answer.slot, answer.sample))]


def _answer(answer: RecordedAnswer) -> dict[str, Any]:
    matched = next((text for text in answer.matched.values() if text), None)
    remarks = [f"reward {answer.reward:.3g}"]
    if len(answer.rewards) > 1:
        remarks += [f"{name} {value:.3g}" for name, value in answer.rewards.items()]
    remarks += [f"read as “{matched}”"] if matched else []
    remarks += ["cut at its longest length"] if answer.finish == "length" else []
    return {
        "prompt": _short(answer.prompt_text),
        "text": _short(answer.text) or "(nothing)",
        "reference": answer.reference,
        "remarks": ", ".join(remarks),
        "good": answer.rewards.get("exact_answer", 0.0) == 1.0,
    }


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
