"""Keys and passwords of a recipe stay in the run directory: no page, message, tracker or upload shows them."""

from __future__ import annotations

import stat
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.common.exit_codes import USER_ERROR
from configs.safety.hide_secrets import mask
from configs.schema.recipe import Recipe, load, load_run, published, save
from data_prep.sources.places import Remote, expand, names_within
from data_prep.tokens.shards import load_manifest
from eval.report.page import write_report
from launch.cli import main
from pretrain.checkpoint.saver import Snapshot, commit_checkpoint
from pretrain.metrics.meter import WeightsAndBiases
from pretrain.model.transformer import Transformer
from pretrain.parallel.ranks import Ranks
from tests.parts.fake_run import write_fake_run
from tests.parts.training_run import prepare_data, tiny_recipe

SECRETS = ("KEY1", "SECRET2", "PASSWORD3", "TOKEN4", "SECRET5", "PASSWORD6")
OVERRIDES = [
    "data.sources.0.path=https://me:PASSWORD6@host/a.txt?sig=TOKEN4",
    "data.sources.0.storage_options={key: KEY1, client_kwargs: {secret: SECRET2}}",
    "train.checkpoint.mirror=s3://user:PASSWORD3@bucket/run",
    "train.checkpoint.mirror_options.secret=SECRET5",
]


def secret_recipe(directory: Path) -> Recipe:
    """A tiny recipe with a secret in every place that may hold one."""
    tiny_recipe(directory, directory / "data")
    return load(directory / "recipe.yaml", OVERRIDES)


def shown(text: str) -> set[str]:
    return {secret for secret in SECRETS if secret in text}


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_the_recipe_of_a_run_is_whole_and_for_its_owner_alone(tmp_path: Path) -> None:
    recipe = secret_recipe(tmp_path)
    run = recipe.run_directory
    (run).mkdir()
    save(tiny_recipe(tmp_path, tmp_path), run)
    assert mode(run / "recipe.yaml") & 0o044 == 0o644 & ~_umask() & 0o044, "without secrets it is as other files"
    save(recipe, run)
    assert mode(run / "recipe.yaml") == 0o600
    assert shown((run / "recipe.yaml").read_text()) == set(SECRETS)
    assert load_run(run) == recipe.model_copy(update={"out": str(run)})


def _umask() -> int:
    import os

    before = os.umask(0)
    os.umask(before)
    return before


def test_the_recipe_that_is_shown_around_has_none_and_loads(tmp_path: Path) -> None:
    recipe = secret_recipe(tmp_path)
    (tmp_path / "shown.yaml").write_text(published(recipe))
    assert not shown(published(recipe))
    again = load(tmp_path / "shown.yaml")
    assert again.data.sources[0].path == "https://***@host/a.txt?***"
    assert again.model == recipe.model and again.train.optimizer == recipe.train.optimizer


def test_a_checkpoint_which_a_mirror_uploads_has_none(tmp_path: Path) -> None:
    data = prepare_data(tmp_path / "data")
    recipe = secret_recipe(tmp_path)
    with torch.device("cpu"):
        model = Transformer(recipe.model, recipe.model.padded_vocab(257))
    checkpoint = commit_checkpoint(
        Snapshot.of_model(model), recipe, load_manifest(data), Ranks(0, 1, 0, 1), lambda value: [value]
    )
    assert not shown((checkpoint / "recipe.yaml").read_text())
    assert load(checkpoint / "recipe.yaml").model == recipe.model
    assert not any(shown(file.read_text("latin-1")) for file in checkpoint.rglob("*") if file.is_file())


@pytest.mark.parametrize("kept", [True, False])
def test_the_report_has_none(tmp_path: Path, kept: bool) -> None:
    """Whether the results hold a recipe, which a stranger wrote, or the run's own is shown."""
    recipe = secret_recipe(tmp_path)
    run = write_fake_run(tmp_path / "fake", recipe=recipe.model_dump(mode="json") if kept else {})
    report = load_run(run).report
    save(recipe.model_copy(update={"report": report}), run)
    write_report(run)
    assert "The recipe" in (run / "report" / "index.html").read_text()
    pages = [file for file in (run / "report").rglob("*") if file.is_file()]
    assert len(pages) >= 2 and not any(shown(file.read_text()) for file in pages)


def test_what_goes_to_a_tracker_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    wandb = types.ModuleType("wandb")
    wandb.init = lambda **settings: given.update(settings)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    recipe = load(secret_recipe(tmp_path).run_directory.parent / "recipe.yaml", [*OVERRIDES, "train.wandb.project=p"])
    WeightsAndBiases(recipe)
    assert given["config"] == mask(recipe.model_dump(mode="json"))
    assert not shown(str(given))


def test_what_is_printed_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret_recipe(tmp_path)
    recipe = str(tmp_path / "recipe.yaml")
    assert main(["show", recipe, *OVERRIDES]) == 0
    said = capsys.readouterr()
    assert "https://***@host/a.txt?***" in said.out and "# override data.sources.0.storage_options=***" in said.out
    assert not shown(said.out + said.err)
    for mistake in (
        "data.sources.0.storage_options=SECRET2",
        "data.sources.0.storage_options={SECRET2",
        "data.sources.7.storage_options.key=SECRET2",
        "data.sources.0.path.0.storage_options=SECRET2",
        "train.checkpoint.mirror_options=[SECRET5]",
        "data.sources.0.weight=https://me:PASSWORD6@host",
    ):
        assert main(["show", recipe, mistake]) == USER_ERROR
        said = capsys.readouterr()
        assert mistake.partition("=")[0].split(".")[0] in said.err
        assert not shown(said.out + said.err), mistake


def test_ids_of_documents_have_none() -> None:
    """Names of files become ids, which shards, pages and traces show."""
    urls = ["https://me:PASSWORD6@host/a/x.txt?sig=TOKEN4", "https://me:PASSWORD6@other/a/x.txt?sig=TOKEN5"]
    names = names_within([Remote(url) for url in urls])
    assert len(set(names)) == 2 and not shown(str(names))
    assert not shown(str(Remote(urls[0])))


def test_messages_about_files_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.sources.places.FIRST_PAUSE", 0)
    (place,) = expand("http://me:PASSWORD6@127.0.0.1:9/a.txt?sig=TOKEN4")
    assert isinstance(place, Remote)
    with pytest.raises(ValueError, match="cannot be read") as caught:
        place.info()
    assert not shown(str(caught.value))
