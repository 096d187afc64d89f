"""Tests of `pretrain.rollout.rollout_record`: what is written is read back, whole or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pretrain.rollout.rollout_record import (
    RecordedAnswer,
    digest,
    read_rollout,
    recorded_steps,
    rollout_file,
    write_rollout,
)

ANSWER = RecordedAnswer(
    source="sums", document="sums/1", slot=7, sample=3, reference="#### 4", prompt=[0, 2, 9], ids=[5, 6, 3],
    prompt_text="2+2", text="#### 4 \ud800"[:6], log_probs=[-0.5, None, -0.25], reward=1.1, advantage=-0.3,
    finish="stop", rewards={"exact_answer": 1.0, "format": 1.0}, matched={"exact_answer": "4", "format": None},
    flags=["exact_answer:two_markers"],
)  # fmt: skip


def test_a_rollout_is_read_as_it_was_written(tmp_path: Path) -> None:
    other = replace(ANSWER, sample=4, reference=None, ids=[], log_probs=[], flags=[])
    file = write_rollout(tmp_path, 12, [ANSWER, other], ["exact_answer", "format"])
    assert file == tmp_path / "rollouts" / "step_00000012.parquet"
    assert read_rollout(tmp_path, 12) == [ANSWER, other]
    assert read_rollout(tmp_path, 13, updates=2) == [ANSWER, other]  # step 13 trains on it too
    assert recorded_steps(tmp_path) == [12] and len(list(file.parent.iterdir())) == 1


def test_equal_answers_give_equal_bytes(tmp_path: Path) -> None:
    for run in ("one", "two"):
        write_rollout(tmp_path / run, 1, [ANSWER], ["exact_answer", "format"])
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    write_rollout(tmp_path / "two", 1, [replace(ANSWER, ids=[5, 7, 3])], ["exact_answer", "format"])
    assert digest(tmp_path / "one") != digest(tmp_path / "two")


def test_a_missing_or_damaged_rollout_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keeps none: is it a run of grpo or ppo"):
        read_rollout(tmp_path, 1)
    write_rollout(tmp_path, 5, [ANSWER], ["exact_answer", "format"])
    with pytest.raises(ValueError, match="no rollout of step 4; its first is that of step 5"):
        read_rollout(tmp_path, 4)
    with pytest.raises(ValueError, match="no rollout of step 9; its last is that of step 5"):
        read_rollout(tmp_path, 9, updates=4)
    write_rollout(tmp_path, 13, [ANSWER], ["exact_answer", "format"])
    with pytest.raises(ValueError, match="no rollout of step 9; the file is missing from"):
        read_rollout(tmp_path, 9, updates=4)
    rollout_file(tmp_path, 5).write_bytes(b"PAR1 half a file")
    with pytest.raises(ValueError, match=r"step_00000005.parquet cannot be read"):
        read_rollout(tmp_path, 5)
