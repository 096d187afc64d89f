"""Checkpoints copied to an fsspec URL, and a run that starts from there."""

from __future__ import annotations

import builtins
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pytest

from configs.schema.recipe import Recipe
from configs.schema.train import CheckpointPolicy
from pretrain.checkpoint.manifest import newest, step_directories
from pretrain.checkpoint.mirror import Mirror, OtherRun
from pretrain.checkpoint.resume import _candidate
from pretrain.session import run
from tests.parts.training_run import metric_lines, prepare_data, tiny_recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Recipe:
    """A finished run with a mirror."""
    directory = tmp_path_factory.mktemp("original")
    settings = {"every": 5, "keep": 2, "mirror": f"file://{directory / 'mirror'}"}
    recipe = tiny_recipe(directory, data, checkpoint=settings)
    assert run(recipe)
    return recipe


@pytest.fixture
def elsewhere(original: Recipe, tmp_path: Path) -> Recipe:
    """The same run on a machine with an empty disk, and a copy of the mirror."""
    shutil.copytree(original.run_directory.parent / "mirror", tmp_path / "mirror")
    policy = original.train.checkpoint.model_copy(update={"mirror": f"file://{tmp_path / 'mirror'}"})
    train = original.train.model_copy(update={"checkpoint": policy})
    return original.model_copy(update={"train": train, "out": str(tmp_path / "run")})


def test_the_mirror_holds_what_the_run_keeps(original: Recipe) -> None:
    local = original.run_directory / "checkpoints"
    mirror = original.run_directory.parent / "mirror"
    assert (mirror / "step_00000020" / "manifest.json").is_file()
    assert len(list(mirror.glob("step_*"))) <= 2
    for file in (path for path in (local / "step_00000020").rglob("*") if path.is_file()):
        assert (mirror / file.relative_to(local)).read_bytes() == file.read_bytes()


def test_an_empty_run_directory_goes_on_from_the_mirror(original: Recipe, elsewhere: Recipe) -> None:
    longer = {"steps": 25}
    out = elsewhere.run_directory.parent / "whole"
    shutil.copytree(original.run_directory, out)
    train = original.train.model_copy(update={**longer, "checkpoint": CheckpointPolicy(every=5)})
    whole = original.model_copy(update={"train": train, "out": str(out)})
    assert run(whole)
    moved = elsewhere.model_copy(update={"train": elsewhere.train.model_copy(update=longer)})
    assert run(moved)
    losses = metric_lines(moved.run_directory, "train/loss")
    assert sorted(losses) == list(range(21, 26))
    unbroken = metric_lines(whole.run_directory, "train/loss")
    assert losses == {step: unbroken[step] for step in losses}


def test_without_a_manifest_or_damaged_the_one_before_is_fetched(elsewhere: Recipe, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    for step in (21, 22):
        shutil.copytree(mirror / "step_00000020", mirror / f"step_{step:08d}")
    (mirror / "step_00000022" / "manifest.json").unlink()  # an upload that was killed
    weights = next((mirror / "step_00000021").glob("weights-*"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert run(elsewhere)
    names = {path.name for path in (elsewhere.run_directory / "checkpoints").glob("step_*")}
    assert names == {"step_00000021.damaged", "step_00000020"}
    assert (elsewhere.run_directory / "checkpoints" / "latest").read_text() == "step_00000020\n"
    assert newest(elsewhere.run_directory, hashes=True) is not None


def test_an_empty_mirror_is_a_new_run(elsewhere: Recipe, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "mirror")
    assert run(elsewhere)
    assert sorted(metric_lines(elsewhere.run_directory, "train/loss")) == list(range(1, 21))


def test_in_a_store_without_files_older_ones_go_behind_newer_ones(original: Recipe) -> None:
    policy = CheckpointPolicy(keep=1, keep_best=1, mirror="memory://mirror-test")
    mirror = Mirror(policy)
    older, newer = reversed(step_directories(original.run_directory))
    mirror.send(older)
    mirror.close()
    assert mirror.names() == [older.name]
    mirror = Mirror(policy)
    mirror.send(newer)
    mirror.close()
    assert mirror.names() == [newer.name]
    assert fsspec.filesystem("memory").exists(f"/mirror-test/{newer.name}/tokenizer/tokenizer.json")


def test_a_store_that_fails_is_a_warning(original: Recipe, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    mirror = Mirror(CheckpointPolicy(mirror=f"file://{tmp_path / 'file' / 'mirror'}"))
    mirror.send(step_directories(original.run_directory)[0])
    mirror.close()
    said = capsys.readouterr().err
    assert "warning: step_00000020 could not be copied to file://" in said


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"mirror: nowhere://x: the protocol 'nowhere' is not read here"):
        Mirror(CheckpointPolicy(mirror="nowhere://x"))
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "fsspec":
            raise ModuleNotFoundError(name, name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"needs the package fsspec: pip install fsspec; or drop train\.checkpoint"):
        Mirror(CheckpointPolicy(mirror="s3://bucket/run"))


def upload(mirror: Mirror, directory: Path) -> None:
    mirror.send(directory)
    mirror.close()


def copied(original: Recipe, place: Path, keep: int = 9) -> Path:
    """A run directory's checkpoints without what says whose they are: those of another run."""
    shutil.copytree(original.run_directory / "checkpoints", place / "checkpoints")
    for file in (place / "checkpoints").glob("*/manifest.json"):
        file.write_text(file.read_text() + "\n")
    return place / "checkpoints"


def test_two_runs_with_one_url_remove_nothing_of_each_other(
    original: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `keep: 1` the second run would remove the first one's checkpoints, which look like old ones of its own."""
    first, second = copied(original, tmp_path / "first"), copied(original, tmp_path / "second")
    older, newer = sorted(first.glob("step_*"))
    policy = CheckpointPolicy(keep=1, mirror=f"file://{tmp_path / 'mirror'}")
    upload(Mirror(policy), newer)
    before = {path: path.read_bytes() for path in (tmp_path / "mirror").rglob("*") if path.is_file()}
    shutil.rmtree(second / older.name)
    (second / newer.name).rename(second / "step_00000030")
    upload(Mirror(policy), second / "step_00000030")
    assert "holds checkpoints of another run, and nothing is copied there or removed" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in (tmp_path / "mirror").rglob("*") if path.is_file()}
    upload(Mirror(policy), older)
    assert Mirror(policy).names() == [newer.name], "its own run goes on"


def test_a_mirror_of_another_run_is_refused_at_the_start(original: Recipe, tmp_path: Path) -> None:
    first, second = copied(original, tmp_path / "first"), copied(original, tmp_path / "second")
    policy = CheckpointPolicy(keep=1, mirror=f"file://{tmp_path / 'mirror'}")
    upload(Mirror(policy), max(first.glob("step_*")))
    train = original.train.model_copy(update={"checkpoint": policy})
    other = original.model_copy(update={"train": train, "out": str(second.parent)})
    found = _candidate(other, Mirror(policy), set())
    assert isinstance(found, ValueError) and "holds checkpoints of another run" in str(found)
    own = original.model_copy(update={"train": train, "out": str(first.parent)})
    assert _candidate(own, Mirror(policy), set()) == max(first.glob("step_*"))


def test_a_mirror_of_an_earlier_version_is_known_by_what_it_holds(original: Recipe, tmp_path: Path) -> None:
    first, second = copied(original, tmp_path / "first"), copied(original, tmp_path / "second")
    policy = CheckpointPolicy(keep=1, mirror=f"file://{tmp_path / 'mirror'}")
    upload(Mirror(policy), max(first.glob("step_*")))
    (tmp_path / "mirror" / "mirror.json").unlink()
    Mirror(policy).check(first)
    next(second.glob("step_*/manifest.json")).parent.rename(second / "step_00000001")
    shutil.rmtree(max(second.glob("step_*")))
    with pytest.raises(OtherRun):
        Mirror(policy).check(second)
