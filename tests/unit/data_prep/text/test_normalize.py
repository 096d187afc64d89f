"""Normalisation and quality: what they change, what they must leave alone, what they drop."""

from __future__ import annotations

import unicodedata

import pytest

from configs.schema.data import Normalize, Quality
from data_prep.quality import reason_to_drop, unprintable
from data_prep.text.characters import HAS_BEYOND
from data_prep.text.normalize import normalize


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a\r\nb\rc", "a\nb\nc"),
        ("a  \nb\t\n\n\n\n\nc", "a\nb\n\nc"),
        ("\n\n  first line keeps its indent\n\n", "  first line keeps its indent"),
        ("e\u0301 \u212b", "é Å"),
        ("schÃ¶n, donâ€™t, cafÃ©", "schön, don’t, café"),
        ("ein Â»ZitatÂ« und\ngutes Ö, à la carte", "ein »Zitat« und\ngutes Ö, à la carte"),
        ("Ça va? «À» Ô — 中文，é", "Ça va? «À» Ô — 中文，é"),
        ("bell\x07 stays, 😀 too", "bell\x07 stays, 😀 too"),
    ],
)
def test_normalize(given: str, expected: str) -> None:
    assert normalize(given, Normalize()) == expected


def test_everything_can_be_turned_off() -> None:
    text = " \r\n e\u0301 Ã¶ \n\n\n\n"
    assert normalize(text, Normalize(unicode="none", whitespace=False, mojibake=False)) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("short", "too_short"),
        ("good enough text\n\twith tabs", None),
        ("\x00\x01\x02\x03 and a few", "not_text"),
        ("\ufffd" * 5 + "x" * 20, "not_text"),
        ("\U000f0000" * 5 + "x" * 20, "not_text"),
        ("中文也是文字，十个字以上。😀", None),
    ],
)
def test_quality(text: str, reason: str | None) -> None:
    assert reason_to_drop(text, text.encode(), Quality(min_characters=10)) == reason


def test_unprintable_counts_what_unicodedata_says() -> None:
    for start in (0, 0x80, 0x2000, 0xFF00, 0x10000, 0x1F000, 0x3FF00, 0x40000, 0xE0000, 0x10FF00):
        text = "".join(chr(code) for code in range(start, start + 0x100) if not 0xD800 <= code < 0xE000)
        bad = [
            c for c in text if c == "\ufffd" or (unicodedata.category(c) in {"Cc", "Cn", "Co"} and c not in "\t\n\r")
        ]
        assert unprintable(text, text.encode()) == len(bad), hex(start)
    assert HAS_BEYOND.search("a\uffff") is None
