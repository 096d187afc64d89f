"""The checkpoints that a stage starts from: kept in its own, compared, and finished before it begins."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from configs.schema.recipe import Recipe, load, load_run, save
from launch.run_stages import working_in
from pretrain.checkpoint.base_model import BASE, base_fingerprints
from pretrain.checkpoint.compatible import check_parents, check_settings, is_finished
from pretrain.checkpoint.parents import PARENTS, parents_now, roles
from pretrain.train import train
from tests.parts.fake_checkpoint import write_fake_checkpoint
from tests.parts.training_run import prepare_data, write_recipe

SOURCES = [{"name": "tiny", "path": "none.txt", "shape": "openai"}]
PAIRS = [{"name": "tiny", "path": "none.txt", "shape": "pairs"}]
STAGES = [
    {"name": "sft", "objective": {"kind": "sft"}, "data": {"sources": SOURCES}, "train": {"steps": 4}},
    {
        "name": "reward",
        "objective": {"kind": "reward"},
        "data": {"sources": PAIRS},
        "train": {"steps": 3},
    },
    {"name": "dpo", "from": "sft", "objective": {"kind": "dpo"}, "data": {"like": "reward"}, "train": {"steps": 2}},
    {
        "name": "ppo",
        "from": "sft",
        "objective": {
            "kind": "ppo",
            "rewards": {"model": {"stage": "reward"}},
            "critic_from": "reward",
            "kl": {"coefficient": 0.1},
        },
        "data": {"sources": SOURCES},
        "train": {"steps": 2},
    },
]


@pytest.fixture
def chain(tmp_path: Path) -> Recipe:
    """A base and its stages, of which base, sft and reward are trained."""
    prepared = prepare_data(tmp_path / "data")
    file = write_recipe(tmp_path / "recipe.yaml", prepared, steps=5)
    content = yaml.safe_load(file.read_text())
    for stage in (stages := [dict(stage) for stage in STAGES]):
        if "like" not in stage["data"]:  # type: ignore[operator]
            stage["data"] = {**stage["data"], "directory": str(prepared)}  # type: ignore[dict-item]
    content["data"]["directory"], content["stages"] = str(prepared), stages
    file.write_text(yaml.safe_dump(content))
    recipe = load(file)
    for name in ("base", "sft", "reward"):
        finish(recipe.stage(name))
    return recipe


def finish(recipe: Recipe, weights: str = "") -> Path:
    """Writes what training leaves at its last step."""
    recipe.run_directory.mkdir(parents=True, exist_ok=True)
    save(recipe, recipe.run_directory)
    assert recipe.train.steps
    base = base_fingerprints(Path(recipe.train.init_from))[0] if recipe.train.init_from else None
    state = {PARENTS: parents_now(recipe), BASE: base}
    return write_fake_checkpoint(recipe, recipe.train.steps, state, weights=weights)


def again(recipe: Recipe, weights: str = "again") -> None:
    shutil.rmtree(recipe.run_directory / "checkpoints")
    finish(recipe, weights)


def test_each_role_has_a_parent(chain: Recipe) -> None:
    assert roles(chain) == {} and roles(chain.stage("sft")) == {"policy": "base"}
    assert roles(chain.stage("dpo")) == {"policy": "sft", "reference": "sft"}
    assert roles(chain.stage("ppo")) == {"policy": "sft", "reference": "sft", "reward": "reward", "critic": "reward"}
    entries = {entry["role"]: entry for entry in parents_now(chain.stage("ppo"))}
    assert entries["critic"]["stage"] == "reward" and entries["critic"]["step"] == 3
    assert entries["policy"]["directory"].endswith("stages/sft/checkpoints/step_00000004")


def test_a_parent_trained_again_makes_its_children_stale(chain: Recipe) -> None:
    dpo, sft = chain.stage("dpo"), chain.stage("sft")
    finish(dpo)
    assert is_finished(dpo) and check_settings(dpo) is not None
    again(sft)
    assert is_finished(sft) and not is_finished(dpo) and not is_finished(chain.stage("reward"))
    words = (
        r"the checkpoint of `sft` \(policy, reference\) = step 4 \(checkpoi\), but now it is .*move "
        rf"{dpo.run_directory} away, and the same command trains the stage again"
    )
    with pytest.raises(ValueError, match=words):
        train(dpo)
    with pytest.raises(ValueError, match=words), working_in(dpo):
        raise AssertionError("the run directory was entered")


def test_a_base_that_goes_on_makes_all_stages_stale(chain: Recipe, tmp_path: Path) -> None:
    longer = load(tmp_path / "recipe.yaml", ["train.steps=9"])
    save(longer, longer.run_directory)
    assert not is_finished(longer.stage("sft"))  # its parent has steps to make
    with pytest.raises(ValueError, match=r"needs the weights of `base`, but .* has made 5 of its 9 steps; `replica ru"):
        check_parents(longer.stage("sft"))
    finish(longer)
    assert not is_finished(longer.stage("sft"))
    with pytest.raises(ValueError, match=r"needs the weights of `sft`.* was trained otherwise than its recipe says"):
        check_parents(longer.stage("dpo"))
    save(longer.stage("sft"), longer.stage("sft").run_directory)


def test_a_stage_waits_for_its_parents(chain: Recipe) -> None:
    check_parents(chain.stage("ppo"))
    shutil.rmtree(chain.stage("reward").run_directory / "checkpoints")
    with pytest.raises(ValueError, match=r"tiny.ppo needs the weights of `reward`, but .* has no checkpoint yet; .*"
                       "`replica train RECIPE --stage reward` this one"):  # fmt: skip
        train(chain.stage("ppo"))
    check_parents(chain.stage("dpo"))  # it reads the same data, but not these weights


def test_parents_may_be_gone_when_a_stage_is_finished(chain: Recipe) -> None:
    dpo = chain.stage("dpo")
    finish(dpo)
    shutil.rmtree(chain.stage("sft").run_directory)
    assert is_finished(dpo)


def test_a_run_may_be_moved_with_its_stages(chain: Recipe, tmp_path: Path) -> None:
    finish(chain.stage("dpo"))
    moved = tmp_path / "elsewhere" / "run"
    moved.parent.mkdir()
    chain.run_directory.rename(moved)
    dpo = load_run(moved / "stages" / "dpo")
    assert dpo.parents == {"sft": str(moved / "stages" / "sft")} and dpo.train.init_from == dpo.parents["sft"]
    assert dpo.run_directory == moved / "stages" / "dpo" and is_finished(dpo)
