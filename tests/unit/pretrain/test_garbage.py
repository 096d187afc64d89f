"""The garbage collector during training."""

from __future__ import annotations

import gc
import weakref

import pytest

from pretrain.garbage import collected_at_steps, imports_set_apart


class Ring:
    """Refers to itself, so that only the collector frees it."""

    def __init__(self) -> None:
        self.me = self


def test_garbage_goes_at_known_steps_only() -> None:
    with collected_at_steps(10) as collect:
        assert not gc.isenabled() and gc.get_freeze_count() > 0
        ring = weakref.ref(Ring())
        for step in range(1, 10):
            collect(step)
            assert ring() is not None
        collect(10)
        assert ring() is None
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_the_collector_is_as_before_after_an_error() -> None:
    with pytest.raises(ValueError, match="broken"), collected_at_steps():
        raise ValueError("broken")
    assert gc.isenabled() and gc.get_freeze_count() == 0
    gc.disable()
    try:
        with collected_at_steps():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_existed_before_is_not_walked_over_and_comes_back() -> None:
    with imports_set_apart():
        apart = gc.get_freeze_count()
        ring = weakref.ref(Ring())
        gc.collect()
        assert ring() is None, "what comes later is collected"
        with collected_at_steps():
            pass
        assert gc.get_freeze_count() >= apart > 1000
        with imports_set_apart():
            pass
        assert gc.get_freeze_count() >= apart
    assert gc.get_freeze_count() == 0
