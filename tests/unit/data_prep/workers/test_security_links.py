"""Links in a stranger's run directory: nothing outside is written, emptied or shown."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.common.exit_codes import USER_ERROR
from configs.common.files import TEMPORARY_SUFFIX, remove_leftovers
from configs.safety.own_files import refuse_links
from configs.schema.recipe import save
from data_prep.workers.stage import _MARKER, _UNITS, Stage
from launch.cli import main
from tests.parts.fake_run import fake_recipe, write_fake_run
from tests.parts.training_run import prepare_data, tiny_recipe

# What a run writes, and where: links to directories and to files.
LINKS = (
    "report", "checkpoints", "ranks", "data", "tensorboard", "metrics.jsonl", "results.json", "recipe.yaml", ".stalls",
    "wandb", "report/index.html", "checkpoints/latest", "checkpoints/step_00000001", "ranks/rank_00000.json",
    "ranks/rank_00000.stacks", "data/documents", "data/sample", "data/.notes", "data/manifest.json", "skipped.json",
)  # fmt: skip


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A directory outside of the run; untouched at the end."""
    directory = tmp_path / "victim"
    directory.mkdir()
    (directory / "index.html").write_text("mine")
    (directory / "file").write_text("mine")
    yield directory
    assert {path.name: path.read_text() for path in directory.iterdir()} == {"index.html": "mine", "file": "mine"}


def link(run: Path, name: str, victim: Path) -> None:
    place = run / name
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_file():
        place.unlink()
    place.symlink_to(victim / "file" if place.suffix or name in (".stalls", "checkpoints/latest") else victim)


@pytest.mark.parametrize("name", LINKS)
def test_a_run_with_a_link_is_refused(
    name: str, tmp_path: Path, victim: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_fake_run(tmp_path / "run")
    recipe = save(fake_recipe(run), tmp_path)
    link(run, name, victim)
    for words in (
        ["report", str(run)],
        ["eval", str(run)],
        ["sample", str(run), "--prompt", "x"],
        ["train", str(recipe), "--out", str(run)],
        ["data", str(recipe), "--out", str(run)],
        ["run", str(recipe), "--out", str(run)],
    ):
        assert main(words) == USER_ERROR
        assert f"{run / name} is a link to {victim}" in capsys.readouterr().err, words


@pytest.mark.parametrize("name", ["metrics.jsonl", "ranks", "checkpoints", "tensorboard"])
def test_training_started_by_a_launcher_refuses_it_too(
    name: str, tmp_path: Path, victim: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ranks that Slurm, Ray or `deepspeed` start do not come by way of `replica train`."""
    from pretrain.train import main as train

    recipe = tiny_recipe(tmp_path, prepare_data(tmp_path / "data"))
    link(recipe.run_directory, name, victim)
    assert train(["--recipe", str(tmp_path / "recipe.yaml")]) == USER_ERROR
    assert "is a link to" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["data", "data/sample"])
def test_a_look_at_a_sample_refuses_it_too(
    name: str, tmp_path: Path, victim: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("some text")
    run, source = tmp_path / "run", f"data.sources.0.path={tmp_path / 'text.txt'}"
    recipe = save(fake_recipe(run), tmp_path)
    link(run, name, victim)
    assert main(["data", str(recipe), "--sample", "1", "--out", str(run), source]) == USER_ERROR
    assert "is a link to" in capsys.readouterr().err


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A reader of a named pipe would wait for ever."""
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match=r"metrics\.jsonl is neither a file nor a directory"):
        refuse_links(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "s"))
        with pytest.raises(ValueError, match="neither a file nor a directory"):
            refuse_links(tmp_path)


def test_what_is_not_refused(tmp_path: Path) -> None:
    refuse_links(tmp_path / "nowhere")
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "latest-run").symlink_to("run-1")  # of Weights & Biases itself
    (tmp_path / "latest").symlink_to(tmp_path / "run")
    write_fake_run(tmp_path / "run")
    assert main(["report", str(tmp_path / "latest")]) == 0, "the run itself may be named by a link"


def test_links_among_what_a_killed_writer_left_are_removed_alone(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f".x{TEMPORARY_SUFFIX}").symlink_to(victim)
    remove_leftovers(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("own", ["manifest.json", "units", ".begun", None])
def test_files_that_no_stage_made_are_not_removed(tmp_path: Path, own: str | None) -> None:
    """A recipe may name any `data.directory`, and somebody's `documents` may lie there."""
    stage = Stage(tmp_path / "documents", {"x": 1})
    stage.directory.mkdir()
    (stage.directory / "thesis.txt").write_text("mine")
    if own is None:
        with pytest.raises(ValueError, match="holds files that data preparation did not make"):
            stage.begin()
        assert (stage.directory / "thesis.txt").read_text() == "mine"
        (stage.directory / "thesis.txt").unlink()
    elif own == "units":
        (stage.directory / _UNITS).mkdir()
    else:
        (stage.directory / (_MARKER if own == ".begun" else own)).write_text("{}")
    stage.begin()
    assert not (stage.directory / "thesis.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["documents"]
