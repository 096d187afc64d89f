"""What the user is told on stderr: one form for each kind, and silence for who uses Replica as a library."""

from __future__ import annotations

import logging

import pytest

from configs.common.notices import note, say, warn


def test_each_kind_has_its_prefix_and_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    say("100% done")
    note("a setting does nothing")
    warn("a copy failed")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "100% done\nnote: a setting does nothing\nwarning: a copy failed\n"


def test_a_library_user_can_silence_them(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("replica")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        say("working")
        note("something")
        warn("a copy failed")
    finally:
        logger.setLevel(before)
    assert capsys.readouterr().err == "warning: a copy failed\n"
