"""`replica judge`: answers are written once, votes come by server or file, and mistakes are told."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from configs.schema.recipe import save
from eval.people.session import VOTES, load_session
from eval.people.votes import read_votes
from launch.chat import served_model
from launch.cli import main
from launch.judging.judging_page import page_file, precision
from tests.parts.fake_run import fake_recipe
from tests.parts.judging import judging, saying
from tests.parts.voters import cast, prefers, raw_vote, small_session

JSON = {"Content-Type": "application/json"}


def send(address: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    try:
        content = body if body is None or isinstance(body, str) else json.dumps(body)
        connection.request("GET" if body is None else "POST", f"/{path}", content, JSON | (headers or {}))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two run directories and a file of prompts; the models are made up."""
    for name in ("one", "two"):
        recipe = fake_recipe(tmp_path / name).model_copy(update={"name": name})
        (tmp_path / name).mkdir()
        save(recipe, tmp_path / name)
    (tmp_path / "prompts.txt").write_text("the sea\n\nthe old tower\nbread\n")
    monkeypatch.setattr(served_model, "open_served_model", lambda run, _: saying(run.name, base=run.name == "two"))
    monkeypatch.setattr(served_model, "answering_checkpoint", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def judge(*words: str) -> int:
    try:
        return main(["judge", *words])
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code


def test_a_page_is_written_judged_and_imported(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge("one", "two", "--prompts", "prompts.txt", "--file", "page.html") == 0
    session = load_session(runs / "one" / "people" / "main")
    assert session.names == ("one", "two") and [one.text for one in session.prompts] == [
        "the sea",
        "the old tower",
        "bread",
    ]
    assert session.models[0].run == "." and session.models[1].run == str(runs / "two")
    # The assistant reads its template, the base model the text alone.
    assert session.prompts[0].answers[1] == "two says that this is about the sea and nothing else"
    assert "people/main: 6 comparisons. 100 votes between two about equal models tell" in capsys.readouterr().err
    page = (runs / "page.html").read_text()
    # Once more: the session stays, and so does the page.
    assert judge("one", "two", "--prompts", "prompts.txt", "--file", "again.html") == 0
    assert (runs / "again.html").read_text() == page
    votes = cast(session, "Ada", prefers(session, "two"))
    (runs / "ada.jsonl").write_text("".join(json.dumps(vote.as_json(session.page)) + "\n" for vote in votes))
    assert judge("one", "--import", "ada.jsonl") == 0
    said = capsys.readouterr()
    assert "ada.jsonl: 6 new lines" in said.err and "human/main/win_rate/two/one" in said.out
    assert judge("one", "--import", "ada.jsonl") == 0
    assert "6 were there already" in capsys.readouterr().err
    assert judge("one", "--set-aside", "Ada", "--because", "a test") == 2
    assert "everybody who voted was set aside" in capsys.readouterr().err
    assert judge("one", "--restore", "Ada") == 0


def test_settings_hold_for_prompts_of_a_file_too(runs: Path) -> None:
    words = ("one", "two", "--prompts", "prompts.txt", "--file", "page.html")
    assert judge(*words, "evaluation.people.0.max_items=2", "evaluation.people.0.question=Which is shorter?") == 0
    session = load_session(runs / "one" / "people" / "main")
    assert len(session.prompts) == 2 and session.settings.question == "Which is shorter?"
    assert judge(*words, "--set", "other", "evaluation.people.1.max_items=2") == 2, "there is one set"


def test_runs_of_one_recipe_are_called_by_their_directories(runs: Path) -> None:
    for name in ("one", "two"):
        save(fake_recipe(runs / name), runs / name)
    assert judge("one", "two", "--prompts", "prompts.txt", "--file", "page.html") == 0
    assert load_session(runs / "one" / "people" / "main").names == ("one", "two")


def test_votes_stay_with_their_page(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge("one", "two", "--prompts", "prompts.txt", "--file", "page.html") == 0
    directory = runs / "one" / "people" / "main"
    other = small_session()
    (runs / "foreign.jsonl").write_text(json.dumps(raw_vote(other, other.trials[0])) + "\n")
    assert judge("one", "--import", "foreign.jsonl") == 2
    assert "foreign.jsonl, line 1: it is a vote of another page" in capsys.readouterr().err
    assert judge("one", "two", "--prompts", "prompts.txt", "--rate", "--file", "page.html") == 2
    assert "people/main asks for pairs, not ratings" in capsys.readouterr().err
    (directory / VOTES).write_text("")
    assert judge("one", "--prompts", "prompts.txt", "--rate", "--again", "--file", "page.html") == 0
    assert "the earlier session and its votes are in" in capsys.readouterr().err
    assert load_session(directory).kind == "ratings" and not (directory / VOTES).exists()
    assert (runs / "one" / "people-earlier" / "main-1" / VOTES).is_file()


def test_a_set_of_the_recipe_and_overrides(runs: Path) -> None:
    assert judge("one", "two", 'evaluation.people=[{"name": "short", "path": "prompts.txt"}]', "--file", "page.html",
                 "evaluation.people.0.max_items=2", "evaluation.people.0.attention=0") == 0  # fmt: skip
    assert len(load_session(runs / "one" / "people" / "short").trials) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["one", "two"], "there is nothing to ask: give --prompts FILE"),
        (["one", "two", "--set", "other"], "evaluation.people has no set `other`, only none"),
        (["one", "--prompts", "prompts.txt"], "a comparison needs two models"),
        (["one", "one", "--prompts", "prompts.txt"], "two models are called one"),
        (["one", "two", "--models", "a,b", "--prompts", "prompts.txt"], "--models names stages of one run"),
        (["one", "--models", "a,b", "--prompts", "prompts.txt"], "has no stage `a`"),
        (["one", "two", "--prompts", "nowhere.txt"], "nowhere.txt"),
        (["one", "two", "train.steps=3", "--prompts", "prompts.txt"], "takes overrides of `evaluation.people` only"),
        (["one", "--results"], "has no session; begin one with `replica judge"),
        (["one", "--set-aside", "Ada"], "has no session"),
        (["one", "--because", "no"], "--because is the reason of --set-aside"),
        (["nowhere"], "nowhere is not a run directory"),
        (["evaluation.people.0.max_items=3"], "no run is named; give its directory"),
        (["one", "two", "--file", "a", "--results"], "not allowed with argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_named(runs: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge(*words) == 2
    assert message in capsys.readouterr().err
    assert not list(runs.glob("*/people")) and not list(runs.glob("*.html"))


def test_half_an_emoji_in_a_prompt_or_reference_is_no_end(runs: Path) -> None:
    records = [{"prompt": "the sea \ud83d", "reference": "a b c d e f \ud83d"}, {"prompt": "the tower"}]
    (runs / "cut.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert judge("one", "two", "--prompts", "cut.jsonl", "--file", "page.html") == 0
    (first, _) = load_session(runs / "one" / "people" / "main").prompts
    assert (first.text, first.reference) == ("the sea ?", "a b c d e f ?")


def test_doubtful_raters_are_named(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session = small_session(20)
    directory = runs / "one" / "people" / "main"
    session.save(directory)
    lazy = cast(session, "Lee", lambda _, place: place)
    namesake = [raw_vote(session, session.trials[0], rater=name, key="other") for name in ("Lee", "Bo (sales)")]
    lines = [*(vote.as_json(session.page) for vote in lazy), *namesake]
    (directory / VOTES).write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn')
    assert judge("one", "--results") == 0
    said = capsys.readouterr()
    assert "Lee pressed left in 20 of 20 votes for a side" in said.err
    assert "Lee (2) voted under a name that another browser had; both are counted" in said.err
    assert "Bo (sales) voted" not in said.err
    assert "leave a rater's out with --set-aside RATER --because TEXT" in said.err
    assert "the last line was torn" in said.err and "human/main/position_effect" in said.out


# --------------------------------------------------------------------------------------------------------------- server
def test_votes_reach_the_file_once_and_are_found_again(tmp_path: Path) -> None:
    session = small_session()
    first, second = (raw_vote(session, session.trials[slot], slot) for slot in (0, 1))
    with judging(session, tmp_path) as address:
        assert send(address, "votes", {"votes": [first]}) == (200, {"saved": 1})
        assert send(address, "votes", {"votes": [first, second]}) == (200, {"saved": 1})
        own = send(address, "votes?rater=Ada&key=key%20of%20Ada")[1]
        assert [line["slot"] for line in own["votes"]] == [0, 1] and own["other"] is None
        other = send(address, "votes?rater=Ada&key=new")[1]
        assert other["votes"] == [] and other["other"]["key"] == "key of Ada" and len(other["other"]["votes"]) == 2
        # What another process appends, such as an import, is seen.
        with (tmp_path / VOTES).open("a") as stream:
            stream.write(json.dumps(raw_vote(session, session.trials[2], 2)) + "\n")
        assert len(send(address, "votes?rater=Ada&key=key%20of%20Ada")[1]["votes"]) == 3
    assert len(read_votes(tmp_path / VOTES, session).lines) == 3


def test_the_server_gives_nothing_away_and_takes_nothing_else(tmp_path: Path) -> None:
    session = small_session(models=("secret-a", "secret-b"))
    good = raw_vote(session, session.trials[0])
    with judging(session, tmp_path) as address:
        status, shown = send(address, "session")
        assert status == 200 and "secret" not in json.dumps(shown) and shown["page"] == session.page
        for body, message in (
            ("{", "This is no vote on this page: Expecting"),
            ({"votes": 1}, "a list of `votes`"),
            ({"votes": [good, {**good, "slot": 1, "choice": "up"}]}, "`choice` is 'up'"),
            ({"votes": [{**good, "page": "x"}]}, "a vote of another page"),
        ):
            status, refused = send(address, "votes", body)
            assert status == 400 and message in refused["error"]["message"]
        assert send(address, "votes", {"votes": []}, {"Host": "evil.example"})[0] == 403
        assert send(address, "votes", {"votes": []}, {"Origin": "http://evil.example"})[0] == 403
        assert send(address, "votes", {"votes": []}, {"Content-Type": "text/plain"})[0] == 415
        assert send(address, "session.json")[0] == 404
    assert not (tmp_path / VOTES).exists()


def test_with_a_key_only_the_empty_page_is_open(tmp_path: Path) -> None:
    with judging(small_session(), tmp_path, key="secret") as address:
        assert send(address, "session")[0] == send(address, "votes?rater=Ada")[0] == 401
        assert send(address, "session", headers={"Authorization": "Bearer secret"})[0] == 200


# ----------------------------------------------------------------------------------------------------------------- page
def test_the_file_holds_no_name_and_ends_no_script_early() -> None:
    evil = "</script><script>alert(1)</script><!-- \u2028"
    session = small_session(models=("secret-a", "secret-b"), guidelines=evil)
    page = page_file(session)
    assert "secret" not in page and "stages/" not in page and session.models[0].fingerprint not in page
    assert page.count("</script>") == 2 and evil not in page and "\u2028" not in page
    assert "http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src 'sha256-" in page


def test_what_votes_can_tell_is_said_beforehand() -> None:
    assert "±68 Elo points, and 400 to ±34 (681/√n" in precision(small_session(100))
    assert "gives 100 votes on each two models: ±68." in precision(small_session(100))
    assert "100 answers tell a mean to about ±0.2" in precision(small_session(kind="ratings"))


def test_a_model_that_cannot_answer_is_told_before_another_is_asked(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def checked(run: Path, _: object) -> None:
        if run.name == "two":
            raise ValueError("this one reads both ways")

    monkeypatch.setattr(served_model, "answering_checkpoint", checked)
    monkeypatch.setattr(served_model, "open_served_model", lambda *_: pytest.fail("a model was asked"))
    assert judge("one", "two", "--prompts", "prompts.txt", "--file", "page.html") == 2
    assert "the model two: this one reads both ways" in capsys.readouterr().err
