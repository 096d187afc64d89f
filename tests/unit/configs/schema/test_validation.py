"""Settings of what is measured during training: what they refuse, and how they name it."""

from __future__ import annotations

from typing import Any

import pytest

from configs.schema.evaluation import Benchmarks, Core, Evaluation, PerplexitySet
from configs.schema.train import CheckpointPolicy, Train
from configs.schema.validation import ValidationPolicy, check_parts, more_is_better

EVALUATION = Evaluation(
    perplexity=[PerplexitySet(name="heldout", path="x")],
    benchmarks=Benchmarks(tasks=["copa"]),
    core=Core(tasks=["copa"]),
)


def policy(*parts: str, **more: Any) -> ValidationPolicy:
    return ValidationPolicy.model_validate({"every": 10, "evaluation": {"parts": list(parts), **more}})


@pytest.mark.parametrize(
    "part", ["perplexity/heldout", "bench*", "*", "aggregate/core", "samples/*", "conversations/sft"]
)
def test_parts_of_the_evaluation(part: str) -> None:
    check_parts(policy(part), EVALUATION, sharing=1)


@pytest.mark.parametrize("part", ["perplexity/held", "piqa", "preference/sums", "compression/heldout"])
def test_a_part_that_is_not_there_is_named_with_those_that_are(part: str) -> None:
    with pytest.raises(
        ValueError, match=rf"`{part}` names no part of `evaluation`; there are benchmark/copa, aggregate"
    ):
        check_parts(policy(part), EVALUATION, sharing=1)


def test_ranks_that_share_rows_score_nothing() -> None:
    with pytest.raises(ValueError, match=r"cannot be combined with train\.parallel"):
        check_parts(policy("*"), EVALUATION, sharing=2)
    check_parts(policy(), EVALUATION, sharing=2)


def saving(best_by: str, validation: ValidationPolicy, every: int = 20) -> Train:
    return Train(steps=1, checkpoint=CheckpointPolicy(every=every, keep_best=1, best_by=best_by), validation=validation)


def test_the_best_needs_a_curve_that_is_measured_at_each_checkpoint() -> None:
    saving("val/reward", policy())
    saving("eval/benchmark/copa/acc", policy("*", every=20))
    with pytest.raises(ValueError, match=r"not a multiple of 40 \(validation.evaluation.every\)"):
        saving("eval/benchmark/copa/acc", policy("*", every=40))
    with pytest.raises(ValueError, match="names none; add its part, such as benchmark/copa"):
        saving("eval/benchmark/copa/acc", policy())
    with pytest.raises(ValueError, match="neither more nor less of it is known to be better"):
        saving("val/length", policy())
    with pytest.raises(ValueError, match="best_by"):
        CheckpointPolicy(best_by="loss")


def test_directions() -> None:
    assert more_is_better("val/loss") is False and more_is_better("val/bits_per_byte/books") is False
    assert more_is_better("val/reward") is True and more_is_better("val/length") is None
