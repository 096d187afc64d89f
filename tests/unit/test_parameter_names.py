"""Tests have the same names in each process that runs them."""

from __future__ import annotations

import gzip

import pytest


@pytest.mark.parametrize(("content", "word"), [(gzip.compress(b"what is packed holds the time of day"), "gzip")])
def test_bytes_do_not_name_a_test(request: pytest.FixtureRequest, content: bytes, word: str) -> None:
    assert content.startswith(b"\x1f\x8b")
    assert request.node.name == "test_bytes_do_not_name_a_test[content-gzip]"
