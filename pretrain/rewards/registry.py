"""Adds up the rewards that a recipe names. Each is kept by itself, so that it can be logged and traced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from configs.safety.user_code import UserCode
from configs.schema.objectives import Rewards
from pretrain.rewards.answers import UNFINISHED, Reward, check_answer
from pretrain.rewards.completion import Completion
from pretrain.rewards.custom import CustomFunction
from pretrain.rewards.format import check_format
from pretrain.rewards.length import check_length

# Scores rows of tokens (prompt, answer and its end) by a reward model.
ModelScorer = Callable[[Sequence[Sequence[int]]], Sequence[float]]
_Judge = Callable[[Sequence[Completion]], list[Reward]]


@dataclass(frozen=True)
class Scores:
    """Rewards of one answer by name, and their weighted sum."""

    rewards: dict[str, Reward]
    total: float


class Scorer:
    """Scores answers by all rewards of a recipe.

    Attributes:
        weights: name of each reward -> its weight in the sum.
    """

    def __init__(self, judges: Mapping[str, tuple[float, _Judge]]) -> None:
        """`judges`: name of each reward -> its weight and what computes it."""
        self.weights = {name: weight for name, (weight, _) in judges.items()}
        self._judges = {name: judge for name, (_, judge) in judges.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the rewards, in the order of the recipe's section."""
        return tuple(self.weights)

    def __call__(self, completions: Sequence[Completion]) -> list[Scores]:
        """Scores answers, in their order.

        Raises:
            ValueError: when a prompt lacks a reference that a reward needs, or a user's function misbehaves.
        """
        columns = {name: judge(completions) for name, judge in self._judges.items()}
        rows = [{name: column[row] for name, column in columns.items()} for row in range(len(completions))]
        return [Scores(row, sum(self.weights[name] * reward.value for name, reward in row.items())) for row in rows]


def make_rewards(rewards: Rewards, model: ModelScorer | None = None) -> Scorer:
    """Builds the scorer of a recipe's `rewards`.

    Args:
        rewards: the section.
        model: scores rows by the reward model of `rewards.model`; not needed without one.

    Raises:
        ValueError: for code that may not run or cannot be run, for two rewards of one name, or without the model.
    """
    judges: dict[str, tuple[float, _Judge]] = {}
    if rewards.exact_answer:
        judges["exact_answer"] = (rewards.exact_answer, _each(exact_reward))
    if rewards.format:
        judges["format"] = (rewards.format, _each(format_reward))
    if rewards.length is not None:
        longest = rewards.length.tokens
        judges["length"] = (rewards.length.weight, _each(lambda completion: check_length(len(completion.ids), longest)))
    if rewards.model is not None:
        if model is None:
            raise ValueError(f"rewards.model names stage {rewards.model.stage}, and no reward model was given")
        judges["model"] = (rewards.model.weight, _by_model(model))
    for number, custom in enumerate(rewards.custom):
        function = CustomFunction(custom, f"rewards.custom.{number}")
        if function.name in judges:
            raise ValueError(f"rewards: two are called `{function.name}`; rename the function in {function.code.file}")
        judges[function.name] = (custom.weight, _each(function))
    return Scorer(judges)


def rewards_identity(rewards: Rewards) -> dict[str, Any]:
    """Returns the entries for a fingerprint: settings, and the text of the user's functions without their paths."""
    settings = rewards.model_dump(mode="json", exclude={"custom"})
    custom = [{"weight": item.weight, **UserCode.read(item.code, item.options).identity} for item in rewards.custom]
    return {**settings, "custom": custom}


def _each(judge: Callable[[Completion], Reward]) -> _Judge:
    return lambda completions: [judge(completion) for completion in completions]


def exact_reward(completion: Completion) -> Reward:
    """Gives 1 for a finished answer that equals the reference, see `check_answer`.

    Raises:
        ValueError: when the prompt has no reference.
    """
    if completion.reference is None:
        raise ValueError(
            "rewards.exact_answer: a prompt has no reference to compare with; use a shape that has one, such as gsm8k"
        )
    return _of_finished(completion, check_answer(completion.text, completion.reference))


def format_reward(completion: Completion) -> Reward:
    """Gives 1 for a finished answer of the right form, see `check_format`."""
    return _of_finished(completion, check_format(completion.text))


def _of_finished(completion: Completion, reward: Reward) -> Reward:
    """Gives nothing for an answer that was cut: `#### 12` may be the start of `#### 123`."""
    return reward if completion.finished else Reward(0.0, reward.matched, (*reward.flags, UNFINISHED))


def _by_model(model: ModelScorer) -> _Judge:
    def judge(completions: Sequence[Completion]) -> list[Reward]:
        rows = [[*completion.prompt_ids, *completion.ids] for completion in completions]
        return [
            Reward(float(score), None, () if completion.finished else (UNFINISHED,))
            for score, completion in zip(model(rows), completions, strict=True)
        ]

    return judge
