"""Votes are checked against their page, appended, taken back by a further line, and none is lost or counted twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.people.session import Session
from eval.people.votes import add_votes, append_lines, import_votes, parse_vote, read_votes, set_aside
from tests.parts.voters import cast, prefers, raw_vote, small_session

SESSION = small_session()
RATED = small_session(kind="ratings")


def vote_on(session: Session = SESSION, **changes: Any) -> dict[str, Any]:
    return raw_vote(session, session.trials[0], **changes)


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"page": "0123456789abcdef"}, "a vote of another page"),
        ({"trial": "nowhere"}, "the page has no trial 'nowhere'"),
        ({"shown": ["0" * 16, "1" * 16]}, "has other answers than the vote says"),
        ({"shown": None}, "has other answers"),
        ({"choice": "up"}, "`choice` is 'up'; expected one of left, right, tie, bad"),
        ({"ratings": {"fluency": 3}}, "`choice` is 'left'; expected"),
        ({"rater": " "}, "`rater` must be a text of 1 to 40 characters"),
        ({"rater": "A\x1b[2J"}, "cannot be printed"),
        ({"note": "\ud800"}, "half of a surrogate pair"),
        ({"slot": -1}, "`slot` must be a whole number"),
        ({"slot": True}, "`slot` must be a whole number"),
        ({"milliseconds": 1.5}, "`milliseconds` must be"),
        ({"at": "yesterday"}, "`at` is 'yesterday'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_votes_that_do_not_belong_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_vote(vote_on(**changes), SESSION)


def test_grades_are_on_the_scales() -> None:
    assert parse_vote(vote_on(RATED), RATED).ratings == {"fluency": 3, "adequacy": 3}
    for grades in ({"fluency": 3}, {"fluency": 3, "adequacy": 6}, {"fluency": 3, "adequacy": True}):
        with pytest.raises(ValueError, match=r"expected a (grade on each|whole number from 1 to 5)"):
            parse_vote(vote_on(RATED, ratings=grades), RATED)


def test_the_last_line_of_a_slot_counts(tmp_path: Path) -> None:
    first = vote_on(choice="left")
    other = raw_vote(SESSION, SESSION.trials[1], 1)
    path = write(tmp_path / "v", first, other, vote_on(choice=None), vote_on(choice="tie", at="2026-11-30T10:00:00Z"))
    votes = read_votes(path, SESSION).by_rater()["Ada"]
    assert [vote.choice for vote in votes] == ["tie", "left"]
    write(path, first, vote_on(choice=None))
    assert read_votes(path, SESSION).by_rater() == {"Ada": []}


def test_two_people_with_one_name_are_two_raters(tmp_path: Path) -> None:
    path = write(tmp_path / "v", vote_on(), vote_on(key="another browser", choice="right"))
    raters = read_votes(path, SESSION).by_rater()
    assert {name: [vote.choice for vote in votes] for name, votes in raters.items()} == {
        "Ada": ["left"],
        "Ada (2)": ["right"],
    }


def test_nobody_is_taken_for_a_namesake(tmp_path: Path) -> None:
    """The second Ada is not the person who is called `Ada (2)`."""
    path = write(tmp_path / "v", vote_on(), vote_on(rater="Ada (2)", key="b"), vote_on(key="c", choice="right"))
    raters = read_votes(path, SESSION).by_rater()
    assert list(raters) == ["Ada", "Ada (2)", "Ada (3)"] and raters["Ada (3)"][0].choice == "right"


def test_wide_blanks_of_a_japanese_keyboard_are_blanks() -> None:
    assert parse_vote(vote_on(rater=" 山田\u3000太郎\u00a0", key="a"), SESSION).rater == "山田 太郎"


def test_a_torn_last_line_is_left_out_and_removed_by_the_next_vote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "v", vote_on())
    with path.open("a") as stream:
        stream.write(json.dumps(vote_on(slot=1))[:-20])
    found = read_votes(path, SESSION)
    assert len(found.lines) == 1 and found.torn > 100
    append_lines(path, [raw_vote(SESSION, SESSION.trials[1], 1)])
    assert len(read_votes(path, SESSION).lines) == 2 and read_votes(path, SESSION).torn == 0
    assert "the last line was torn" in capsys.readouterr().err


def test_a_last_line_without_an_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "v"
    path.write_text(json.dumps(vote_on()))
    append_lines(path, [raw_vote(SESSION, SESSION.trials[1], 1)])
    assert len(read_votes(path, SESSION).lines) == 2


def test_damage_before_the_end_is_named(tmp_path: Path) -> None:
    path = tmp_path / "v"
    path.write_text(f"{json.dumps(vote_on())}\n{{oops\n{json.dumps(vote_on(slot=1))}\n")
    with pytest.raises(ValueError, match=r"v, line 2: not valid JSON"):
        read_votes(path, SESSION)


def test_an_import_takes_all_or_nothing_and_each_vote_once(tmp_path: Path) -> None:
    votes = [vote.as_json(SESSION.page) for vote in cast(SESSION, "Bo", prefers(SESSION, "sft"))]
    target, file = tmp_path / "main" / "votes.jsonl", write(tmp_path / "bo.jsonl", *votes)
    assert import_votes(file, target, SESSION) == (10, 0)
    before = target.read_bytes()
    assert import_votes(file, target, SESSION) == (0, 10) and target.read_bytes() == before
    foreign = [*votes[:3], {**votes[3], "page": small_session(prompts=9).page}]
    with pytest.raises(ValueError, match=r"foreign.jsonl, line 4: it is a vote of another page"):
        import_votes(write(tmp_path / "foreign.jsonl", *foreign), target, SESSION)
    assert target.read_bytes() == before


def test_files_that_cannot_be_imported(tmp_path: Path) -> None:
    target = tmp_path / "votes.jsonl"
    with pytest.raises(ValueError, match="there is no file"):
        import_votes(tmp_path / "none", target, SESSION)
    with pytest.raises(ValueError, match="has no votes"):
        import_votes(write(tmp_path / "empty"), target, SESSION)
    (tmp_path / "torn").write_text(json.dumps(vote_on()) + '\n{"page"')
    with pytest.raises(ValueError, match="the last line is torn"):
        import_votes(tmp_path / "torn", target, SESSION)
    assert not target.exists()


def test_a_rater_is_set_aside_for_a_reason_and_can_come_back(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    add_votes(path, cast(SESSION, "Bo", prefers(SESSION, "sft")), SESSION)
    set_aside(path, SESSION, "Bo", "did not read")
    assert read_votes(path, SESSION).aside == {"Bo": "did not read"}
    set_aside(path, SESSION, "Bo", None)
    assert read_votes(path, SESSION).aside == {} and len(read_votes(path, SESSION).lines) == 10
    with pytest.raises(ValueError, match="nobody called 'Cy' has voted; these have: Bo"):
        set_aside(path, SESSION, "Cy", "x")
