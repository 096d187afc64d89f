"""Sorts a rater's votes, and finds habits that make them worth little: one side, one grade, no reading, no time.

A rater with such a habit is named, and counted until the owner sets the rater aside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from eval.people.session import Session, text_hash
from eval.people.votes import Vote, VotesFile
from eval.statistics import mcnemar

TIE = -1  # of a verdict: neither answer
_FEWEST = 10  # votes from which a habit is one
_BY_CHANCE = 0.001
_HASTE_MILLISECONDS = 1000


@dataclass(frozen=True)
class RaterVotes:
    """The votes of one rater.

    Attributes:
        name: of the rater.
        first: the vote on each trial that the rater saw for the first time.
        again: first and second vote on a trial that returned.
        attention: votes on trials with a planted bad answer, and whether it was told from a good one.
        aside: why the votes are not counted; None: they are.
    """

    name: str
    first: tuple[Vote, ...]
    again: tuple[tuple[Vote, Vote], ...]
    attention: tuple[tuple[Vote, bool], ...]
    aside: str | None = None


def sort_votes(session: Session, file: VotesFile) -> list[RaterVotes]:
    """Sorts the votes that stand, rater by rater, in the order of their first votes."""
    return [_sorted(session, name, votes, file.aside.get(name)) for name, votes in file.by_rater().items()]


def _sorted(session: Session, name: str, votes: Sequence[Vote], aside: str | None) -> RaterVotes:
    first: dict[str, Vote] = {}
    again: dict[str, tuple[Vote, Vote]] = {}
    attention: list[tuple[Vote, bool]] = []
    for vote in votes:
        before = first.get(vote.trial)
        if before is None:
            first[vote.trial] = vote
            if session.by_id[vote.trial].models is None:
                attention.append((vote, was_attentive(session, vote)))
        elif session.by_id[vote.trial].models is not None:
            again.setdefault(vote.trial, (before, vote))
    real = tuple(vote for vote in first.values() if session.by_id[vote.trial].models is not None)
    return RaterVotes(name, real, tuple(again.values()), tuple(attention), aside)


def chosen_place(session: Session, vote: Vote) -> int:
    """Returns the place in the trial's list of the answer that was chosen; TIE for neither."""
    if vote.choice not in ("left", "right"):
        return TIE
    wanted = vote.shown[0 if vote.choice == "left" else 1]
    return [text_hash(text) for text in session.by_id[vote.trial].answers].index(wanted)


def was_attentive(session: Session, vote: Vote) -> bool:
    """Tells whether a vote on a planted bad answer is right: the other one, or a grade in the lower half."""
    if not session.rates:
        return chosen_place(session, vote) == session.by_id[vote.trial].good
    scale = session.settings.scales[0]
    return vote.ratings[scale.name] <= len(scale.anchors) // 2


def same_verdict(session: Session, one: Vote, other: Vote) -> bool:
    """Tells whether two votes on one trial say the same. `tie` and `bad` do: neither prefers an answer."""
    if session.rates:
        return dict(one.ratings) == dict(other.ratings)
    return chosen_place(session, one) == chosen_place(session, other)


def habits(session: Session, rater: RaterVotes) -> list[str]:
    """Says in words what makes the rater's votes doubtful; empty for a rater without such a habit."""
    votes = [*rater.first, *(second for _, second in rater.again)]
    found = (_one_grade if session.rates else _one_side)(session, votes)
    missed = sum(not right for _, right in rater.attention)
    if missed >= 2 and missed * 3 > len(rater.attention):
        found.append(f"took the planted bad answer for a good one in {missed} of {len(rater.attention)} tests")
    if len(votes) >= _FEWEST:
        typical = median(vote.milliseconds for vote in votes)
        if typical < _HASTE_MILLISECONDS:
            found.append(f"needed less than {typical / 1000:.1f} s for half of the votes")
    return found


def _one_side(_session: Session, votes: Sequence[Vote]) -> list[str]:
    left, right = (sum(vote.choice == side for vote in votes) for side in ("left", "right"))
    decided, ties = left + right, len(votes) - left - right
    if decided >= _FEWEST and mcnemar(left, right) < _BY_CHANCE:
        side, count = ("left", left) if left > right else ("right", right)
        return [f"pressed {side} in {count} of {decided} votes for a side"]
    if len(votes) >= _FEWEST and ties == len(votes):
        return [f"preferred no answer in all of {ties} votes"]
    return []


def _one_grade(session: Session, votes: Sequence[Vote]) -> list[str]:
    found = []
    for scale in session.settings.scales:
        grades = {vote.ratings[scale.name] for vote in votes}
        if len(votes) >= _FEWEST and len(grades) == 1:
            found.append(f"gave {grades.pop()} for {scale.name} in all of {len(votes)} votes")
    return found


def facts_of(session: Session, rater: RaterVotes) -> dict[str, Any]:
    """Returns the rater's row of the report's table."""
    votes = [*rater.first, *(second for _, second in rater.again)]
    right = sum(right for _, right in rater.attention)
    same = sum(same_verdict(session, one, other) for one, other in rater.again)
    return {
        "name": rater.name,
        "votes": len(rater.first),
        "choices": {
            name: sum(vote.choice == name for vote in votes) for name in (() if session.rates else ("left", "right"))
        },
        "attention": f"{right} of {len(rater.attention)}" if rater.attention else "",
        "again": f"{same} of {len(rater.again)}" if rater.again else "",
        "seconds": round(median(vote.milliseconds for vote in votes) / 1000, 1) if votes else None,
        "aside": rater.aside,
        "remarks": habits(session, rater),
    }
