"""Scores, history and recipe on one page belong to one checkpoint; scores of another are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.schema.evaluation import PerplexitySet
from configs.schema.recipe import Recipe, load_run, save
from eval.__main__ import main
from eval.currency import scored_recipe, scores_fingerprint, set_identities
from eval.report.history import read_history
from eval.report.page import write_report
from eval.results import load_results
from launch.cli import main as replica
from pretrain.checkpoint.choice import Choice
from pretrain.checkpoint.manifest import read_info
from tests.parts.fake_checkpoint import write_fake_checkpoint
from tests.parts.fake_run import write_fake_run

SCORED = 600


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Trained to step 1,200, scored at step 600, when that was the newest."""
    run = write_fake_run(tmp_path / "run")
    (tmp_path / "held.jsonl").write_text('{"text": "held out"}\n')
    rescored(run, SCORED, with_set(run, str(tmp_path / "held.jsonl")))
    return run


def with_set(run: Path, path: str) -> Recipe:
    recipe = load_run(run)
    evaluation = recipe.evaluation.model_copy(update={"perplexity": [PerplexitySet(name="heldout", path=path)]})
    recipe = recipe.model_copy(update={"evaluation": evaluation})
    save(recipe, run)
    return recipe


def rescored(run: Path, at: int, recipe: Recipe | None = None, **chosen: Any) -> None:
    """results.json as `evaluate` writes it for the checkpoint of a step, which is made first where there is none."""
    recipe = recipe or load_run(run)
    directory = run / "checkpoints" / f"step_{at:08d}"
    if not directory.exists():
        write_fake_checkpoint(recipe, at, {"meter": {"targets": at * 4096.0}, "validation_loss": at / 100})
    info = read_info(directory)
    used = scored_recipe(run, info)
    facts = {"name": directory.name, "step": at, "fingerprint": info.fingerprint, "tokens": at * 4096.0}
    replace(
        load_results(run),
        checkpoint=facts,
        fingerprint=scores_fingerprint(used, info, set_identities(used)),
        recipe=used.model_dump(mode="json"),
        chosen={"step": None, "best": False, "overrides": [], **chosen},
    ).save(run)


def page(run: Path, baseline: Path | None = None) -> str:
    return write_report(run, baseline).read_text(encoding="utf-8")


def test_a_page_has_the_figures_of_the_step_that_was_scored(run: Path) -> None:
    text = page(run)
    assert "trained on 2.46M tokens" in text and "600 steps" in text and "4.92M" not in text
    assert read_history(run).until(SCORED).last("tokens") == SCORED * 4096


def test_scores_of_an_older_checkpoint_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page(run)
    write_fake_checkpoint(load_run(run), 1200)
    before = (run / "report" / "index.html").read_bytes()
    for command in (["report", str(run)], ["report", str(run), "--gate"]):
        assert main(command) == 2 and replica(command) == 2
        said = capsys.readouterr().err
        assert "scores of step_00000600, but step_00001200 is the newest checkpoint now" in said
        assert f"replica eval {run}`, or choose step_00000600 with `replica eval {run} --step 600`" in said
    assert (run / "report" / "index.html").read_bytes() == before
    other = write_fake_run(run.parent / "other")
    with pytest.raises(ValueError, match="step_00001200 is the newest checkpoint now"):
        write_report(other, baseline=run)


def test_a_checkpoint_that_was_chosen_stays_and_the_page_says_so(run: Path) -> None:
    write_fake_checkpoint(load_run(run), 1200, {"validation_loss": 9.0})
    rescored(run, SCORED, step=SCORED)
    text = page(run)
    assert "All figures are of step 600 (chosen by hand); training went on to step 1,200." in text
    assert "trained on 2.46M tokens" in text
    rescored(run, SCORED, best=True)
    assert "step 600 (the lowest validation loss)" in page(run)
    write_fake_checkpoint(load_run(run), 900, {"validation_loss": 0.5})
    with pytest.raises(ValueError, match=r"step_00000900 is the best checkpoint now.*--best`"):
        page(run)


def test_scores_of_other_settings_or_sets_are_refused(run: Path, tmp_path: Path) -> None:
    recipe = load_run(run)
    more = recipe.evaluation.model_copy(update={"bootstrap_samples": 200})
    save(recipe.model_copy(update={"evaluation": more}), run)
    with pytest.raises(ValueError, match="made with other settings"):
        page(run)
    save(recipe, run)
    page(run)
    (tmp_path / "held.jsonl").write_text('{"text": "another"}\n')
    with pytest.raises(ValueError, match="sets that have changed since"):
        page(run)
    (tmp_path / "held.jsonl").unlink()
    assert page(run), "nothing can be compared: the scores stand"


def test_settings_of_one_time_are_on_the_page(run: Path, tmp_path: Path) -> None:
    """The page prints the recipe that the scores were made with, not the run's."""
    (tmp_path / "held2.jsonl").write_text('{"text": "another"}\n')
    rescored(run, SCORED, overrides=["evaluation.perplexity.0.path=held2.jsonl"])
    results = load_results(run)
    used = results.recipe
    used["evaluation"]["perplexity"][0]["path"] = str(tmp_path / "held2.jsonl")
    replace(results, recipe=used).save(run)
    text = page(run)
    assert "held2.jsonl" in text and "held.jsonl" not in text
    assert "It was scored with evaluation.perplexity.0.path=held2.jsonl." in text


def test_what_the_scores_are_of_is_the_checkpoints_word(run: Path) -> None:
    """Seed and name of the run's recipe, which a person can edit, do not reach the page's recipe or the lineage."""
    recipe = load_run(run)
    save(recipe.model_copy(update={"seed": 77}), run)
    info = Choice().find(run)
    assert scored_recipe(run, info).seed == recipe.seed
    assert "seed: 77" not in page(run)


def test_results_of_an_earlier_version_are_read(run: Path) -> None:
    import json

    file = run / "results.json"
    content = json.loads(file.read_text())
    del content["recipe"], content["chosen"], content["checkpoint"]["tokens"]
    file.write_text(json.dumps(content))
    assert "trained on 2.46M tokens" in page(run)


@pytest.mark.parametrize("command", ["eval", "export", "sample"])
def test_commands_take_a_step_or_the_best(run: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = {"eval": [], "export": [str(run.parent / "exported")], "sample": ["--prompt", "It was"]}[command]
    assert replica([command, str(run), *more, "--step", "7"]) == 2
    assert "no checkpoint of step 7; it has those of steps 600" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        replica([command, str(run), *more, "--step", "600", "--best"])
    (run / "checkpoints" / "step_00000600" / "manifest.json").unlink()
    assert replica([command, str(run), *more, "--best"]) == 2
    assert "no checkpoint with a validation loss" in capsys.readouterr().err
