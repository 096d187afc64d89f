"""How OpenMP threads wait: by how busy the cores are, unless the environment says."""

import os

import pytest

from configs.common import openmp


@pytest.mark.parametrize(("busy", "expected"), [(0.05, ("20000", None)), (0.6, (None, "passive"))])
def test_waiting_follows_the_load(
    monkeypatch: pytest.MonkeyPatch, busy: float, expected: tuple[str | None, str | None]
) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(openmp, "_busy_fraction", lambda: busy)
    openmp.choose_wait_policy()
    assert (os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY")) == expected


def test_the_environment_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"OMP_WAIT_POLICY": "active"})
    openmp.choose_wait_policy()
    assert os.environ == {"OMP_WAIT_POLICY": "active"}


def test_busy_is_a_fraction() -> None:
    assert 0 <= openmp._busy_fraction() <= 1
