"""Scores of made-up votes: who wins, who agrees, who does not read, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from eval.people.outcome import Judgement, pair_votes, people_facts, people_results
from eval.people.raters import habits
from eval.people.session import Asked, Session, Trial, plan
from eval.people.votes import Vote, VotesFile
from eval.results import Result
from tests.parts.voters import answer_of, cast, file_of, judged, people_set, prefers, small_session


def results_of(session: Session, *votes: Vote) -> dict[str, Result]:
    found = people_results(Judgement.of(session, file_of(*votes)), 200)
    return {result.name.removeprefix("human/main/"): result for result in found}


def mixed(session: Session, name: str, every: int) -> Callable[[Trial, int], int]:
    """Prefers a model, but for the prompts whose number is a multiple of `every`."""
    usual, count = prefers(session, name), 0

    def choose(trial: Trial, place: int) -> int:
        nonlocal count
        found = usual(trial, place)
        return 1 - found if trial.models and trial.prompt % every == 0 else found

    return choose


def test_the_better_model_wins_whichever_side_it_stands_on() -> None:
    session = small_session(20, repeats=0)
    found = results_of(session, *cast(session, "Ada", mixed(session, "grpo", 5)))
    assert found["elo/grpo"].value == pytest.approx(-found["elo/sft"].value) and found["elo/grpo"].value > 50
    rate = found["win_rate/grpo/sft"]
    assert (rate.value, rate.n) == (0.8, 20)
    assert rate.note == "16 won, 4 lost, 0 even; sign test p = 0.0118"
    assert found["attention"].value == 1 and found["ties"].value == 0
    low, high = found["elo/grpo"].low, found["elo/grpo"].high
    assert low is not None and high is not None and 0 < low < found["elo/grpo"].value < high
    assert found["elo/grpo"].interval == "bootstrap over 20 prompts; it holds for this rater, not for others"
    assert found["elo/grpo"].set == session.page
    assert found["elo/grpo"].settings["models"].startswith("sft at step 100 (00000000")


def test_a_rater_who_always_presses_left_is_named_and_counted_until_set_aside() -> None:
    session = small_session(30)
    lazy = cast(session, "Lee", lambda _, place: place)
    honest = cast(session, "Ada", mixed(session, "grpo", 3))
    judgement = Judgement.of(session, file_of(*honest, *lazy))
    remark = habits(session, judgement.raters[1])[0]
    assert remark == "pressed left in 30 of 30 votes for a side"
    assert habits(session, judgement.raters[0]) == []
    both = results_of(session, *honest, *lazy)
    assert both["position_effect"].value > 0.7 and both["elo/grpo"].n == 30
    aside = VotesFile([*honest, *lazy], {"Lee": "always left"})
    alone = {one.name: one for one in people_results(Judgement.of(session, aside), 200)}
    assert alone["human/main/position_effect"].value < 0.6
    assert "without 30 votes of Lee (always left)" in (alone["human/main/elo/grpo"].note or "")
    assert alone["human/main/elo/grpo"].settings["raters"] == "Ada"
    facts = people_facts(Judgement.of(session, aside))
    assert [rater["aside"] for rater in facts["raters"]] == [None, "always left"]
    assert facts["raters"][1]["choices"] == {"left": 30, "right": 0} and facts["raters"][1]["remarks"][0] == remark


def test_other_habits_are_named() -> None:
    session, rated = small_session(20), small_session(20, kind="ratings")
    ties = Judgement.of(session, file_of(*cast(session, "T", lambda *_: -1))).raters[0]
    assert habits(session, ties)[0] == "preferred no answer in all of 20 votes"
    assert "took the planted bad answer for a good one in 2 of 2 tests" in habits(session, ties)
    fast = [replace(vote, milliseconds=300) for vote in cast(session, "F", prefers(session, "sft"))]
    assert habits(session, Judgement.of(session, file_of(*fast)).raters[0]) == [
        "needed less than 0.3 s for half of the votes"
    ]
    grades = Judgement.of(rated, file_of(*cast(rated, "G", lambda *_: {"fluency": 4, "adequacy": 1}))).raters[0]
    assert habits(rated, grades)[0] == "gave 4 for fluency in all of 40 votes"


def test_agreement_and_self_agreement() -> None:
    session = small_session(20)
    ada, bo = (cast(session, name, mixed(session, "grpo", 4)) for name in ("Ada", "Bo"))
    returned = [trial for trial in session.trials if trial.models][:4]
    second = [
        replace(vote, slot=100 + number)
        for number, vote in enumerate(cast(session, "Ada", mixed(session, "grpo", 4), returned))
    ]
    second[0] = replace(second[0], choice="tie")
    found = results_of(session, *ada, *bo, *second)
    assert found["agreement/alpha"].value == 1 and found["agreement/alpha"].n == 20
    assert (found["self_agreement"].value, found["self_agreement"].n) == (0.75, 4)
    assert found["win_rate/grpo/sft"].n == 20  # a returned trial counts once
    against = results_of(session, *ada, *cast(session, "Cy", mixed(session, "sft", 4)))
    assert against["agreement/alpha"].value < 0
    assert "agreement/alpha" not in results_of(session, *ada)


def test_from_five_raters_on_intervals_are_over_raters_too() -> None:
    session = small_session(12)
    votes = [vote for name in "ABCDE" for vote in cast(session, name, mixed(session, "grpo", 2 + (name > "C")))]
    found = results_of(session, *votes)["elo/grpo"]
    assert found.interval == "bootstrap over 12 prompts and 5 raters"
    few = results_of(session, *votes[: 4 * len(session.trials)])["elo/grpo"]
    assert few.interval.endswith("it holds for these 4 raters, not for others")


def test_who_took_every_vote_back_is_no_rater_of_an_interval() -> None:
    """Five names, and one rater: nothing is known of other raters."""
    session = small_session(12)
    votes = list(cast(session, "Ada", mixed(session, "grpo", 3)))
    for name in "BCDE":
        votes += [replace(vote, choice=None) for vote in cast(session, name, prefers(session, "sft"))[:3]]
    found = results_of(session, *votes)["elo/grpo"]
    assert found.interval == "bootstrap over 12 prompts; it holds for this rater, not for others"


def test_identical_answers_are_ties_of_the_typical_weight() -> None:
    asked = [Asked(f"{number}?", (answer_of(0, number), answer_of(int(number > 3), number))) for number in range(10)]
    session = plan(people_set(), "pairs", judged(("a", "b")), asked, "now", 0)
    votes = [vote for name in ("Ada", "Bo") for vote in cast(session, name, prefers(session, "b"))]
    table = pair_votes(Judgement.of(session, file_of(*votes)))
    assert len(table) == 2 * 6 + 4 and table.weight[-4:].tolist() == [2, 2, 2, 2] and not table.shown[-4:].any()
    found = results_of(session, *votes)
    assert found["ties"].value == pytest.approx(0.4)
    assert "4 pairs of identical answers, which nobody was shown, are ties" in (found["ties"].note or "")
    assert (found["win_rate/b/a"].n, found["win_rate/b/a"].note) == (6, "6 won, 0 lost, 4 even; sign test p = 0.0312")


def test_both_bad_is_a_tie_that_is_counted() -> None:
    session = small_session(10, attention=0)
    found = results_of(session, *cast(session, "Ada", lambda trial, _: -2 if trial.prompt < 3 else 0))
    assert found["both_bad"].value == pytest.approx(0.3) and found["ties"].value == pytest.approx(0.3)


def test_models_that_no_vote_connects_are_an_error() -> None:
    session = small_session(6, ("a", "b", "c"))
    votes = [
        vote
        for vote in cast(session, "Ada", prefers(session, "a"))
        if set(session.by_id[vote.trial].models or ()) == {0, 1}
    ]
    with pytest.raises(ValueError, match=r"no vote connects these models: a, b \| c;"):
        results_of(session, *votes)


def test_no_votes_are_an_error() -> None:
    session = small_session()
    with pytest.raises(ValueError, match="people/main: nobody has voted"):
        results_of(session)
    votes = cast(session, "Ada", prefers(session, "sft"))
    with pytest.raises(ValueError, match="everybody who voted was set aside"):
        people_results(Judgement.of(session, VotesFile(list(votes), {"Ada": "a test"})), 200)


def test_ratings_give_means_with_intervals() -> None:
    session = small_session(20, ("one",), kind="ratings")
    generator = np.random.default_rng(0)

    def grades(trial: Trial, _place: int) -> Any:
        if trial.models is None:
            return {"fluency": 1, "adequacy": 1}
        return {"fluency": int(generator.integers(2, 6)), "adequacy": 2 + trial.prompt % 2}

    votes = cast(session, "Ada", grades)
    found = results_of(session, *votes, *cast(session, "Bo", grades))
    given = [vote.ratings["fluency"] for vote in votes if session.by_id[vote.trial].models]
    assert found["fluency/one"].value == pytest.approx(np.mean(given), abs=0.5)
    assert found["adequacy/one"].value == 2.5 and found["adequacy/one"].n == 20
    assert found["adequacy/one"].unit == "mean grade from 1 (nothing) to 5 (everything)"
    low, high = found["adequacy/one"].low, found["adequacy/one"].high
    assert low is not None and high is not None and 2.2 < low < 2.5 < high < 2.8
    assert found["agreement/adequacy"].value == 1 and found["agreement/fluency"].value < 0.7
    assert found["attention"].value == 1
