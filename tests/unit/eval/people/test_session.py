"""A page says nothing of who is who; equal inputs give an equal page; a session survives the disk."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from eval.people.session import FILE, Asked, load_session, plan, sessions_of, shuffled_text
from tests.parts.voters import judged, people_set, small_session

NAMES = ("secret-sft", "secret-grpo", "secret-base")


def test_the_page_holds_no_name_no_run_and_no_checkpoint() -> None:
    session = small_session(20, NAMES)
    text = json.dumps(session.blind)
    for model in session.models:
        assert model.name not in text and model.run not in text and model.fingerprint not in text
    assert session.name not in session.blind and "reference" not in text and "good" not in text


def test_no_model_has_a_side_of_its_own_and_tests_look_like_trials() -> None:
    session = small_session(100, NAMES, attention=10)
    first = Counter(trial.models[0] for trial in session.trials if trial.models and set(trial.models) == {0, 1})
    assert 30 < first[0] < 70 and first.total() == 100
    kinds = {tuple(sorted(trial)) for trial in session.blind["trials"]}
    assert kinds == {("answers", "id", "prompt")}
    places = [number for number, trial in enumerate(session.trials) if trial.models is None]
    assert len(places) == 10 and max(b - a for a, b in pairwise(places)) < 80
    assert {session.trials[place].good for place in places} == {0, 1}


def test_every_pair_of_models_is_compared_on_every_prompt() -> None:
    session = small_session(7, NAMES)
    pairs = Counter(tuple(sorted(trial.models)) for trial in session.trials if trial.models)
    assert pairs == {(0, 1): 7, (0, 2): 7, (1, 2): 7}


def test_equal_inputs_give_an_equal_page() -> None:
    assert small_session() == small_session() and small_session().page == small_session().page
    assert small_session().page != small_session(question="Which is kinder?").page
    assert small_session().page != small_session(prompts=9).page


def test_identical_answers_are_not_shown() -> None:
    asked = [Asked("One?", ("same", "same")), Asked("Two?", ("a b c d e f", "g h i j k l"))]
    session = plan(people_set(), "pairs", judged(("a", "b")), asked, "now", 0)
    assert session.alike == ((0, 0, 1),) and [trial.prompt for trial in session.trials if trial.models] == [1]
    with pytest.raises(ValueError, match="identical answers to every prompt"):
        plan(people_set(), "pairs", judged(("a", "b")), asked[:1], "now", 0)


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs two models; .*--rate"):
        small_session(models=("one",))
    with pytest.raises(ValueError, match="two of the models have one name: a, a"):
        small_session(models=("a", "a"))


def test_bad_answers_are_made_of_the_reference_where_there_is_one() -> None:
    asked = [Asked("One?", ("x", "y"), "a real answer of a person to this")]
    (test,) = [trial for trial in plan(people_set(), "pairs", judged("ab"), asked, "now", 0).trials if not trial.models]
    good = test.answers[test.good or 0]
    assert good == asked[0].reference and sorted(" ".join(test.answers).split()) == sorted(good.split() * 2)


def test_texts_that_shuffling_does_not_spoil_are_no_test() -> None:
    assert shuffled_text("too short", "k") is None and shuffled_text("la la la la la la", "k") is None
    assert sorted(shuffled_text("学而时习之不亦说乎有朋自远方来", "k") or "") == sorted(
        "学而时习之不亦说乎有朋自远方来"
    )
    asked = [Asked("One?", ("x", "y"))]
    session = plan(people_set(), "pairs", judged("ab"), asked, "now", 0)
    assert session.notes == ("0 of 2 attention tests could be made: too few prompts have an answer of 5 words",)


@pytest.mark.parametrize("kind", ["pairs", "ratings"])
def test_a_session_comes_back_from_the_disk(kind: str, tmp_path: Path) -> None:
    session = small_session(kind=kind, guidelines="Be <b>fair</b>.")
    file = session.save(tmp_path / "people" / "main")
    assert load_session(file.parent) == session and file.stat().st_mode & 0o077 == 0
    assert sessions_of(tmp_path) == [file.parent]


def test_a_session_that_was_changed_by_hand_is_refused(tmp_path: Path) -> None:
    file = small_session().save(tmp_path)
    file.write_text(file.read_text().replace("Question 3?", "Question 33?"))
    with pytest.raises(ValueError, match="was changed after its page was made"):
        load_session(tmp_path)
    (tmp_path / FILE).unlink()
    with pytest.raises(ValueError, match="nobody was asked yet"):
        load_session(tmp_path)
