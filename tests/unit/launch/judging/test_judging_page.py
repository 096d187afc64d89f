"""The page in a real browser: by keyboard, by touch, on a phone, from disk; what people say arrives as they said it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from eval.people.outcome import Judgement, people_results
from eval.people.session import VOTES, Asked, Session, plan
from eval.people.votes import read_votes
from launch.judging.judging_page import page_file
from tests.parts import browser
from tests.parts.browser import Browser, Tab
from tests.parts.judging import judging
from tests.parts.voters import judged, people_set, small_session

EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> & <b>b</b> \u2028 😀"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(browser.find() is None, reason="no Chromium here")]
CODES = {"ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40, "=": 187, "Backspace": 8, "n": 78, "Escape": 27}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = browser.find()
    assert path is not None
    with browser.running(path) as started:
        yield started


@pytest.fixture
def tab(chromium: Browser) -> Iterator[Tab]:
    opened = chromium.tab()
    yield opened
    assert not opened.errors
    opened.call("Page.close")


def press(tab: Tab, *names: str) -> None:
    for name in names:
        tab.key(name, CODES.get(name, ord(name[0])), name if len(name) == 1 else "")


def begin(tab: Tab, name: str) -> None:
    tab.wait("document.activeElement && document.activeElement.id === 'name'")
    tab.type(name + "\n")
    tab.wait("!document.getElementById('foot').hidden")


def count(tab: Tab) -> str:
    return str(tab.run("document.getElementById('count').textContent"))


def saved(tab: Tab) -> None:
    tab.wait("unsent === 0")


def evil_session(kind: str = "pairs", prompts: int = 4) -> Session:
    asked = [
        Asked(f"{EVIL} {number}", (f"{EVIL} one {number} a b c", f"two {number} a b c d e"))
        for number in range(prompts)
    ]
    settings = people_set(attention=1, repeats=0.25, guidelines=EVIL)
    return plan(settings, kind, judged(("alpha", "beta")), asked, "2026-11-30T09:00:00Z", 1)  # type: ignore[arg-type]


def test_a_session_by_keyboard_alone(tab: Tab, tmp_path: Path) -> None:
    session = evil_session()
    with judging(session, tmp_path) as address:
        tab.show(address)
        begin(tab, "Ada")
        assert count(tab) == "1 of 6"  # four comparisons, a test, and one that returns
        assert tab.run("document.querySelectorAll('#trial b, #trial img, #trial script, #start b').length") == 0
        press(tab, "ArrowLeft", "=", "ArrowDown")
        assert count(tab) == "4 of 6"
        press(tab, "Backspace", "n")
        tab.wait("document.activeElement.id === 'note'")
        tab.type("n = not sure")  # in a note, letters are text
        press(tab, "Escape", "ArrowRight")
        assert count(tab) == "4 of 6"
        press(tab, "ArrowLeft", "ArrowLeft", "ArrowLeft")
        tab.wait("!document.getElementById('end').hidden")
        saved(tab)
        assert "You can close this page" in tab.run("document.getElementById('thanks').textContent")
        press(tab, "ArrowLeft")  # nothing is left to judge
        assert tab.run("document.title") == "Judging"
    votes = read_votes(tmp_path / VOTES, session).by_rater()["Ada"]
    assert [vote.choice for vote in votes] == ["left", "tie", "right", "left", "left", "left"]
    assert [vote.note for vote in votes] == ["", "", "n = not sure", "", "", ""]
    assert [vote.slot for vote in votes] == list(range(6))
    first, again = (vote for vote in votes if Counter(one.trial for one in votes)[vote.trial] == 2)
    assert first.shown == again.shown[::-1]  # it returns with its sides swapped
    assert len((tmp_path / VOTES).read_text().splitlines()) == 8  # a vote and its withdrawal stay in the file


def test_a_name_is_written_as_votes_may_have_it(tab: Tab, tmp_path: Path) -> None:
    """Else a file of votes could not be imported, when all of them are given."""
    session = small_session(3, attention=0, repeats=0)
    with judging(session, tmp_path) as address:
        tab.show(address)
        begin(tab, "علی\u200cرضا\u3000A")
        press(tab, "ArrowLeft")
        saved(tab)
    assert list(read_votes(tmp_path / VOTES, session).by_rater()) == ["علیرضا A"]


def test_it_goes_on_where_it_was_and_a_namesake_is_asked(tab: Tab, chromium: Browser, tmp_path: Path) -> None:
    session = small_session(6, attention=0, repeats=0)
    with judging(session, tmp_path) as address:
        tab.show(address)
        begin(tab, "Ada")
        press(tab, "ArrowLeft", "ArrowLeft")
        saved(tab)
        tab.show(address)
        begin(tab, "Ada")
        assert count(tab) == "3 of 6"
        # A second browser, which knows nothing of the first.
        tab.run("localStorage.clear()")
        tab.show(address)
        tab.wait("document.activeElement.id === 'name'")
        tab.type("Ada\n")
        tab.wait("!document.getElementById('go-on').hidden")
        assert "Somebody called Ada has given 2 votes" in tab.run("document.getElementById('warning').textContent")
        tab.run("document.getElementById('go-on').click()")
        tab.wait("!document.getElementById('foot').hidden")
        assert count(tab) == "3 of 6"
        press(tab, "ArrowRight")
        saved(tab)
    raters = read_votes(tmp_path / VOTES, session).by_rater()
    assert {name: [vote.choice for vote in votes] for name, votes in raters.items()} == {
        "Ada": ["left", "left", "right"]
    }


def test_votes_outlive_a_server_that_ends(chromium: Browser, tmp_path: Path) -> None:
    session = small_session(4, attention=0, repeats=0)
    tab = chromium.tab()  # its console tells of the refused connection
    with judging(session, tmp_path) as address:
        tab.show(address)
        begin(tab, "Ada")
        press(tab, "ArrowLeft")
        saved(tab)
    press(tab, "ArrowRight")
    tab.wait("!document.getElementById('warning').hidden")
    said = tab.run("document.getElementById('warning').textContent")
    assert said.startswith("The server does not answer. Your last vote is kept here")
    assert tab.run("JSON.parse(localStorage.getItem(storageName('Ada'))).unsent") == 1
    tab.call("Page.close")


def test_the_file_works_from_disk_and_its_votes_can_be_read(tab: Tab, tmp_path: Path) -> None:
    session = evil_session("ratings", prompts=2)
    page = tmp_path / "page.html"
    page.write_text(page_file(session), encoding="utf-8")
    tab.show(page.as_uri())
    begin(tab, "Bo")
    total = int(count(tab).split()[-1])
    assert total == 6 and tab.run("getComputedStyle(document.querySelector('.answer')).borderTopLeftRadius") == "14px"
    press(tab, "4", "9", "2")  # nine is no grade
    assert count(tab) == "2 of 6"
    tab.run("document.querySelectorAll('#scale-fluency button')[4].click()")
    tab.run("document.querySelectorAll('#scale-adequacy button')[0].click()")
    assert count(tab) == "3 of 6"
    for _ in range(total - 2):
        press(tab, "3", "3")
    tab.wait("!document.getElementById('end').hidden && !document.getElementById('download').hidden")
    text = tab.run("lines.map((line) => JSON.stringify(line) + '\\n').join('')")
    tab.run(
        "URL.createObjectURL = (blob) => { blob.text().then((text) => { window.given = text; }); return 'data:,'; }"
    )
    tab.run("HTMLAnchorElement.prototype.click = function () { window.file = this.download; }")
    tab.run("document.getElementById('download').click()")
    tab.wait("window.given !== undefined")
    assert tab.run("window.given") == text and tab.run("window.file") == f"votes-Bo-{session.page[:8]}.jsonl"
    (tmp_path / "bo.jsonl").write_text(text, encoding="utf-8")
    file = read_votes(tmp_path / "bo.jsonl", session)
    votes = file.by_rater()["Bo"]
    assert [dict(vote.ratings) for vote in votes[:2]] == [{"fluency": 4, "adequacy": 2}, {"fluency": 5, "adequacy": 1}]
    assert people_results(Judgement.of(session, file), 200)
    tab.show(page.as_uri())  # a browser keeps them over a reload
    begin(tab, "Bo")
    assert tab.run("document.getElementById('end').hidden") is False


@pytest.mark.parametrize("kind", ["pairs", "ratings"])
def test_on_a_phone(tab: Tab, tmp_path: Path, kind: str) -> None:
    asked = [Asked("Why? " * 20 + "z" * 200, ("word " * 60, "y" * 300)) for _ in range(2)]
    session = plan(people_set(attention=0), kind, judged("ab"), asked, "now", 1)  # type: ignore[arg-type]
    with judging(session, tmp_path) as address:
        tab.show(address, width=360, height=640, phone=True)
        wide = (
            "[...document.querySelectorAll('body *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 0.5)"
        )
        small = "[...document.querySelectorAll('button')].filter((e) => e.offsetParent && e.offsetHeight < 44).length"
        tab.wait("document.getElementById('start').hidden === false")
        assert tab.run(f"{wide}.map((e) => e.tagName + e.id).join()") == "" and tab.run(small) == 0
        begin(tab, "Cy")
        assert tab.run(f"{wide}.map((e) => e.tagName + e.id).join()") == "" and tab.run(small) == 0
        assert tab.run("document.documentElement.scrollWidth") == 360
        # The answers can be scrolled and the choices stay in sight.
        assert tab.run("document.getElementById('main').scrollHeight > document.getElementById('main').clientHeight")
        assert tab.run("document.getElementById('foot').getBoundingClientRect().bottom") <= 640
        assert tab.run("document.getElementById('main').clientHeight") > 200
        tab.run(
            "document.querySelector(session.kind === 'pairs' ? '[data-choice=tie]' : '#scale-fluency button').click()"
        )
        if kind == "pairs":
            assert count(tab).startswith("2 of")


def test_sides_and_orders_differ_between_raters(tab: Tab, tmp_path: Path) -> None:
    session = small_session(40, attention=0, repeats=0.1)
    page = tmp_path / "page.html"
    page.write_text(page_file(session), encoding="utf-8")
    tab.show(page.as_uri())
    tab.wait("document.activeElement.id === 'name'")
    orders = [
        json.loads(tab.run(f"JSON.stringify(sequence('{name}').map((s) => [s.trial.id, s.swap]))"))
        for name in ("Ada", "Bo")
    ]
    ada, bo = orders
    assert ada != bo and [len(order) for order in orders] == [44, 44]
    assert {one for one, _ in ada[:18]} <= {trial.id for trial in session.trials[:20]}  # the first block comes first
    swaps = [dict(map(tuple, order)) for order in orders]
    assert 10 < sum(swaps[0][trial] != swaps[1][trial] for trial in swaps[0]) < 30
    assert 12 < sum(swap for _, swap in ada) < 32
    twice = [one for one, times in Counter(trial for trial, _ in ada).items() if times == 2]
    assert len(twice) == 4
    for trial in twice:
        (first, one), (second, other) = ((place, swap) for place, (found, swap) in enumerate(ada) if found == trial)
        assert one != other and second - first >= 10
