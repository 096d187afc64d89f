"""Shares, caps and phases: what is asked for, what is planned, and what training sees."""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.schema.recipe import Recipe, RecipeError, load
from data_prep.tokens.shards import load_manifest
from pretrain.batches.mixture import mixture_lines, mixture_table, plan_mixture
from pretrain.batches.mixture_plan import SLOT_GROUP, MixturePhase, SourceSize, fill, plan_segments
from pretrain.batches.order import ORDER_VERSION, WindowOrder
from pretrain.batches.source import BatchSource
from pretrain.checkpoint.compatible import check_past
from pretrain.checkpoint.manifest import CheckpointInfo
from tests.parts.training_run import prepare_data, write_recipe


def counts(mixture: WindowOrder, start: int, stop: int) -> list[int]:
    """Slots of each source, looked at one by one."""
    source = mixture.windows_at(np.arange(start, stop)).source
    return np.bincount(source, minlength=len(mixture.sources)).tolist()


def visits(mixture: WindowOrder, slots: int) -> dict[tuple[int, int], Counter[int]]:
    """(source, epoch) -> how often each window was seen."""
    places = mixture.windows_at(np.arange(slots))
    found: dict[tuple[int, int], Counter[int]] = {}
    for source, epoch, window in zip(
        places.source.tolist(), places.epoch.tolist(), places.window.tolist(), strict=True
    ):
        found.setdefault((source, epoch), Counter())[window] += 1
    return found


def check_epochs(mixture: WindowOrder, slots: int) -> None:
    """No window twice in an epoch, no epoch begun before the one before it is whole."""
    seen = visits(mixture, slots)
    for (source, epoch), windows in seen.items():
        assert set(windows.values()) == {1}
        if (source, epoch + 1) in seen:
            assert len(windows) == mixture.sources[source].windows


@pytest.mark.parametrize("weights", [(0.7, 0.2999, 0.0001), (1 / 3, 1 / 3, 1 / 3), (0.5, 0.123, 0.377)])
@pytest.mark.parametrize("slots", [5 * SLOT_GROUP, 7777, 100_003])
def test_shares_are_met_within_a_thousandth(weights: tuple[float, ...], slots: int) -> None:
    sizes = [SourceSize(name, 5000, weight) for name, weight in zip("abc", weights, strict=True)]
    if slots * min(weights) < 0.5:
        with pytest.raises(ValueError, match="`c` has less than one of the"):
            WindowOrder(sizes, 5, slots)
        return
    mixture = WindowOrder(sizes, 5, slots)
    found = counts(mixture, 0, slots)
    for count, weight in zip(found, weights, strict=True):
        assert abs(count / slots - weight) < (0.001 if slots > 50 * SLOT_GROUP else 0.005)
    assert found[2] or slots * weights[2] < 1, "a small weight is not lost"
    assert mixture.realised(slots) == found
    check_epochs(mixture, slots)


def test_the_order_is_pinned() -> None:
    """Another order would make every checkpoint resume on other data, so it must not change by accident."""
    places = WindowOrder([SourceSize("a", 50, 0.5), SourceSize("b", 50, 0.3), SourceSize("c", 50, 0.2)], 11).windows_at(
        np.arange(1000, 1012)
    )
    assert places.source.tolist() == [0, 2, 0, 1, 1, 0, 1, 0, 2, 1, 1, 0]
    assert places.epoch.tolist() == [10, 3, 10, 6, 6, 10, 6, 10, 4, 6, 6, 10]
    assert places.window.tolist() == [10, 45, 18, 19, 25, 19, 22, 20, 34, 15, 28, 34]


def test_many_sources_with_odd_weights_keep_their_shares_at_every_point() -> None:
    weights = [1 / (k + 1) for k in range(40)]
    mixture = WindowOrder([SourceSize(f"s{k}", 900, weight) for k, weight in enumerate(weights)], 1)
    exact = np.array(weights) / sum(weights)
    for slots in (100 * SLOT_GROUP, 100 * SLOT_GROUP + 77, 60_000):
        found = np.array(counts(mixture, 0, slots))
        assert np.abs(found / slots - exact).max() < 0.001
        assert mixture.realised(slots) == found.tolist()


def test_a_phase_switches_at_its_slot_and_epochs_go_on() -> None:
    sizes = [SourceSize("web", 4000, 0.9), SourceSize("wiki", 700, 0.1)]
    switch, slots = 10_007, 13_000  # not at the end of a block
    mixture = WindowOrder(sizes, 3, slots, [MixturePhase(switch, {"wiki": 1.0})])
    first = counts(mixture, 0, switch)
    assert abs(first[1] - 0.1 * switch) < 0.001 * switch
    assert counts(mixture, switch, slots) == [0, slots - switch]
    assert mixture.windows_at(np.array([switch - 1, switch])).source.tolist()[1] == 1
    check_epochs(mixture, slots)


def test_three_phases_and_a_start_at_zero() -> None:
    sizes = [SourceSize("a", 300, None), SourceSize("b", 100, None)]
    phases = [MixturePhase(0, {"a": 1}), MixturePhase(1000, {"a": 1, "b": 3}), MixturePhase(2000, {"b": 1})]
    mixture = WindowOrder(sizes, 3, 3000, phases)
    first, second, third = (counts(mixture, *bounds) for bounds in ((0, 1000), (1000, 2000), (2000, 3000)))
    assert first == [1000, 0] and third == [0, 1000]
    assert abs(second[0] - 250) <= SLOT_GROUP / 16
    check_epochs(mixture, 3000)
    assert mixture.realised(2345) == counts(mixture, 0, 2345)


def test_caps_are_exact_and_the_others_share_the_rest() -> None:
    sizes = [
        SourceSize("small", 100, 0.5, cap=250),
        SourceSize("mid", 1000, 0.25, cap=1500),
        SourceSize("big", 9000, 0.25),
    ]
    mixture = WindowOrder(sizes, 3, 5000)
    found = counts(mixture, 0, 5000)
    assert found == [250, 1500, 3250], "what `small` and then `mid` leave goes to the rest"
    check_epochs(mixture, 5000)
    assert max(epoch for source, epoch in visits(mixture, 5000) if source == 0) == 2


def test_caps_without_weights_leave_one_pool_until_they_bind() -> None:
    def sizes(cap: int) -> list[SourceSize]:
        return [SourceSize("a", 400, None, cap), SourceSize("b", 1600, None)]

    assert WindowOrder(sizes(800), 3, 4000).pooled
    bound = WindowOrder(sizes(600), 3, 4000)
    assert not bound.pooled
    assert counts(bound, 0, 4000) == [600, 3400]


def test_later_phases_are_served_first_from_a_cap() -> None:
    sizes = [SourceSize("web", 9000, 0.5), SourceSize("wiki", 1000, 0.5, cap=2000)]
    mixture = WindowOrder(sizes, 3, 10_000, [MixturePhase(9000, {"web": 0.2, "wiki": 0.8})])
    assert counts(mixture, 9000, 10_000) == [200, 800]
    assert counts(mixture, 0, 9000) == [7800, 1200]
    check_epochs(mixture, 10_000)


def test_caps_below_what_the_run_needs_are_an_error() -> None:
    sizes = [SourceSize("a", 100, 1.0, cap=200), SourceSize("b", 50, 1.0, cap=50)]
    with pytest.raises(ValueError, match=r"2,510 of the run's 2,510 tokens .* may give 2,500 \(a 2,000, b 500\)"):
        WindowOrder(sizes, 0, 251, window_tokens=10)
    assert counts(WindowOrder(sizes, 0, 250), 0, 250) == [200, 50]


def test_filling() -> None:
    inf = float("inf")
    assert fill([0.5, 0.5], [inf, inf], 7) == [4, 3]
    assert fill([0.6, 0.4], [10, inf], 100) == [10, 90]
    assert fill([0.6, 0.2, 0.2], [10, 45, inf], 100) == [10, 45, 45]
    assert fill([0.6, 0.2, 0.2, 0], [10, 44, inf, inf], 100) == [10, 44, 46, 0]
    assert fill([0.5, 0.5], [10, 10], 21) is None
    assert fill([0.5, 0.5], [10, 11], 21) == [10, 11]


def test_phases_that_cannot_be_had_are_refused() -> None:
    sizes = [SourceSize("a", 100, None), SourceSize("tiny", 0, None)]
    with pytest.raises(ValueError, match="tiny has no whole training window"):
        WindowOrder(sizes, 0, 100, [MixturePhase(50, {"tiny": 1.0})])
    with pytest.raises(ValueError, match=r"phase 3 of data.mixture has no training step"):
        WindowOrder(sizes, 0, 100, [MixturePhase(50, {"a": 1}), MixturePhase(100, {"a": 1})])
    with pytest.raises(ValueError, match="`tiny` has a weight but no whole training window"):
        WindowOrder([SourceSize("a", 100, 1.0), SourceSize("tiny", 0, 1.0)], 0)


def test_any_size_costs_the_same() -> None:
    """10**12 tokens in windows of 2,048, with phases and caps; a batch from the middle."""
    n = 10**12 // 2048
    sizes = [SourceSize("web", n, 0.8), SourceSize("wiki", n // 50, 0.2, cap=n // 25)]
    tracemalloc.start()
    began = time.process_time()
    mixture = WindowOrder(sizes, 1, n, [MixturePhase(n * 9 // 10, {"web": 1, "wiki": 1})])
    for start in (0, n // 2, n - 512):
        mixture.windows_at(np.arange(start, start + 512))
    total = mixture.realised(n)
    seconds = time.process_time() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000 and seconds < 1
    assert total == [n - n // 25, n // 25]


# -------------------------------------------------------------------------------------------------------- with a recipe
SETS: dict[str, Any] = {"a": 30_000, "b": 10_000}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_data(tmp_path_factory.mktemp("mixture"), SETS)


def recipe(directory: Path, data: Path, *overrides: str, steps: int = 200) -> Recipe:
    file = write_recipe(directory / "recipe.yaml", data, steps=steps)
    sources = "data.sources=[{name: a, path: none.txt}, {name: b, path: none.txt}]"
    return load(file, [sources, *overrides])


def test_temperature_flattens_the_shares(tmp_path: Path, data: Path) -> None:
    manifest = load_manifest(data)
    windows = {s.name: s.windows for s in plan_mixture(recipe(tmp_path, data), manifest).sources}
    mixture = plan_mixture(recipe(tmp_path, data, "data.mixture.temperature=2"), manifest)
    share = windows["a"] ** 0.5 / (windows["a"] ** 0.5 + windows["b"] ** 0.5)
    assert mixture.shares["a"] == pytest.approx(share, abs=1e-9)
    assert plan_mixture(recipe(tmp_path, data, "data.mixture.temperature=1"), manifest).shares["a"] == pytest.approx(
        windows["a"] / sum(windows.values())
    )
    with pytest.raises(RecipeError, match=r"weights or mixture.temperature, not both"):
        recipe(tmp_path, data, "data.mixture.temperature=2", "data.sources.0.weight=2")


def test_the_batches_of_a_phased_run_are_the_same_for_any_ranks(tmp_path: Path, data: Path) -> None:
    phased = recipe(tmp_path, data, "data.mixture.phases=[{start: 0.5, weights: {b: 1}}]")
    batches = BatchSource(phased, load_manifest(data))
    for step in (0, 57, 99, 100, 199):
        expected = batches.digest(step)
        assert {batches.digest(step, ranks) for ranks in (2, 4, 8)} == {expected}
        assert BatchSource(phased, load_manifest(data)).digest(step) == expected
    sources = (
        {spans[0].source for spans in batches.documents(99)},
        {spans[0].source for spans in batches.documents(100)},
    )
    assert "a" in sources[0] and sources[1] == {"b"}


def test_the_table_says_what_was_asked_planned_and_made(tmp_path: Path, data: Path) -> None:
    asked = recipe(
        tmp_path, data, "data.sources.0.weight=1", "data.sources.1.weight=1", "data.sources.1.max_epochs=2",
        "data.mixture.phases=[{start: 0.75, weights: {a: 3, b: 1}}]",
    )  # fmt: skip
    manifest = load_manifest(data)
    rows = mixture_table(asked, manifest, step=160)
    assert [(row["phase"], row["source"]) for row in rows] == [(p, s) for p in (1, 2, 0) for s in "ab"]
    by = {(row["phase"], row["source"]): row for row in rows}
    b_windows = plan_mixture(asked, manifest).sources[1].windows
    assert by[0, "b"]["epochs"] == 2 and by[0, "b"]["tokens"] == 2 * b_windows * 32
    assert by[2, "b"]["planned"] == 0.25 and by[2, "b"]["first_step"] == 150 and by[2, "b"]["steps"] == 50
    assert by[1, "b"]["asked"] == 0.5 > by[1, "b"]["planned"]
    assert by[1, "b"]["planned"] * 1200 + 100 == pytest.approx(2 * b_windows)
    mixture = plan_mixture(asked, manifest)
    assert by[0, "a"]["realised_tokens"] == 32 * counts(mixture, 0, 160 * 8)[0]
    assert by[1, "a"]["realised"] == counts(mixture, 0, 1200)[0] / 1200
    assert by[2, "a"]["realised_tokens"] == 32 * counts(mixture, 1200, 1280)[0]
    assert mixture_lines(rows)[1].startswith("phase 1, from step 0: b ") and "capped" in mixture_lines(rows)[1]
    assert mixture_table(asked, manifest)[0]["realised"] is None


def test_what_was_trained_may_not_change(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = load_manifest(data)
    weights = ("data.sources.0.weight=1", "data.sources.1.weight=1")
    phase = "data.mixture.phases=[{start: 0.5, weights: {b: 1}}]"

    def go_on(before: Recipe, now: Recipe, step: int, version: int = ORDER_VERSION) -> None:
        monkeypatch.setattr(CheckpointInfo, "recipe", property(lambda _: before))
        check_past(CheckpointInfo(Path("c"), step, 0, "", "", "", {"order": version}, {}, {}), now, manifest)

    plain, longer = recipe(tmp_path, data, *weights), recipe(tmp_path, data, *weights, steps=400)
    go_on(plain, longer, 200)
    go_on(recipe(tmp_path, data), recipe(tmp_path, data, steps=400), 200)
    go_on(plain, recipe(tmp_path, data, *weights, phase, steps=400), 200)  # a phase that lies ahead
    with pytest.raises(ValueError, match=r"the first 200 steps.*would be another one"):
        go_on(recipe(tmp_path, data, *weights, phase), recipe(tmp_path, data, *weights, phase, steps=400), 200)
    go_on(recipe(tmp_path, data, *weights, phase), recipe(tmp_path, data, *weights, phase, steps=400), 96)
    with pytest.raises(ValueError, match="another one"):
        go_on(plain, recipe(tmp_path, data, "data.sources.0.weight=1.01", weights[1]), 1)
    cap = "data.sources.1.max_epochs=2"
    with pytest.raises(ValueError, match=r"both move with train.steps"):
        go_on(recipe(tmp_path, data, *weights, cap), recipe(tmp_path, data, *weights, cap, steps=210), 200)
    with pytest.raises(ValueError, match="an earlier version of Replica"):
        go_on(plain, longer, 200, version=1)


def test_the_example_of_plan_segments() -> None:
    sizes = [SourceSize("a", 60, 1.0), SourceSize("b", 40, 1.0, cap=40)]
    first, second = plan_segments(sizes, [MixturePhase(80, {"b": 1.0})], 100)
    assert (first.start, first.stop, first.asked, first.weights) == (0, 80, (0.5, 0.5), (60, 20))
    assert (second.start, second.stop, second.asked, second.weights) == (80, 100, (0.0, 1.0), (0, 20))
    assert first.exact and second.exact
