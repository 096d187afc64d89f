"""The order of the data: bijections, epochs, shares, and constant cost at any size."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from pretrain.batches.mixture_plan import SLOT_GROUP, SourceSize
from pretrain.batches.order import KeyedPermutation, WindowOrder


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 1000, 1024, 65537])
def test_permutation_is_a_bijection(n: int) -> None:
    image = KeyedPermutation(n, b"key")(np.arange(n))
    assert sorted(image.tolist()) == list(range(n))


def test_permutation_depends_on_the_key_and_moves_things_apart() -> None:
    values = np.arange(100_000)
    one, other = KeyedPermutation(100_000, b"one")(values), KeyedPermutation(100_000, b"other")(values)
    assert (one == other).mean() < 1e-3
    # Neighbours land anywhere: their distance has the mean n/3 of two independent draws, and no correlation is left.
    assert abs(np.abs(np.diff(one)).mean() / 100_000 - 1 / 3) < 0.01
    assert abs(np.corrcoef(values, one)[0, 1]) < 0.02


def test_permutation_is_pinned() -> None:
    """Another order would make every checkpoint resume on other data, so it must not change by accident."""
    assert KeyedPermutation(1000, b"pinned")(np.arange(8)).tolist() == [151, 569, 316, 289, 784, 510, 607, 386]


def test_every_window_once_an_epoch_without_weights() -> None:
    mixture = WindowOrder([SourceSize("a", 997, None), SourceSize("b", 10, None), SourceSize("empty", 0, None)], seed=3)
    for epoch in range(3):
        places = mixture.windows_at(np.arange(epoch * 1007, (epoch + 1) * 1007))
        assert len(set(zip(places.source.tolist(), places.window.tolist(), strict=True))) == 1007
        assert set(places.epoch.tolist()) == {epoch}
    first, second = mixture.windows_at(np.arange(1007)), mixture.windows_at(np.arange(1007, 2014))
    assert (first.window != second.window).mean() > 0.9, "each epoch has an order of its own"


def test_weights_give_shares_and_each_source_its_own_epochs() -> None:
    mixture = WindowOrder([SourceSize("a", 500, 3.0), SourceSize("b", 50, 1.0)], seed=3)
    assert mixture.shares == {"a": 0.75, "b": 0.25}
    places = mixture.windows_at(np.arange(8 * SLOT_GROUP))
    for block in range(8):
        assert (places.source[block * SLOT_GROUP : (block + 1) * SLOT_GROUP] == 1).sum() == SLOT_GROUP // 4
    for source, windows in ((0, 500), (1, 50)):
        mine = places.source == source
        for epoch in range(int(mine.sum()) // windows):
            assert sorted(places.window[mine & (places.epoch == epoch)].tolist()) == list(range(windows))


def test_slots_are_found_one_by_one_as_well_as_together() -> None:
    mixture = WindowOrder([SourceSize("a", 500, 2.0), SourceSize("b", 50, 1.0)], seed=9)
    together = mixture.windows_at(np.arange(3000))
    for slot in (0, 1, 1023, 1024, 2999):
        alone = mixture.windows_at(np.array([slot]))
        assert (alone.source[0], alone.window[0]) == (together.source[slot], together.window[slot])


def test_a_trillion_windows_cost_no_more_than_a_thousand() -> None:
    tracemalloc.start()
    mixture = WindowOrder([SourceSize("huge", 10**12, 0.7), SourceSize("large", 10**10, 0.3)], seed=1)
    places = mixture.windows_at(np.arange(10**11, 10**11 + 512))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500_000
    assert places.window.max() < 10**12 and len(set(places.window.tolist())) == 512


def test_what_cannot_be_mixed_is_refused() -> None:
    with pytest.raises(ValueError, match="no source has a whole training window"):
        WindowOrder([SourceSize("a", 0, None)], 0)
    with pytest.raises(ValueError, match=r"every source or to none of them \(without one: b\)"):
        WindowOrder([SourceSize("a", 5, 1.0), SourceSize("b", 5, None)], 0)
    with pytest.raises(ValueError, match="`b` has less than"):
        WindowOrder([SourceSize("a", 5, 1.0), SourceSize("b", 5, 1e-5)], 0, slots=10_000)
