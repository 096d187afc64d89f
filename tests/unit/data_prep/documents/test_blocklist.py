"""Domains, prefixes and words; a long list is no slower to ask."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from data_prep.documents.blocklist import Blocklist

LIST = """\
# comment
bad.example
Evil.Example.NET.   # in capitals, with the root's point
*.wild.example
0.0.0.0 hosts.example
https://mixed.example/Ads/
mixed.example/Ads/deeper
mixed.example/x
müller.example

"""


@pytest.fixture
def blocked(tmp_path: Path) -> Blocklist:
    file = tmp_path / "list.txt"
    file.write_text(LIST, encoding="utf-8")
    return Blocklist(file, ["casino", "free money"])


@pytest.mark.parametrize(
    "url",
    [
        "http://bad.example",
        "https://a.b.bad.example/page?x=1",
        "//bad.example/x",
        "HTTPS://user:password@BAD.example:8080/",
        "bad.example./",
        "http://evil.example.net/",
        "http://wild.example/x",
        "http://www.hosts.example/",
        "https://mixed.example/Ads/1.html",
        "http://mixed.example/Ads/deeper/still",
        "http://mixed.example/xyz",
        "http://www.xn--mller-kva.example/",
        "http://www.müller.example/",
        "http://fine.example/online-CASINO/",
        "http://casino.example/",
        "http://fine.example/free%20money",
    ],
)
def test_blocked(blocked: Blocklist, url: str) -> None:
    assert blocked(url)


@pytest.mark.parametrize(
    "url",
    [
        None,
        "",
        "http://notbad.example/",
        "http://example/bad.example",
        "http://bad.example.org/",
        "http://mixed.example/ads/",
        "http://mixed.example/",
        "http://www.mixed.example/Ads/",
        "http://fine.example/casinos/occasino",
        "not a url at all",
    ],
)
def test_not_blocked(blocked: Blocklist, url: str | None) -> None:
    assert not blocked(url)


def test_no_list_and_no_words() -> None:
    assert not Blocklist(None)("http://bad.example")
    assert Blocklist(None, ["x"])("http://a.example/x")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.quality\.blocklist: .* cannot be read"):
        Blocklist(tmp_path / "absent.txt")


def test_many_entries(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    names = (f"site{number}.example" + ("/path" if number % 5 == 0 else "") for number in range(200_000))
    file.write_text("\n".join(names), encoding="utf-8")
    started = time.process_time()
    blocked = Blocklist(file)
    loaded = time.process_time()
    numbers = range(0, 200_000, 101)
    found = [number for number in numbers if blocked(f"https://www.site{number}.example/path")]
    asked = time.process_time()
    assert found == [number for number in numbers if number % 5]  # entries with a path are of the bare host
    assert loaded - started < 3
    assert (asked - loaded) / len(numbers) < 100e-6
