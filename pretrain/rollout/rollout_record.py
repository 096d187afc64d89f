"""Keeps every rollout in the run directory, as Parquet: `RUN/rollouts/step_00000010.parquet`.

A file holds the answers of the rollout that the optimizer step of this number was the first to train on, one row each.
It is written before that step is made, complete or not at all. A run that is resumed draws the same answers and writes
the same file again. So a rollout can be traced, searched and replayed:

| column            | type           | meaning                                                                   |
|-------------------|----------------|---------------------------------------------------------------------------|
| source, document  | string         | where the prompt is from: source and document                             |
| slot, sample      | int64          | place of the prompt in the run, and of the answer in its group            |
| reference         | string         | what the prompt's record gives as the right answer                        |
| prompt, ids       | list of int32  | token ids that were read and drawn                                        |
| prompt_text, text | string         | both, decoded for people                                                  |
| log_probs         | list of float  | the sampler's, of each id; null where a tool's output stands              |
| reward, advantage | float64        | the weighted sum of rewards; ppo: the mean over tokens                    |
| reward/NAME       | float64        | one reward, before its weight                                             |
| matched/NAME      | string         | the stretch of text that the reward was given for                         |
| flags             | list of string | what the rewards remarked, as `NAME:flag`                                 |
| finish            | string         | stop or length                                                            |
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.common.files import atomic_path

if TYPE_CHECKING:
    import pyarrow as pa

ROLLOUTS = "rollouts"
_REWARD, _MATCHED = "reward/", "matched/"


@dataclass(frozen=True)
class RecordedAnswer:
    """One row of the record; see above."""

    source: str
    document: str
    slot: int
    sample: int
    reference: str | None
    prompt: list[int]
    ids: list[int]
    prompt_text: str
    text: str
    log_probs: list[float | None]
    reward: float
    advantage: float
    finish: str
    rewards: dict[str, float] = field(default_factory=dict)
    matched: dict[str, str | None] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)


def rollout_file(run: Path, step: int) -> Path:
    """Where the rollout stands that the step of this number (from 1, as in metrics.jsonl) trains on first."""
    return run / ROLLOUTS / f"step_{step:08d}.parquet"


def write_rollout(run: Path, step: int, answers: Iterable[RecordedAnswer], names: Iterable[str]) -> Path:
    """Writes the answers of a rollout atomically; equal answers give equal bytes. `names` are those of the rewards."""
    import pyarrow.parquet as pq

    file = rollout_file(run, step)
    table = _table(list(answers), list(names))
    with atomic_path(file) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return file


def _table(answers: list[RecordedAnswer], names: list[str]) -> pa.Table:
    import pyarrow as pa

    text, number, ids = pa.string(), pa.float64(), pa.list_(pa.int32())
    types = {
        "source": text, "document": text, "slot": pa.int64(), "sample": pa.int64(), "reference": text,
        "prompt": ids, "ids": ids, "prompt_text": text, "text": text, "log_probs": pa.list_(pa.float32()),
        "reward": number, "advantage": number, "finish": text, "flags": pa.list_(text),
    }  # fmt: skip
    columns = {name: pa.array([getattr(answer, name) for answer in answers], type_) for name, type_ in types.items()}
    for name in names:
        columns[_REWARD + name] = pa.array([answer.rewards.get(name) for answer in answers], number)
        columns[_MATCHED + name] = pa.array([answer.matched.get(name) for answer in answers], text)
    return pa.table(columns)


def recorded_steps(run: Path) -> list[int]:
    """Numbers of the steps that a rollout was made for, in order."""
    return sorted(int(file.stem.removeprefix("step_")) for file in (run / ROLLOUTS).glob("step_*.parquet"))


def rollout_of(run: Path, step: int, updates: int = 1) -> int:
    """The number of the step whose rollout this step trained on too: a rollout serves `updates` steps.

    Raises:
        ValueError: when the run keeps no such rollout.
    """
    known = recorded_steps(run)
    serving = [number for number in known if number <= step < number + updates]
    if serving:
        return serving[-1]
    if not known:
        kept = "it keeps none: is it a run of grpo or ppo?"
    elif step < known[0]:
        kept = f"its first is that of step {known[0]}"
    elif step >= known[-1] + updates:
        kept = f"its last is that of step {known[-1]}"
    else:
        kept = f"the file is missing from {run / ROLLOUTS}"
    raise ValueError(f"{run} has no rollout of step {step}; {kept}")


def read_rollout(run: Path, step: int, updates: int = 1) -> list[RecordedAnswer]:
    """The answers of the rollout that the step of this number (from 1) trained on, in the order they were drawn.

    Raises:
        ValueError: when there is none (`rollout_of`), or the file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = rollout_file(run, rollout_of(run, step, updates))
    try:
        rows = pq.read_table(file).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{file} cannot be read ({error}); train from the checkpoint before it again") from error
    return [_answer(row) for row in rows]


def _answer(row: dict[str, Any]) -> RecordedAnswer:
    plain = {name: value for name, value in row.items() if not name.startswith((_REWARD, _MATCHED))}
    rewards = {name.removeprefix(_REWARD): row[name] for name in row if name.startswith(_REWARD)}
    matched = {name.removeprefix(_MATCHED): row[name] for name in row if name.startswith(_MATCHED)}
    return RecordedAnswer(**plain, rewards=rewards, matched=matched)


def digest(run: Path) -> str:
    """SHA-256 over all rollouts of a run: what two runs must share that are to be the same."""
    found = hashlib.sha256()
    for step in recorded_steps(run):
        found.update(f"{step}/".encode())
        found.update(rollout_file(run, step).read_bytes())
    return found.hexdigest()
