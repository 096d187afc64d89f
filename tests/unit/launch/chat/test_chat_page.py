"""The page in a real browser: asks, streams, stops, escapes, fits a phone, and works by keyboard."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from urllib.request import urlopen

import pytest

from launch.chat.server import Limits
from tests.parts import browser
from tests.parts.browser import Browser, Tab
from tests.parts.chat_model import ScriptedPlayer, live, tiny_served

EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> & <b>bold</b>"
needs_browser = pytest.mark.skipif(browser.find() is None, reason="no Chromium here")
ANSWERED = "document.getElementById('stop').hidden && document.querySelectorAll('.turn.assistant').length"


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


def last_answer(tab: Tab) -> str:
    return str(tab.run("[...document.querySelectorAll('.turn.assistant')].pop()?.textContent ?? ''"))


def ask(tab: Tab, question: str, answers: int) -> str:
    tab.run("document.getElementById('text').focus()")
    tab.type(question + "\n")
    tab.wait(f"{ANSWERED} === {answers}")
    return last_answer(tab)


# The end of the conversation stands above the form, so it can be read.
END_IN_SIGHT = (
    "document.getElementById('log').lastElementChild.getBoundingClientRect().bottom <= "
    "document.getElementById('form').getBoundingClientRect().top"
)


def is_ready(tab: Tab) -> None:
    tab.wait("document.getElementById('name').textContent !== 'Replica'")


@pytest.mark.slow
@needs_browser
def test_a_conversation(tab: Tab) -> None:
    """Typed with the keyboard alone; the second question carries the first turn and the system text."""
    player = ScriptedPlayer(lambda text: EVIL if "evil" in text else "Grüß Gott 😀")
    served = tiny_served(context_length=4096)
    with live(served, player=player) as (address, _):
        tab.show(address)
        is_ready(tab)
        assert tab.run("document.activeElement.id") == "text"
        tab.type("Hello?\n")
        tab.wait(f"{ANSWERED} === 1")
        assert last_answer(tab) == "Grüß Gott 😀"
        tab.run("document.getElementById('toggle').click()")
        tab.run("document.getElementById('system').focus()")
        tab.type("Be kind.")
        assert ask(tab, "evil <b>?</b>", 2) == EVIL
        assert tab.run("document.title") == "tiny.sft · Replica"
        assert tab.run("document.querySelectorAll('#log b, #log img, #log script').length") == 0
        read = served.vocab.decode(player.prompts[-1])
        assert read == "Be kind.Hello?Grüß Gott 😀evil <b>?</b>"
        tab.run("document.getElementById('again').click()")
        tab.wait(f"{ANSWERED} === 2")
        assert player.prompts[-1] == player.prompts[-2]
        tab.run("document.getElementById('clear').click()")
        assert tab.run("document.querySelectorAll('.turn').length") == 0
        assert ask(tab, "anew", 1) and served.vocab.decode(player.prompts[-1]) == "Be kind.anew"


@pytest.mark.slow
@needs_browser
def test_again_asks_the_last_question_though_its_answer_was_empty(tab: Tab) -> None:
    player = ScriptedPlayer(lambda text: "" if text.endswith("nothing?") else "yes")
    served = tiny_served(context_length=4096)
    with live(served, player=player) as (address, _):
        tab.show(address)
        is_ready(tab)
        assert ask(tab, "Hello?", 1) == "yes" and ask(tab, "nothing?", 2) == "(an empty answer)"
        tab.run("document.getElementById('again').click()")
        tab.wait(f"{ANSWERED} === 2")
        assert served.vocab.decode(player.prompts[-1]) == "Hello?yesnothing?"
        assert ask(tab, "More?", 3) == "yes" and served.vocab.decode(player.prompts[-1]) == "Hello?yesMore?"


@pytest.mark.slow
@needs_browser
def test_it_streams_and_the_stop_button_frees_the_row(tab: Tab) -> None:
    gate = threading.Semaphore(0)

    def step() -> None:
        assert gate.acquire(timeout=60)

    player = ScriptedPlayer(lambda _: "x" * 90, step)
    with live(tiny_served(), player=player, limits=Limits(rows=1)) as (address, batcher):
        tab.show(address)
        is_ready(tab)
        tab.type("Go\n")
        gate.release(3)
        tab.wait("document.querySelector('.turn.assistant')?.textContent === 'xxx'")
        assert tab.run("document.getElementById('send').hidden") is True
        tab.key("Escape", 27)
        tab.wait(f"{ANSWERED} === 1")
        while batcher.load != (0, 0):
            time.sleep(0.001)
        gate.release(200)
        assert last_answer(tab) == "xxx" and "Stopped." in tab.run("document.getElementById('log').textContent")
        assert len(ask(tab, "More", 2)) == 90


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_has_no_horizontal_scroll_and_reads_well(tab: Tab, dark: bool) -> None:
    with live(tiny_served(context_length=4096), player=ScriptedPlayer(lambda _: "word " * 30 + "y" * 300)) as (
        address,
        _,
    ):
        tab.show(address, width=360, height=640, dark=dark, phone=True)
        is_ready(tab)
        tab.run("document.getElementById('text').focus()")
        tab.type("z" * 200)
        tab.run("document.getElementById('toggle').click()")
        tab.run("document.getElementById('send').click()")
        tab.wait(f"{ANSWERED} === 1")
        tab.run("document.getElementById('text').focus()")
        tab.type("z" * 200)  # the box grows
        tab.wait(END_IN_SIGHT)
        wide = (
            "[...document.querySelectorAll('body *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 0.5)"
        )
        assert tab.run(f"{wide}.map((e) => e.tagName + e.id).join()") == ""
        assert tab.run("document.documentElement.scrollWidth") == tab.run("innerWidth") == 360
        small = "[...document.querySelectorAll('button')].filter((e) => e.offsetParent && e.offsetHeight < 44).length"
        assert tab.run(small) == 0
        colours = tab.run(
            "getComputedStyle(document.body).color + '|' + getComputedStyle(document.body).backgroundColor"
        )
        ink, page = (sum(map(int, re.findall(r"\d+", part)[:3])) for part in colours.split("|"))
        assert (ink > 600 and page < 150) if dark else (ink < 150 and page > 600)


@pytest.mark.slow
@needs_browser
def test_errors_are_shown_and_the_question_comes_back(chromium: Browser) -> None:
    tab = chromium.tab()  # its console may tell of refusals
    with live(tiny_served(), player=ScriptedPlayer(lambda _: "yes"), key="secret") as (address, _):
        tab.show(address, height=500)
        tab.wait("document.getElementById('hello').textContent.includes('API key')")
        tab.wait("document.activeElement.id === 'key'")
        tab.type("secret\n")
        is_ready(tab)
        for number in (1, 2, 3):
            assert ask(tab, "Hello?", number) == "yes"
        tab.run("document.getElementById('text').focus()")
        tab.type("w" * 600 + "\n")
        tab.wait("document.querySelector('.note.bad')?.textContent.includes('maximum context length')")
        assert tab.run("document.getElementById('text').value") == "w" * 600
        tab.wait(END_IN_SIGHT)
    tab.run("document.getElementById('text').value = 'Still there?'")
    tab.type("\n")
    tab.wait("document.querySelector('.note.bad')?.textContent.includes('still running')")
    tab.call("Page.close")


@pytest.mark.slow
@needs_browser
def test_a_base_model_continues_text(tab: Tab) -> None:
    player = ScriptedPlayer(lambda _: " upon a time")
    with live(tiny_served(base=True), player=player) as (address, _):
        tab.show(address)
        is_ready(tab)
        assert "was not taught to answer" in tab.run("document.getElementById('hello').textContent")
        assert ask(tab, "Once", 1) == " upon a time"
        assert tab.run("document.querySelector('.turn').textContent") == "Once upon a time"


def test_the_page_may_load_and_run_nothing_but_itself() -> None:
    """Needs no browser: the policy names the hashes of its script and style, and the page refers to nothing outside."""
    with live(tiny_served(), player=ScriptedPlayer(lambda _: "yes")) as (address, _), urlopen(address) as answer:
        page, headers = answer.read().decode(), answer.headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy and "connect-src 'self'" in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
    assert "access-control-allow-origin" not in headers
    assert not re.findall(r"https?://|//[a-z]+\.|innerHTML|outerHTML|document\.write|\son[a-z]+=|style=", page)
