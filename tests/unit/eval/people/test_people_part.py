"""Votes as a part of an evaluation: scores and items, fingerprints, outdated answers, gates, the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.common.layout import PEOPLE
from configs.schema.recipe import load_run
from eval.currency import scored_recipe, scores_fingerprint, set_identities
from eval.items.store import read_file
from eval.parts import score_parts
from eval.people.part import current_sessions, outdated, people_parts, people_section
from eval.people.session import VOTES, JudgedModel, Session
from eval.people.votes import add_votes, set_aside
from eval.report.gates import evaluate_gates, gate_problems
from eval.report.page import write_report
from eval.results import load_results
from pretrain.checkpoint.manifest import newest
from tests.parts.fake_checkpoint import write_fake_checkpoint
from tests.parts.fake_run import write_fake_run
from tests.parts.voters import cast, prefers, small_session

SESSION = small_session(12, ("one", "two"))
GATE = "human/main/win_rate/two/one > 0.5"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose newest checkpoint people judged against another run's."""
    run = write_fake_run(tmp_path / "run", gates=[])
    write_fake_checkpoint(load_run(run), 600)
    info = newest(run)
    assert info is not None
    models = (JudgedModel("one", ".", 600, info.fingerprint, "greedy"), replace(SESSION.models[1], run="/other"))
    session = replace(SESSION, models=models)
    session.save(run / PEOPLE / "main")
    for name in ("Ada", "<b>Bo</b>"):
        vote(run, session, name)
    return run


def vote(run: Path, session: Session, name: str) -> None:
    add_votes(run / PEOPLE / "main" / VOTES, cast(session, name, prefers(session, "two")), session)


def scored(run: Path) -> Any:
    names = current_sessions(run, "checkpoint 600")
    return score_parts(people_parts(run, names, {}, {"code": "1"}, 200), run / "scores")


def test_scores_and_items_stand_beside_the_others(run: Path) -> None:
    outcome = scored(run)
    found = {result.name: result.value for result in outcome.results}
    assert found["human/main/win_rate/two/one"] == 1 and found["human/main/elo/two"] > 100
    assert list(outcome.items) == ["human/main"] and not outcome.failures
    (file,) = (run / "scores").glob("human*.items.parquet")
    units = read_file(file).measure("preferred/two/one")
    assert len(units.ids) == 12 and sum(units.numerators) == 24 and sum(units.denominators) == 24


def test_every_vote_changes_the_fingerprint(run: Path) -> None:
    def now() -> str:
        info = newest(run)
        assert info is not None
        recipe = scored_recipe(run, info)
        return scores_fingerprint(recipe, info, set_identities(recipe))

    prints = [now()]
    vote(run, SESSION, "Cy")
    prints.append(now())
    set_aside(run / PEOPLE / "main" / VOTES, SESSION, "Cy", "a test")
    prints.append(now())
    (run / PEOPLE / "main" / VOTES).unlink()
    prints.append(now())
    write_fake_checkpoint(load_run(run), 700)
    assert len({*prints, now()}) == 5


def test_a_page_that_nobody_has_judged_yet_is_no_failure(run: Path) -> None:
    """Votes take days; an evaluation on the day after the page was written has all other scores, and exit code 0."""
    (run / PEOPLE / "main" / VOTES).unlink()
    outcome = scored(run)
    assert not outcome.failures and not outcome.results
    reason = "people/main: nobody has voted; ask people with `replica judge`"
    section = people_section(run, "checkpoint 600", ())
    assert section == [{"set": "main", "outdated": reason}]
    (gate,) = evaluate_gates([GATE], replace(load_results(run), people=section))
    assert not gate.passed and gate.reason == f"no score: {reason}"
    vote(run, SESSION, "Ada")
    assert scored(run).results
    set_aside(run / PEOPLE / "main" / VOTES, SESSION, "Ada", "a test")
    assert "everybody who voted was set aside" in outdated(run, "checkpoint 600")["main"]


def test_answers_of_an_earlier_checkpoint_are_no_scores(run: Path) -> None:
    assert outdated(run, "checkpoint 600") == {} and people_section(run, "checkpoint 600", ())[0]["votes"] == 24
    assert people_section(run, "checkpoint 600", {"human/main"}) == []
    reason = "people judged one at step 600, and it is another checkpoint now; ask again with `replica judge --again`"
    assert outdated(run, "checkpoint 700") == {"main": reason} and current_sessions(run, "checkpoint 700") == []
    assert people_section(run, "checkpoint 700", ()) == [{"set": "main", "outdated": reason}]


def test_a_damaged_session_fails_alone(run: Path) -> None:
    file = run / PEOPLE / "main" / "session.json"
    file.write_text(file.read_text().replace("Question 1?", "Question 11?"))
    (failure,) = scored(run).failures
    assert failure.name == "human/main" and "was changed after its page was made" in failure.reason and not failure.bug


@pytest.mark.parametrize(
    ("people", "reason"),
    [
        ([], "nobody has judged `main`; ask people with `replica judge`"),
        ([{"set": "main", "outdated": "it is old"}], "it is old"),
        ([{"set": "main"}], "the votes on `main` give no `human/main/win_rate/two/one`"),
    ],
)
def test_a_gate_without_votes_fails_and_says_why(run: Path, people: Any, reason: str) -> None:
    (gate,) = evaluate_gates([GATE], replace(load_results(run), people=people))
    assert not gate.passed and gate.reason == f"no score: {reason}"
    recipe = load_run(run)
    assert gate_problems(recipe.model_copy(update={"report": recipe.report.model_copy(update={"gates": [GATE]})})) == []


def test_the_report_shows_models_and_raters_escaped(run: Path) -> None:
    results = load_results(run)
    section = people_section(run, "checkpoint 600", ())
    replace(results, results=[*results.results, *scored(run).results], people=section).save(run)
    (run / "checkpoints").rename(run / "gone")  # nothing to be current with
    page = write_report(run).read_text()
    assert "What people say" in page and "&lt;b&gt;Bo&lt;/b&gt;" in page and "<b>Bo</b>" not in page
    assert "24 votes of 2 people who did not know which model wrote what" in page
    assert "two against one" in page and "sign test p = 0.000488" in page
    replace(results, people=[{"set": "main", "outdated": "it is old"}]).save(run)
    assert "it is old" in write_report(run).read_text()
