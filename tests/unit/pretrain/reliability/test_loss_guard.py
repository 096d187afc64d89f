"""Spikes, skipped ranges, votes over replicas, launches: what the watch decides, and one run over a garbled shard."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.schema.recipe import Recipe
from data_prep.tokens.shards import load_manifest
from pretrain.batches.source import BatchSource
from pretrain.batches.trace import TracedSpan
from pretrain.checkpoint.manifest import read_info
from pretrain.engine.non_finite import NonFiniteLoss
from pretrain.parallel.ranks import Ranks
from pretrain.reliability.launches import Launch, Launches, next_interval
from pretrain.reliability.loss_guard import Lineage, LossGuard, LossHistory, LossSpike, Rewind, Skipped, robust_z
from pretrain.reliability.lost_rank import sign_of_a_lost_rank
from pretrain.reliability.rank_heartbeat import Beat, describe_ranks, silent
from pretrain.reliability.silent_corruption import SilentCorruption, check_replicas, deviating, digests
from pretrain.reliability.slow_ranks import slow_ranks
from pretrain.session import run
from tests.parts.training_run import metric_lines, prepare_data, tiny_recipe

STEP = 30  # counted from 1: the one whose windows are garbage


def test_robust_z_counts_deviations_and_is_not_moved_by_outliers() -> None:
    normal = random.Random(0)
    losses = [normal.gauss(3.0, 0.1) for _ in range(127)]
    assert abs(robust_z(3.5, losses) - 5.0) < 1.0
    assert abs(robust_z(3.5, [*losses, 1e6]) - robust_z(3.5, losses)) < 0.2
    assert robust_z(2.0, losses) < 0, "falling is no fault"
    assert robust_z(3.001, [3.0] * 50) < 1, "a loss that stands still makes no spike of rounding"


@pytest.fixture(scope="module")
def garbled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data in which the windows of step STEP are random bytes; clean data beside it."""
    directory = tmp_path_factory.mktemp("garbled")
    clean = prepare_data(directory / "clean")
    recipe, data = spiky(directory, clean, "record"), load_manifest(clean)
    source = BatchSource(recipe, data)
    windows = source._slots.windows(STEP - 1)
    shutil.copytree(clean, directory / "data")
    shards = [directory / "data" / "tiny" / f"{number:05d}.bin" for number in (0, 1)]
    parts = [np.fromfile(shard, dtype=np.uint16) for shard in shards]
    stream, generator = np.concatenate(parts), np.random.default_rng(0)
    for window in windows.window.tolist():
        span = slice(window * source.context + 1, (window + 1) * source.context + 1)
        stream[span] = generator.integers(0, data.vocab_size - 1, source.context)
    for shard, part in zip(shards, np.split(stream, [len(parts[0])]), strict=True):
        part.tofile(shard)
    return directory / "data"


def spiky(directory: Path, data: Path, action: str, **faults: Any) -> Recipe:
    (directory / action).mkdir(exist_ok=True)
    faults = {"action": action, "window": 8, "zscore": 5.0, **faults}
    return tiny_recipe(directory / action, data, steps=40, checkpoint={"every": 10}, faults=faults)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "skipped"), [("record", []), ("stop", None), ("skip", [30, 30]), ("rewind", [21, 30])]
)
def test_a_garbled_shard(
    tmp_path: Path, garbled: Path, action: str, skipped: list[int] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = spiky(tmp_path, garbled, action)
    directory = recipe.run_directory
    if skipped is None:
        with pytest.raises(LossSpike, match=rf"step {STEP}: loss .* robust standard deviations .*; its update was not"):
            run(recipe)
        assert read_info(directory / "checkpoints" / "step_00000020").step == 20
        assert max(metric_lines(directory, "train/loss")) == STEP - 1
    else:
        run(recipe)
        left_out = set(range(skipped[0], skipped[1] + 1)) if skipped else set()
        assert set(metric_lines(directory, "train/loss")) == set(range(1, 41)) - left_out
        found = read_info(directory / "checkpoints" / "step_00000040").state["faults"]["skipped"]
        assert [[entry["first"], entry["last"]] for entry in found] == ([skipped] if skipped else [])
        assert f"step {STEP}: loss" in capsys.readouterr().err
    (file,) = (directory / "faults").iterdir()
    record = json.loads(file.read_text())
    assert record["step"] == STEP and record["z"] > 5
    source = BatchSource(recipe, load_manifest(garbled))
    expected = [(row, span.id) for row, spans in enumerate(source.documents(STEP - 1)) for span in spans]
    assert [(span["row"], span["id"]) for span in record["documents"]] == expected
    fields = {"row", "id", "source", "offset", "tokens", "words", "counted"}
    assert all(set(span) == fields and span["counted"] <= span["tokens"] for span in record["documents"])


def test_weights_that_the_last_update_ruined_are_not_saved(tmp_path: Path, garbled: Path) -> None:
    recipe = tiny_recipe(
        tmp_path, garbled, steps=1, optimizer={"lr": 1e38}, schedule={"warmup_steps": 0}, validation={"every": 1000}
    )
    with pytest.raises(ValueError, match=r"validation loss after step 1 is (nan|inf): training diverged, .* not saved"):
        run(recipe)
    assert not list((recipe.run_directory / "checkpoints").glob("step_*"))


def test_only_so_many_times(tmp_path: Path, garbled: Path) -> None:
    with pytest.raises(LossSpike, match=r"this run has skipped 0 times already \(train.faults.max_skips\)"):
        run(spiky(tmp_path, garbled, "rewind", max_skips=0))


def guarded(tmp_path: Path, action: str, **faults: Any) -> LossGuard:
    """A guard with eight losses of 3 in its history, without batches: documents are named by step and rank."""
    recipe = spiky(tmp_path, tmp_path / "data", action, **faults)

    def spans_of(step: int, ranks: Collection[int]) -> list[TracedSpan]:
        return [TracedSpan(rank, f"document {rank} of step {step}", "web", 0, 5, "words") for rank in ranks]

    state = {"losses": [3.0] * 8}
    return LossGuard(recipe, 5, state, Ranks(rank=0, count=2, local_rank=0, local_count=2), spans_of)


def test_a_guard_rewinds_to_the_newest_checkpoint(tmp_path: Path) -> None:
    guard = guarded(tmp_path, "rewind")
    assert guard.decide(7, 3.0, {})
    guard.saved(8)
    with pytest.raises(Rewind):
        guard.decide(10, 9.0, {})
    assert [(entry.first, entry.last) for entry in guard.lineage.all] == [(9, 11)]
    (file,) = (tmp_path / "rewind" / "run" / "faults").iterdir()
    documents = json.loads(file.read_text())["documents"]
    assert [span["id"] for span in documents] == ["document 0 of step 10", "document 1 of step 10"], "of all ranks"


def test_a_loss_that_is_not_finite_names_the_documents_of_its_ranks(tmp_path: Path) -> None:
    error = NonFiniteLoss("step 3: the loss is nan", [1])
    with pytest.raises(
        NonFiniteLoss, match=r"documents: web document 1 of step 2; all of them in .*step_00000003.json"
    ):
        guarded(tmp_path, "record").handle_non_finite(2, error)
    guard = guarded(tmp_path, "skip", max_skips=1)
    guard.handle_non_finite(2, error)
    assert 2 in guard.lineage and 3 not in guard.lineage
    with pytest.raises(NonFiniteLoss, match=r"has skipped 1 times already \(train.faults.max_skips\)"):
        guard.handle_non_finite(4, error)


def test_a_history_says_nothing_until_it_is_half_full_and_keeps_the_last() -> None:
    history = LossHistory([], 8)
    for loss in (3.0, 3.1, 2.9):
        history.add(loss)
    assert history.z(100.0) == 0
    history.add(3.0)
    assert history.z(100.0) > 10
    for loss in range(20):
        history.add(float(loss))
    assert history.losses == [float(loss) for loss in range(12, 20)]


@pytest.mark.parametrize(
    ("error", "sign"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"), "'gloo'"),
        (RuntimeError("Timed out waiting 1800000ms"), "'Timed out'"),
        (torch.distributed.DistBackendError("no words at all"), "DistBackendError"),
        (RuntimeError("CUDA out of memory"), None),
        (ValueError("timed out"), None),
    ],
)
def test_the_end_of_another_rank_is_told_by_type_or_words(error: Exception, sign: str | None) -> None:
    """The words that matched are logged: an error of this rank's own may hold them by chance."""
    found = sign_of_a_lost_rank(error)
    assert found is None if sign is None else found is not None and sign in found


def test_skipped_ranges_come_from_the_run_and_the_checkpoint_and_must_not_clash(tmp_path: Path) -> None:
    one, other = Skipped(3, 4, "skip", "why"), Skipped(12, 20, "rewind", "why")
    lineage = Lineage(tmp_path, 0, [])
    lineage.add(one, write=True)
    lineage.add(other, write=True)
    assert [step for step in range(30) if step in lineage] == [2, 3, *range(11, 20)]
    again = Lineage(tmp_path, 10, lineage.entries[:1])
    assert again.all == [one, other]
    assert Lineage(tmp_path / "elsewhere", 30, lineage.entries).all == [one, other], "the checkpoint's own are enough"
    with pytest.raises(
        ValueError, match=r"skips the steps 12 to 20, but the checkpoint of step 15 was trained on them"
    ):
        Lineage(tmp_path, 15, lineage.entries[:1])


def test_any_flipped_bit_changes_a_digest_and_the_minority_is_named() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        values = torch.randn(7, 5, dtype=dtype)
        before = digests([values])
        for bit in range(8 * values.element_size()):
            flipped = values.clone()
            flipped.view(torch.uint8).view(-1)[values.element_size() * 11 + bit // 8] ^= 1 << bit % 8
            assert digests([flipped]) != before
    assert deviating([[1, 2], [1, 2], [1, 2]]) == {}
    assert deviating([[1, 2], [1, 3], [1, 2]]) == {1: 1}
    assert deviating([[1, 2], [4, 2]]) == {0: 0, 1: 0}
    with pytest.raises(SilentCorruption, match=r"after step 7 .*: rank 1 \(b; first in y\); the other ranks agree"):
        check_replicas(["x", "y"], [[1, 2], [1, 3], [1, 2]], ["a", "b", "c"], 7)


def test_slow_ranks_are_those_above_the_median() -> None:
    assert slow_ranks([1.0, 1.1, 0.9, 3.0], 1.5) == {3: 3.0}
    assert slow_ranks([1.0, 2.0], 1.5) == {1: 2.0}
    assert slow_ranks([1.0, 1.2], 1.5) == {} and slow_ranks([0.0, 0.0], 1.5) == {}


def test_launches_without_a_checkpoint_shorten_the_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert next_interval(Launch(0, 100, 0.0, 30, "killed"), 0, 100) == 15
    assert next_interval(Launch(0, 100, 0.0, 0, "killed"), 0, 100) == 50
    assert next_interval(Launch(0, 1, 0.0, 0, "killed"), 0, 100) == 1
    assert next_interval(Launch(0, 100, 0.0, 30, "error: no memory"), 0, 100) == 100
    assert next_interval(Launch(0, 15, 0.0, 40, "killed"), 30, 100) == 15, "it got on: so it stays"
    assert next_interval(Launch(0, 15, 0.0, 70, "SIGTERM"), 70, 100) == 30
    assert Launches(tmp_path).begin(0, 100, None) == 100
    assert Launches(tmp_path).begin(0, 100, reached=24) == 12
    assert (
        "checkpoints every 12 steps instead of 100: the launch before began at step 0, ended (killed) at step 24"
        in (capsys.readouterr().err)
    )
    launches = Launches(tmp_path)
    assert launches.begin(12, 100, None) == 12
    launches.finish(20, "SIGUSR1")
    assert [
        (entry["start"], entry["end"], entry["how"]) for entry in json.loads((tmp_path / "launches.json").read_text())
    ] == [
        (0, 24, "killed"),
        (0, 12, "killed"),
        (12, 20, "SIGUSR1"),
    ]


def test_silent_ranks_come_first_then_those_that_are_behind() -> None:
    def beat(rank: int, step: int, phase: str, time: float) -> Beat:
        return Beat(rank, f"node{rank}", 10 + rank, step, phase, 0.0, time)

    before = {0: beat(0, 7, "update", 1.0), 1: beat(1, 7, "forward", 1.0), 2: beat(2, 6, "waiting for data", 1.0)}
    after = {**before, 0: beat(0, 7, "update", 2.0), 2: beat(2, 6, "waiting for data", 2.0)}
    assert silent(before, after) == [1]
    assert describe_ranks(after, [1], ranks=3) == (
        "rank 1 (node1, pid 11) is silent, last heard of in step 7, forward; rank 2 (node2, pid 12) is in step 6, "
        "waiting for data; rank 0 (node0, pid 10) is in step 7, update"
    )
    assert "rank 2" not in describe_ranks(after, [1], ranks=2)


@pytest.mark.parametrize(("watched", "made"), [("loss", [False, True]), ("kl", [True, False]), (None, [True, True])])
def test_an_objective_says_what_is_watched(tmp_path: Path, watched: str | None, made: list[bool]) -> None:
    """Where the loss hovers around 0, or has no scale, something else tells of a spike."""
    recipe, ranks = spiky(tmp_path, tmp_path / "data", "skip"), Ranks(rank=0, count=1, local_rank=0, local_count=1)
    guard = LossGuard(recipe, 5, {"losses": [3.0] * 8}, ranks, lambda step, of: [], watched)
    assert [guard.decide(6, loss, {"kl": kl}) for loss, kl in ((9.0, 3.0), (3.0, 9.0))] == made
    if watched == "kl":
        (file,) = (tmp_path / "skip" / "run" / "faults").iterdir()
        assert json.loads(file.read_text())["kl"] == 9.0
