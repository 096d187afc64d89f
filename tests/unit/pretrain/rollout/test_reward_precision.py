"""Rewards are computed in a precision of their own: not in that of the policy that drew the answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from pretrain.rewards.completion import Completion
from pretrain.rewards.registry import Scores
from pretrain.rollout.experience import Experience
from pretrain.rollout.prompt_validation import PromptValidator


class _Sampler:
    """Draws nothing, and knows in which precision it would have."""

    def draw(self, *_: Any) -> dict[int, Any]:
        assert torch.is_autocast_enabled("cpu")
        return {}


class _Scorer:
    """Gives the dtype of a product, as a reward model would compute it."""

    names = ()

    def __init__(self) -> None:
        self.dtypes: list[torch.dtype] = []

    def __call__(self, _: Sequence[Completion]) -> list[Scores]:
        self.dtypes.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        return []


@contextmanager
def _reading() -> Iterator[None]:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        yield


ENGINE: Any = SimpleNamespace(
    reading=_reading,
    rows=SimpleNamespace(rank=0, count=1),
    gather=lambda value: [value],
    sum=lambda values: values,
    report_phase=lambda *_: None,
)


def test_a_reward_model_is_not_computed_in_the_autocast_of_the_policy() -> None:
    scorer = _Scorer()
    made = Experience.__new__(Experience)
    made._sampler, made._scorer = _Sampler(), scorer  # type: ignore[assignment]
    assert made._drawn_and_scored(ENGINE, []) == ([], [])
    validator = PromptValidator.__new__(PromptValidator)
    validator._sampler, validator._scorer = _Sampler(), scorer  # type: ignore[assignment]
    validator._prompts = [None]  # type: ignore[list-item]
    assert validator(ENGINE)["val/reward"] == 0
    assert scorer.dtypes == [torch.float32, torch.float32]
