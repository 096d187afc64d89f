"""Which checkpoint a command works on, and what is said about those that it passes over."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.schema.recipe import Recipe
from launch.run_stages import working_in
from pretrain.checkpoint import manifest
from pretrain.checkpoint.choice import Choice, choose_checkpoint
from pretrain.checkpoint.compatible import check_finished, is_finished
from pretrain.checkpoint.latest_pointer import point_latest_at
from pretrain.checkpoint.manifest import CheckpointInfo, DamagedCheckpoint, all_checkpoints, newest
from tests.parts.fake_checkpoint import write_fake_checkpoint
from tests.parts.training_run import tiny_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A run with checkpoints of the steps 5 to 20, of which that of step 20 is damaged."""
    recipe = tiny_recipe(tmp_path, tmp_path / "data")
    for step, loss in ((5, 3.0), (10, 1.5), (15, 2.0), (20, 1.0)):
        write_fake_checkpoint(recipe, step, {"validation_loss": loss})
    damage(recipe, 20)
    return recipe


def damage(recipe: Recipe, step: int) -> None:
    (recipe.run_directory / "checkpoints" / f"step_{step:08d}" / "manifest.json").unlink()


def test_questions_print_nothing(recipe: Recipe, capfd: pytest.CaptureFixture[str]) -> None:
    """A command asks many of them before training sets the damaged one aside, which is said once."""
    run = recipe.run_directory
    info = newest(run)
    assert info is not None and info.step == 15
    assert not is_finished(recipe) and not check_finished(recipe)
    assert Choice().find(run).step == 15 and Choice(best=True).find(run).step == 10
    with working_in(recipe):
        pass
    assert capfd.readouterr() == ("", "")


def test_all_of_a_run_come_newest_first_with_the_damaged_ones(recipe: Recipe) -> None:
    damaged, *whole = all_checkpoints(recipe.run_directory)
    assert isinstance(damaged, DamagedCheckpoint) and damaged.directory.name == "step_00000020"
    assert "has no manifest.json" in str(damaged)
    assert [found.step for found in whole if isinstance(found, CheckpointInfo)] == [15, 10, 5]


@pytest.mark.parametrize("choice", [Choice(), Choice(best=True)], ids=str)
def test_a_command_says_once_what_it_passes_over(
    recipe: Recipe, choice: Choice, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen = choose_checkpoint(recipe.run_directory, choice).directory.name
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and "step_00000020 is damaged" in said[0] and said[0].endswith(f"{chosen} is used")


def test_older_damage_and_a_step_by_name_are_not_worth_a_word(
    recipe: Recipe, capfd: pytest.CaptureFixture[str]
) -> None:
    damage(recipe, 5)
    choose_checkpoint(recipe.run_directory, Choice())
    assert "step_00000005" not in capfd.readouterr().err
    assert choose_checkpoint(recipe.run_directory, Choice(10)).step == 10
    assert capfd.readouterr().err == ""


def test_only_damaged_ones_are_not_a_run_without_training(recipe: Recipe) -> None:
    for step in (5, 10, 15):
        damage(recipe, step)
    with pytest.raises(ValueError, match=r"has only damaged checkpoints \(step_00000020: .*no manifest.json\)"):
        choose_checkpoint(recipe.run_directory, Choice())


def test_the_recipe_of_a_checkpoint_is_read_once(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    load = manifest.load
    monkeypatch.setattr(manifest, "load", lambda file: reads.append(file) or load(file))
    info = newest(recipe.run_directory)
    assert info is not None and reads == [], "the manifest alone says which one it is"
    assert info.recipe == info.recipe == recipe and len(reads) == 1


def test_the_pointer_is_written_when_it_changes(tmp_path: Path) -> None:
    pointer = tmp_path / "latest"
    point_latest_at(tmp_path / "step_00000010")
    before = pointer.stat()
    point_latest_at(tmp_path / "step_00000010")
    assert pointer.stat().st_ino == before.st_ino
    point_latest_at(tmp_path / "step_00000005")
    assert pointer.read_text() == "step_00000005\n"
