"""Foreign text on its way to a terminal, and secrets in what is shown: neither gets through."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from rich.table import Table

from configs.common.console import Console
from configs.common.exit_codes import run_command
from configs.common.progress import progress_bar
from configs.safety.hide_secrets import mask, mask_urls
from configs.safety.terminal import guarded_output, printable

ROOT = Path(__file__).resolve().parents[4]
PACKAGES = ("configs", "data_prep", "pretrain", "eval", "launch")
# OSC 52 sets the clipboard, OSC 0 the title; C1's CSI clears; CR and BS overwrite what was printed.
HOSTILE = "a\x1b]52;c;cm0gLXJm\x07b\x1b]0;title\x1b\\c\x9b2Jd\re\x08f\x7fg\x00"
SHOWN = r"a\x1b]52;c;cm0gLXJm\x07b\x1b]0;title\x1b\c\x9b2Jd\x0de\x08f\x7fg\x00"


def test_control_characters_are_written_out_and_the_rest_stays() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("tab\tline\nzhong 中文 \U0001f600 \xa0") == "tab\tline\nzhong 中文 \U0001f600 \xa0"
    assert printable("\udce4") == r"\udce4"  # half a character, as names of files may hold; no stream can encode it


@pytest.mark.parametrize("stream", ["out", "err"])
@pytest.mark.parametrize("way", ["print", "writelines", "error", "console", "table", "bug"])
def test_nothing_that_a_command_prints_steers_the_terminal(
    way: str, stream: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> int:
        target = sys.stdout if stream == "out" else sys.stderr
        table = Table("x")
        table.add_row(f"[bold]{HOSTILE}[/oops]")
        if way == "print":
            print(HOSTILE, file=target)
        elif way == "writelines":
            target.writelines([HOSTILE, "\n"])
        elif way == "error":
            raise ValueError(HOSTILE)
        elif way == "console":
            Console(stderr=stream == "err", width=200).print(f"[bold]{HOSTILE}[/oops]", "[link=http://x]y")
        elif way == "table":
            Console(stderr=stream == "err", width=200).print(table)
        else:
            raise ZeroDivisionError(HOSTILE)
        return 0

    run_command(command)
    said = capsys.readouterr()
    assert not set(said.out + said.err) & set(map(chr, (*range(9), *range(11, 32), *range(127, 160))))
    assert r"a\x1b]52;c;cm0gLXJm" in said.out + said.err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_live_bar_keeps_its_own_sequences_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with guarded_output(), progress_bar(f"[bold]set {HOSTILE}", 2) as bar:
        bar.update(1, note=f"[/]{HOSTILE}")
        print(HOSTILE, file=sys.stderr)
    said = terminal.getvalue()
    assert "\x1b[?25l" in said  # rich hides the cursor
    assert "\x1b]52" not in said and "\x9b" not in said and "\x07" not in said
    assert "[bold]set" in said


def test_consoles_are_made_in_one_place() -> None:
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    found = [file for file in files if re.search(r"rich\.console|from rich import", file.read_text(encoding="utf-8"))]
    assert [file.relative_to(ROOT).as_posix() for file in found] == ["configs/common/console.py"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:PW@host/x?token=T cannot be read", "http://***@host/x?*** cannot be read"),
        ("(s3://KEY:SE/CRET@bucket/x)", "(s3://KEY:SE/CRET@bucket/x)"),  # no user information: a path
        ("s3://KEY:SECRET@bucket/[ab]?.txt", "s3://***@bucket/[ab]?.txt"),
        ("gs://bucket/x?X-Goog-Signature=5#a", "gs://bucket/x?***"),
        ("filecache::https://me@host/x?T", "filecache::https://***@host/x?***"),
        ("'https://h/a?b=c', \"ftp://a:b@c\"", "'https://h/a?***', \"ftp://***@c\""),
        ("https://host/#access_token=T", "https://host/#***"),
        ("nothing to hide? a=b", "nothing to hide? a=b"),
    ],
)
def test_secrets_of_urls(text: str, shown: str) -> None:
    assert mask_urls(text) == shown


def test_secrets_of_options() -> None:
    options = {"key": "K", "port": 9000, "anon": False, "token": None, "deep": [{"secret": "S"}]}
    hidden = {"key": "***", "port": "***", "anon": False, "token": None, "deep": [{"secret": "***"}]}
    settings = {"storage_options": options, "mirror": "s3://a:b@c/d", "steps": 5}
    assert mask(settings) == {"storage_options": hidden, "mirror": "s3://***@c/d", "steps": 5}


def test_messages_hide_the_secrets_of_urls_and_data_keeps_them(capsys: pytest.CaptureFixture[str]) -> None:
    url = "http://user:PW@host/x?token=T"

    def command() -> int:
        print(url)
        print(f"warning: {url}", file=sys.stderr)
        raise ValueError(f"{url} cannot be read")

    run_command(command)
    said = capsys.readouterr()
    assert said.out == f"{url}\n"
    assert said.err == "warning: http://***@host/x?***\nerror: http://***@host/x?*** cannot be read\n"
