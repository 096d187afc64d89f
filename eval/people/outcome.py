"""Makes scores of votes: strengths in Elo points, win rates, mean grades, and how far raters can be trusted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eval.people.davidson import LEFT, RIGHT, TIE, PairVotes, check_connected, fit
from eval.people.intervals import FEWEST_RATERS, intervals
from eval.people.krippendorff import Level, alpha, alpha_interval
from eval.people.raters import RaterVotes, chosen_place, facts_of, same_verdict, sort_votes
from eval.people.session import VOTES, Session, load_session, text_hash
from eval.people.votes import VotesFile, read_votes
from eval.results import Result
from eval.statistics import Interval, mcnemar, no_interval, wilson

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Judgement:
    """A session with its votes.

    Attributes:
        raters: those that count.
        aside: those that were set aside.
    """

    session: Session
    raters: tuple[RaterVotes, ...]
    aside: tuple[RaterVotes, ...]

    @classmethod
    def of(cls, session: Session, file: VotesFile) -> Judgement:
        """Sorts the votes of a file."""
        known = sort_votes(session, file)
        counted, aside = ([one for one in known if (one.aside is None) == kept] for kept in (True, False))
        return cls(session, tuple(counted), tuple(aside))

    @property
    def votes(self) -> int:
        """Number of votes that count, without repeats and tests of attention."""
        return sum(len(rater.first) for rater in self.raters)

    def raters_of(self, numbers: Ints) -> Ints | None:
        """Returns the numbers of the votes' raters if intervals are over raters too, else None."""
        return numbers if _count(numbers) >= FEWEST_RATERS else None

    def over(self, prompts: int, numbers: Ints) -> str:
        """Says what an interval of votes by these raters is over."""
        count = _count(numbers)
        if count >= FEWEST_RATERS:
            return f"bootstrap over {prompts} prompts and {count} raters"
        whom = "this rater" if count == 1 else f"these {count} raters"
        return f"bootstrap over {prompts} prompts; it holds for {whom}, not for others"


def _count(raters: Ints) -> int:
    """Counts the raters of votes. Who voted only in tests, or took every vote back, is none of them."""
    return len(np.unique(raters[raters >= 0]))


def load_judgement(directory: Path) -> Judgement:
    """Reads a session and its votes.

    Raises:
        ValueError: see `load_session` and `read_votes`.
    """
    session = load_session(directory)
    return Judgement.of(session, read_votes(directory / VOTES, session))


def without_votes(judgement: Judgement) -> str:
    """Says of a session without a vote that counts why there is none."""
    who = "everybody who voted was set aside" if judgement.aside else "nobody has voted"
    return f"people/{judgement.session.name}: {who}; ask people with `replica judge`"


def people_results(judgement: Judgement, samples: int) -> list[Result]:
    """Computes all scores of a session.

    Args:
        judgement: votes of at least one rater that counts.
        samples: number of resamples of each interval.

    Raises:
        ValueError: when there is no vote that counts, or votes do not connect the models.
    """
    session = judgement.session
    if not judgement.votes:
        raise ValueError(without_votes(judgement))
    results = (_rated if session.rates else _compared)(judgement, samples)
    results += _trusted(judgement)
    stamp = {"models": ", ".join(f"{one.name} at step {one.step:,} ({one.fingerprint[:12]})" for one in session.models)}
    stamp |= {"answers": session.models[0].settings, "raters": ", ".join(rater.name for rater in judgement.raters)}
    note = "; ".join([*session.notes, *_left_out(judgement)])
    return [
        replace(
            result,
            name=f"human/{session.name}/{result.name}",
            set=session.page,
            settings=stamp,
            note="; ".join(filter(None, (result.note, note))) or None,
        )
        for result in results
    ]


def _left_out(judgement: Judgement) -> list[str]:
    return [f"without {len(one.first)} votes of {one.name} ({one.aside})" for one in judgement.aside]


# --------------------------------------------------------------------------------------------------------- comparisons
def pair_votes(judgement: Judgement) -> PairVotes:
    """Returns all comparisons of two models. Identical answers, which nobody sees, are ties of the typical weight.

    The typical weight is the number of votes that a trial has which somebody saw: so such a tie counts like others.
    """
    session = judgement.session
    rows: list[tuple[float, ...]] = []
    for number, rater in enumerate(judgement.raters):
        for vote in rater.first:
            trial = session.by_id[vote.trial]
            assert trial.models is not None
            place = chosen_place(session, vote)
            outcome = TIE if place < 0 else LEFT if vote.choice == "left" else RIGHT
            sides = trial.models if _stands_as_listed(judgement, vote.trial, vote.shown) else trial.models[::-1]
            rows.append((*sides, outcome, trial.prompt, number, 1, 1))
    seen = len({vote.trial for rater in judgement.raters for vote in rater.first})
    weight = len(rows) / max(1, seen)
    rows += [(one, other, TIE, prompt, -1, 0, weight) for prompt, one, other in session.alike]
    table = np.array(rows, dtype=np.float64)
    left, right, outcome, prompt, rater = table[:, :5].astype(np.int64).T
    return PairVotes(left, right, outcome, prompt, rater, table[:, 5] > 0, table[:, 6])


def _stands_as_listed(judgement: Judgement, trial: str, shown: Sequence[str]) -> bool:
    return text_hash(judgement.session.by_id[trial].answers[0]) == shown[0]


def _compared(judgement: Judgement, samples: int) -> list[Result]:
    session, votes = judgement.session, pair_votes(judgement)
    check_connected(votes.left, votes.right, session.names)
    count = len(session.models)
    strengths = fit(votes, count)
    prompts = len(np.unique(votes.prompt))

    def estimates(weights: Floats) -> Floats:
        found = fit(votes, count, weights)
        return np.concatenate([found.elo, found.left_share[:, None]], axis=1)

    found = intervals(estimates, votes.prompt, judgement.raters_of(votes.rater), samples)
    how = judgement.over(prompts, votes.rater) if found[0] else no_interval(prompts, "prompt")
    results = []
    for number, name in enumerate(session.names):
        unit = "Elo points, the mean of the models is 0"
        results.append(_score(f"elo/{name}", float(strengths.elo[0, number]), found[number], prompts, unit, how))
    for one, other in combinations(range(count), 2):
        results += _win_rate(session, votes, other, one)
    unit = "probability that the left one of two equal answers is chosen, ties aside"
    left = _score("position_effect", float(strengths.left_share[0]), found[-1], prompts, unit, how)
    return [*results, *_shares(judgement, votes, samples), replace(left, higher_is_better=False, chance=0.5)]


def _score(name: str, value: float, interval: Interval | None, n: int, unit: str, how: str) -> Result:
    low, high = interval or (None, None)
    return Result(name, value, low, high, n, unit, True, how)


def _win_rate(session: Session, votes: PairVotes, one: int, other: int) -> list[Result]:
    """How often raters prefer one model to another: the share of prompts, each decided by most of its votes."""
    margin: Counter[int] = Counter()
    for sign, first, second in ((1, one, other), (-1, other, one)):
        won = ((votes.left == first) & (votes.right == second) & (votes.outcome == LEFT)) | (
            (votes.right == first) & (votes.left == second) & (votes.outcome == RIGHT)
        )
        for prompt in votes.prompt[won].tolist():
            margin[prompt] += sign
    both = {one, other}
    asked = {
        prompt
        for left, right, prompt in zip(votes.left.tolist(), votes.right.tolist(), votes.prompt.tolist(), strict=True)
        if {left, right} == both
    }
    wins, losses = (sum(sign * value > 0 for value in margin.values()) for sign in (1, -1))
    if wins + losses == 0:
        return []
    n = wins + losses
    low, high = wilson(wins, n)
    note = f"{wins} won, {losses} lost, {len(asked) - n} even; sign test p = {mcnemar(losses, wins):.3g}"
    name = f"win_rate/{session.names[one]}/{session.names[other]}"
    unit = f"share of prompts on which {session.names[one]} is preferred, of those that were decided"
    return [Result(name, wins / n, low, high, n, unit, True, f"Wilson over {n} decided prompts", chance=0.5, note=note)]


def _shares(judgement: Judgement, votes: PairVotes, samples: int) -> list[Result]:
    """The share of ties, and of trials whose answers were both found bad."""
    total = float(votes.weight.sum())
    ties = (votes.outcome == TIE).astype(np.float64)
    bad = np.zeros(len(votes))
    bad[: judgement.votes] = [vote.choice == "bad" for rater in judgement.raters for vote in rater.first]
    unseen = len(judgement.session.alike)
    prompts = len(np.unique(votes.prompt))
    out = []
    for name, share, unit in (("ties", ties, "share of ties"), ("both_bad", bad, "share of `both are bad`")):
        interval = _ratio_interval(
            votes.weight * share, votes.weight, votes.prompt, judgement.raters_of(votes.rater), samples
        )
        how = judgement.over(prompts, votes.rater) if interval else no_interval(prompts, "prompt")
        found = _score(name, float((votes.weight * share).sum() / total), interval, prompts, unit, how)
        note = f"{unseen} pairs of identical answers, which nobody was shown, are ties" if unseen else None
        out.append(replace(found, higher_is_better=False, note=note))
    return out


def _ratio_interval(above: Floats, below: Floats, prompts: Ints, raters: Ints | None, samples: int) -> Interval | None:
    """A 95% interval of sum(above) / sum(below) of the votes."""

    def ratio(weights: Floats) -> Floats:
        total = weights @ below  # 0 where none of the drawn raters saw one
        return np.where(total > 0, weights @ above / np.where(total > 0, total, 1), above.sum() / below.sum())[:, None]

    return intervals(ratio, prompts, raters, samples)[0]


# ------------------------------------------------------------------------------------------------------------- ratings
def _rated(judgement: Judgement, samples: int) -> list[Result]:
    """The mean grade of each model on each scale."""
    session, results = judgement.session, []
    for scale in session.settings.scales:
        for number, model in enumerate(session.names):
            rows = [
                (vote.ratings[scale.name], session.by_id[vote.trial].prompt, index)
                for index, rater in enumerate(judgement.raters)
                for vote in rater.first
                if session.by_id[vote.trial].models == (number,)
            ]
            if not rows:
                continue
            grades, prompts, raters = np.array(rows).T
            ones, n = np.ones(len(rows)), len(np.unique(prompts))
            interval = _ratio_interval(grades.astype(np.float64), ones, prompts, judgement.raters_of(raters), samples)
            how = judgement.over(n, raters) if interval else no_interval(n, "prompt")
            unit = f"mean grade from 1 ({scale.anchors[0]}) to {len(scale.anchors)} ({scale.anchors[-1]})"
            results.append(_score(f"{scale.name}/{model}", float(grades.mean()), interval, n, unit, how))
    return results


# --------------------------------------------------------------------------------------------------------------- trust
def _trusted(judgement: Judgement) -> list[Result]:
    """How far raters agree with one another and with themselves, and whether they read."""
    session, results = judgement.session, []
    scales: list[tuple[str, Level]] = [("alpha", "nominal")]
    if session.rates:
        scales = [(scale.name, "ordinal") for scale in session.settings.scales]
    for name, level in scales:
        results += _agreement(judgement, name, level)
    again = [same_verdict(session, *both) for rater in judgement.raters for both in rater.again]
    tests = [right for rater in judgement.raters for _, right in rater.attention]
    for name, found, unit, what in (
        ("self_agreement", again, "share of returned trials on which a rater says the same", "returned trials"),
        ("attention", tests, "share of planted bad answers that were found", "planted answers"),
    ):
        if found:
            low, high = wilson(sum(found), len(found))
            value = sum(found) / len(found)
            results.append(Result(name, value, low, high, len(found), unit, True, f"Wilson over {len(found)} {what}"))
    return results


def _agreement(judgement: Judgement, name: str, level: Level) -> list[Result]:
    session = judgement.session
    units = {trial.id: number for number, trial in enumerate(session.trials) if trial.models is not None}
    values = np.full((len(judgement.raters), len(session.trials)), np.nan)
    for number, rater in enumerate(judgement.raters):
        for vote in rater.first:
            value = vote.ratings[name] if session.rates else chosen_place(session, vote)
            values[number, units[vote.trial]] = value
    found = alpha(values, level)
    if found is None:  # a single rater, or no two on one trial
        return []
    shared = int((np.isfinite(values).sum(axis=0) > 1).sum())
    interval = alpha_interval(values, level, 1000)
    how = f"bootstrap over {shared} trials that two raters saw" if interval else no_interval(shared, "trial")
    unit = f"Krippendorff's alpha, {level}"
    return [replace(_score(f"agreement/{name}", found, interval, shared, unit, how), chance=0.0)]


# -------------------------------------------------------------------------------------------------------------- report
def people_facts(judgement: Judgement) -> dict[str, Any]:
    """Returns what the report says of a session beside its scores."""
    session = judgement.session
    return {
        "set": session.name,
        "kind": session.kind,
        "question": session.settings.question,
        "page": session.page,
        "made": session.made,
        "models": list(session.names),
        "prompts": len(session.prompts),
        "trials": len(session.trials),
        "votes": judgement.votes,
        "raters": [facts_of(session, rater) for rater in (*judgement.raters, *judgement.aside)],
        "notes": list(session.notes),
    }
