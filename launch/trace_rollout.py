"""Implements `replica trace` for reinforcement learning: from a reward back to its function, its text and its file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from configs.common.console import Console
from configs.common.notices import note
from configs.safety.terminal import printable
from configs.schema.objectives import CustomReward, Reinforcement, Rewards
from configs.schema.recipe import Recipe

if TYPE_CHECKING:
    from pretrain.rollout.rollout_record import RecordedAnswer

_CLIPPED = 48  # characters of a text in the table
_NAMES = 16  # width of the column of names
# What computes each reward that ships, and what it gives 1 for.
_FUNCTIONS = {
    "exact_answer": "pretrain/rewards/answers.py: the last `#### x` equals the reference",
    "format": "pretrain/rewards/format.py: exactly one `####`, in the last line",
    "length": "pretrain/rewards/length.py: the shorter, the more",
}


def print_rollout(recipe: Recipe, step: int, console: Console) -> None:
    """Prints one line for each answer of the rollout that a step trained on.

    Raises:
        ValueError: when the run has no rollout of this step.
    """
    from pretrain.rollout.rollout_record import read_rollout, rollout_of

    updates = _updates(recipe)
    answers = read_rollout(recipe.run_directory, step, updates)
    if updates > 1:
        first = rollout_of(recipe.run_directory, step, updates)
        note(f"the rollout of step {first}; the steps {first} to {first + updates - 1} train on a part of it each")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("sample", "prompt", "answer", "reference", "reward", "advantage", "end"):
        table.add_column(title, justify="right" if title in {"sample", "reward", "advantage"} else "left")
    for number, answer in enumerate(answers):
        cells = (
            f"{number}",
            _clipped(answer.prompt_text),
            _clipped(answer.text),
            _clipped(answer.reference or ""),
            f"{answer.reward:.4g}",
            f"{answer.advantage:+.3g}",
            answer.finish,
        )
        table.add_row(*(printable(cell) for cell in cells))
    console.print(table)


def print_answer(recipe: Recipe, step: int, sample: int, console: Console) -> None:
    """Prints all that is known of one answer of a step: texts, each reward with its function, the prompt's document.

    Raises:
        ValueError: when the run has no rollout of this step, or that has no such answer.
    """
    from pretrain.rollout.rollout_record import read_rollout

    answers = read_rollout(recipe.run_directory, step, _updates(recipe))
    if not 0 <= sample < len(answers):
        raise ValueError(f"--sample {sample}: the rollout of step {step} has the answers 0 to {len(answers) - 1}")
    for name, text in answer_lines(recipe, answers[sample]):
        shown = printable(text).replace("\n", "\n" + " " * _NAMES)  # a text must not look like a line of ours
        console.print(Text(f"{name:<{_NAMES}}", style="bold").append(shown, style=""), soft_wrap=True)


def _updates(recipe: Recipe) -> int:
    """Steps that train on one rollout."""
    objective = recipe.train.objective
    return objective.rollout.updates if isinstance(objective, Reinforcement) else 1


def answer_lines(recipe: Recipe, answer: RecordedAnswer) -> Iterator[tuple[str, str]]:
    """Yields (name, text) of each thing that is known of an answer."""
    objective = recipe.train.objective
    yield "prompt", answer.prompt_text
    yield "answer", answer.text
    yield "end", f"{answer.finish}, after {len(answer.ids)} tokens"
    if answer.reference is not None:
        yield "reference", answer.reference
    yield "reward", f"{answer.reward:.6g}; advantage {answer.advantage:+.4g}"
    if isinstance(objective, Reinforcement):
        for name, value in answer.rewards.items():
            weight, function = _function(recipe, objective.rewards, name)
            yield f"  {name}", f"{value:.4g} x {weight:g} = {value * weight:.4g}; {_matched(answer, name)}; {function}"
    if answer.flags:
        yield "remarks", ", ".join(answer.flags)
    yield "drawn as", f"slot {answer.slot}, sample {answer.sample} of its group"
    yield "document", f"{answer.document}, of source {answer.source}"
    for path in _files(recipe, answer):
        yield "file", path


def _function(recipe: Recipe, rewards: Rewards, name: str) -> tuple[float, str]:
    """The weight of a reward, and what computed it."""
    if name == "exact_answer":
        return rewards.exact_answer, _FUNCTIONS[name]
    if name == "format":
        return rewards.format, _FUNCTIONS[name]
    if name == "length" and rewards.length is not None:
        return rewards.length.weight, f"{_FUNCTIONS[name]} (0 from {rewards.length.tokens} tokens on)"
    if name == "model" and rewards.model is not None:
        stage = rewards.model.stage
        return rewards.model.weight, f"the reward model of stage {stage}, {recipe.parents.get(stage, '')}"
    own = next((custom for custom in rewards.custom if _name(custom) == name), None)
    return (own.weight, own.code) if own is not None else (float("nan"), "not in the recipe any more")


def _name(custom: CustomReward) -> str:
    return custom.code.rpartition(":")[2]


def _matched(answer: RecordedAnswer, name: str) -> str:
    """Where the text stands that the reward was given for."""
    matched = answer.matched.get(name)
    if not matched:
        return "for no stretch of the text"
    begin = answer.text.rfind(matched)
    place = f", characters {begin} to {begin + len(matched)} of the answer" if begin >= 0 else ""
    return f"for `{matched}`{place}"


def _files(recipe: Recipe, answer: RecordedAnswer) -> list[str]:
    """The files of the answer's source, those alone whose name the document's id begins with if there are such."""
    source = next((one for one in recipe.data.sources if one.name == answer.source), None)
    if source is None or source.path is None:
        return []
    from configs.common.stores import is_url
    from data_prep.sources.places import expand

    patterns = [source.path] if isinstance(source.path, str) else source.path
    files = [file for path in patterns for file in ([path] if is_url(path) else expand(path))]
    named = [str(file) for file in files if answer.document.startswith(Path(str(file)).name)]
    return named or [str(file) for file in files[:4]]


def _clipped(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _CLIPPED else f"{line[: _CLIPPED - 1]}…"
