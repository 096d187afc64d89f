"""Boilerplate lines go, prose about the same things stays."""

from __future__ import annotations

import time

import pytest

from configs.schema.data import Lines
from data_prep.documents.boilerplate import BEGINNINGS, PHRASES, LinePass

BOILERPLATE = LinePass(Lines(boilerplate=True))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("Read more…", "teaser"),
        ("[Read More »](https://example.com/a)", "teaser"),
        ("Weiterlesen →", "teaser"),
        ("Lire la suite", "teaser"),
        ("【阅读更多】", "teaser"),
        ("SHARE ON FACEBOOK", "sharing"),
        ("Click to share on Twitter (Opens in new window)", "sharing"),
        ("Share this: Facebook Twitter", "sharing"),
        ("This website uses cookies to improve your experience. By browsing you agree.", "cookies"),
        ("Diese Website verwendet Cookies, um Inhalte zu personalisieren.", "cookies"),
        ("Nous utilisons des cookies pour vous garantir la meilleure expérience.", "cookies"),
        ("本网站使用Cookie改善您的体验。", "cookies"),
        ("Please enable JavaScript to view the comments.", "scripts"),
        ("JavaScript is disabled in your browser.", "scripts"),
        ("© 2018 Example Inc. All rights reserved.", "rights"),
        ("Copyright © 2007-2016 Example LLC", "rights"),
        ("Alle Rechte vorbehalten.", "rights"),
        ("版权所有 © 某某公司", "rights"),
        ("Sign up for our weekly newsletter", "newsletter"),
        ("Inscrivez-vous à notre newsletter !", "newsletter"),
        ("关注我们的微信公众号", "newsletter"),
        ("Home » Blogs » Letters", "navigation"),
        ("You are here: Home > News", "navigation"),
        ("当前位置：首页 > 新闻", "navigation"),
        ("  Skip to main content  ", "navigation"),
        ("Filed under: gardens, tools", "navigation"),
    ],
)
def test_taken_out(line: str, reason: str) -> None:
    text = f"First paragraph.\n\n{line}\n\nSecond paragraph."
    assert BOILERPLATE(text) == ("First paragraph.\n\nSecond paragraph.", {reason: 1})
    assert LinePass(Lines())(text) == (text, {})


@pytest.mark.parametrize(
    "line",
    [
        "She read more than he did, and she read it twice.",
        "Cookies are baked at 180 degrees; this website of his uses butter.",
        "JavaScript is turned off in the user's browser. However, if combined with a server this still works.",
        "The home > office axis is discussed below.",
        "Share with the green and golden basilisk",
        "like this:",
        "subscribe();",
        "# Loading",
        "## Learn more",
        "He wanted all rights reserved to the crown.",
        "他阅读更多的书，也写得更多。",
        "Home",
        "Copyright law protects authors.",
        "",
    ],
)
def test_prose_stays(line: str) -> None:
    text = f"First.\n\n{line}\n\nLast."
    assert BOILERPLATE(text) == (text, {})


def test_a_page_of_boilerplate_leaves_nothing() -> None:
    assert BOILERPLATE("Skip to content\n\nRead more\n© 2020 Example\n") == (
        "",
        {"navigation": 1, "teaser": 1, "rights": 1},
    )


def test_own_patterns_and_their_mistakes() -> None:
    own = LinePass(Lines(patterns=[r"^Posted \d+ days ago$", "(?i)sponsored"]))
    assert own("Posted 3 days ago\nText posted 3 days ago.\nThis was SPONSORED.\nRead more") == (
        "Text posted 3 days ago.\nRead more",
        {"pattern": 2},
    )
    with pytest.raises(ValueError, match=r"data\.lines\.patterns: '\(' is not a regular expression"):
        LinePass(Lines(patterns=["fine", "("]))


BOOK = """\
The Project Gutenberg EBook of A Tale, by Somebody

Release Date: May 1, 2003 [EBook #1]

*** START OF {the} PROJECT GUTENBERG EBOOK A TALE ***

Produced by A Volunteer and the
Distributed Proofreaders


A TALE

It begins. And it ends.

End of the Project Gutenberg EBook of A Tale, by Somebody

*** END OF {the} PROJECT GUTENBERG EBOOK A TALE ***

***** This file should be named 1.txt *****
*** START: FULL LICENSE ***
"""


@pytest.mark.parametrize("the", ["THE", "THIS"])
def test_gutenberg_frame(the: str) -> None:
    text = BOOK.replace("{the}", the)
    left, counts = BOILERPLATE(text)
    assert left == "A TALE\n\nIt begins. And it ends."
    assert counts == {"gutenberg": text.count("\n") - left.count("\n")}


def test_gutenberg_small_print_of_the_nineties() -> None:
    text = "Project Gutenberg Etext of A Tale\n\n***START**THE SMALL PRINT!**START***\nlawyers\n"
    text += "*END THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n\nA TALE\n\nIt begins."
    assert BOILERPLATE(text)[0] == "A TALE\n\nIt begins."
    about = "An essay about Project Gutenberg and its small print."
    assert BOILERPLATE(about) == (about, {})


def test_phrases_are_written_as_they_are_looked_up() -> None:
    for reason, phrases in PHRASES.items():
        for phrase in phrases:
            assert BOILERPLATE(phrase) == ("", {reason: 1}), phrase
    assert set(BEGINNINGS) <= set(PHRASES)


def test_no_line_is_slow() -> None:
    started = time.process_time()
    for start in ("folgen sie uns auf ", "share this: ", "by using ", "click to share ", "home > ", "© "):
        BOILERPLATE(start + "a" * 280)
        BOILERPLATE(start + "a " * 140)
    assert time.process_time() - started < 1
