"""Deterministic algorithms, and how a compiler that is loaded before or after learns of them."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from pretrain.numerics.repeatable import deterministic_algorithms

VARIABLE = "TORCHINDUCTOR_DETERMINISTIC"  # read once by the compiler's settings


def test_a_compiler_that_is_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as compiler

    monkeypatch.delenv(VARIABLE, raising=False)
    with deterministic_algorithms(True):
        assert torch.are_deterministic_algorithms_enabled() and compiler.deterministic
    assert not torch.are_deterministic_algorithms_enabled() and not compiler.deterministic
    assert VARIABLE not in os.environ


@pytest.mark.parametrize("before", ["default", "warn", "error"])
def test_a_compiler_that_comes_later_finds_out(before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch._inductor.config", raising=False)
    monkeypatch.delenv(VARIABLE, raising=False)
    torch.set_deterministic_debug_mode(before)
    mode = torch.get_deterministic_debug_mode()
    try:
        with deterministic_algorithms(True):
            assert torch.get_deterministic_debug_mode() == 2 and os.environ[VARIABLE] == "1"
            assert "torch._inductor.config" not in sys.modules, "it takes seconds to load"
        assert torch.get_deterministic_debug_mode() == mode and VARIABLE not in os.environ
    finally:
        torch.set_deterministic_debug_mode("default")


def test_a_variable_of_the_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "0")
    with deterministic_algorithms(True):
        assert os.environ[VARIABLE] == "1"
    assert os.environ[VARIABLE] == "0"
