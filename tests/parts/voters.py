"""Sessions and voters made up in a moment, with known strengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from configs.schema.evaluation import PeopleSet
from eval.people.davidson import PairVotes
from eval.people.session import Asked, JudgedModel, Session, Trial, plan, text_hash
from eval.people.votes import Vote, VotesFile, parse_vote

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "then", "sleeps"]


def people_set(**changes: Any) -> PeopleSet:
    return PeopleSet(**{"name": "main", "path": "prompts.jsonl", "attention": 2} | changes)


def judged(names: Sequence[str]) -> list[JudgedModel]:
    return [
        JudgedModel(name, f"stages/{name}", 100, f"{number:02d}" * 16, "greedy") for number, name in enumerate(names)
    ]


def answer_of(model: int, prompt: int) -> str:
    return " ".join(WORDS[(model * 3 + prompt * 5 + place) % len(WORDS)] for place in range(7)) + f" {prompt}.{model}"


def small_session(
    prompts: int = 8, models: Sequence[str] = ("sft", "grpo"), kind: Any = "pairs", **changes: Any
) -> Session:
    asked = [
        Asked(f"Question {number}?", tuple(answer_of(model, number) for model in range(len(models))))
        for number in range(prompts)
    ]
    return plan(people_set(**changes), kind, judged(models), asked, "2026-11-30T09:00:00+00:00", seed=1)


def raw_vote(session: Session, of: Trial, slot: int = 0, rater: str = "Ada", **changes: Any) -> dict[str, Any]:
    """The line of a vote for the answer that stands left, in the order of the list."""
    fields: dict[str, Any] = {
        "page": session.page, "rater": rater, "key": f"key of {rater}", "slot": slot, "trial": of.id,
        "shown": [text_hash(text) for text in of.answers], "milliseconds": 4000,
        "at": f"2026-11-30T09:{slot // 60 % 60:02d}:{slot % 60:02d}Z", "note": "",
    }  # fmt: skip
    if session.rates:
        fields["ratings"] = {scale.name: 3 for scale in session.settings.scales}
    else:
        fields["choice"] = "left"
    return fields | changes


def cast(
    session: Session, rater: str, choose: Callable[[Trial, int], Any], trials: Sequence[Trial] | None = None
) -> list[Vote]:
    """Votes of one rater on the trials in order; every second one is shown with its sides swapped.

    `choose(trial, place)` gives the place of the better answer in the trial's list, -1 for a tie, -2 for both bad; or
    for ratings the grades. `place`: which answer stands left.
    """
    votes = []
    for slot, trial in enumerate(session.trials if trials is None else trials):
        swapped = slot % 2 if len(trial.answers) > 1 else 0
        shown = [text_hash(text) for text in trial.answers]
        said = choose(trial, swapped)
        changes: dict[str, Any] = {"shown": shown[::-1] if swapped else shown}
        if session.rates:
            changes["ratings"] = said
        else:
            changes["choice"] = {-1: "tie", -2: "bad"}.get(said, "left" if said == swapped else "right")
        votes.append(parse_vote(raw_vote(session, trial, slot, rater, **changes), session))
    return votes


def prefers(session: Session, name: str) -> Callable[[Trial, int], int]:
    """A voter who takes this model's answer, and in a test the good one."""
    number = session.names.index(name)

    def choose(trial: Trial, _swapped: int) -> int:
        if trial.models is None:
            return trial.good or 0
        return trial.models.index(number) if number in trial.models else -1

    return choose


def file_of(*votes: Vote) -> VotesFile:
    return VotesFile(list(votes))


def simulate(
    generator: np.random.Generator, theta: Sequence[float], gamma: float, log_nu: float, prompts: int, raters: int = 1,
    spread: float = 0.0,
) -> PairVotes:  # fmt: skip
    """Votes of every rater on every pair of models for every prompt.

    `spread`: standard deviation of what a prompt and a rater add to the difference of two models.
    """
    count = len(theta)
    pairs = np.array([(one, other) for one in range(count) for other in range(one + 1, count)])
    prompt, rater, pair = (axis.reshape(-1) for axis in np.mgrid[:prompts, :raters, : len(pairs)])
    flipped = generator.random(len(pair)) < 0.5
    left = np.where(flipped, pairs[pair, 1], pairs[pair, 0])
    right = np.where(flipped, pairs[pair, 0], pairs[pair, 1])
    of_prompt = generator.normal(0, spread, (prompts, count))
    of_rater = generator.normal(0, spread, (raters, count))
    strength = np.asarray(theta) + of_prompt[prompt] + of_rater[rater]
    number = np.arange(len(pair))
    logits = np.stack([strength[number, left] + gamma, strength[number, right]], axis=1)
    logits = np.concatenate([logits, log_nu + logits.mean(axis=1, keepdims=True)], axis=1)
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    outcome = (generator.random((len(pair), 1)) > chances.cumsum(axis=1)).sum(axis=1)
    ones = np.ones(len(pair))
    return PairVotes(left, right, outcome, prompt, rater, ones > 0, ones)
