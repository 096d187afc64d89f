"""What a run that has checkpoints may be asked for: everything that decides the weights is compared, nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from configs.common.files import read_json, sha256_file, write_json
from configs.schema.batch_plan import total_steps
from configs.schema.decisive import AHEAD, FREE, LENGTH, acts_ahead, changed_settings, decisive
from configs.schema.paths import is_path
from configs.schema.recipe import Recipe, load, published, save
from data_prep.tokens.shards import load_manifest
from launch.run_stages import working_in
from launch.trace import trace
from pretrain.batches.mixture import plan_mixture
from pretrain.batches.packing import load_packing
from pretrain.checkpoint.base_model import BASE, base_fingerprints
from pretrain.checkpoint.choice import best_checkpoint, checkpoint_of_step
from pretrain.checkpoint.compatible import (
    CHANGES,
    changes,
    check_finished,
    check_settings,
    is_finished,
    rate_jump,
    recipe_of_step,
)
from pretrain.checkpoint.manifest import manifest_content, read_info
from pretrain.train import train
from tests.parts.fake_checkpoint import write_fake_checkpoint
from tests.parts.training_run import prepare_data, write_recipe

FULL = """\
name: full
data:
  sources: [{name: a, path: a.txt, weight: 1.0, max_epochs: 2.0}, {name: b, path: b.txt, weight: 2.0}]
  mixture: {phases: [{start: 0.5, weights: {a: 1.0}}]}
  quality: {rules: [{rule: c4}], classifier: {path: m.bin}}
  dedup: {lines: {}, near: {}, substrings: {}}
  decontaminate: {}
model: {num_layers: 2, hidden_size: 32, num_heads: 2, context_length: 32, rope_scaling: {kind: linear, factor: 2.0}}
train: {steps: 20, wandb: {project: p}, objective: {code: loss.py:Loss}}
"""


# ------------------------------------------------------------------------------------------------- which settings count
def altered(section: BaseModel, path: str = "") -> Iterator[tuple[str, Any, BaseModel]]:
    """Every setting of the schema: its path, its field, and the whole with another value there."""
    for name, field in type(section).model_fields.items():
        value, here = getattr(section, name), f"{path}{name}"
        if isinstance(value, BaseModel):
            for inner, inner_field, other in altered(value, f"{here}."):
                yield inner, inner_field, section.model_copy(update={name: other})
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            for inner, inner_field, other in altered(value[0], f"{here}.N."):
                yield inner, inner_field, section.model_copy(update={name: [other, *value[1:]]})
        else:
            yield here, field, section.model_copy(update={name: "another value"})


# What is trained, and records of which shape.
OBJECTIVES = (
    ("{kind: sft}", "openai"),
    ("{kind: reward}", "pairs"),
    ("{kind: dpo}", "pairs"),
    (
        "{kind: grpo, rewards: {length: {weight: 1, tokens: 9}, model: {stage: x}, custom: [{code: own.py:reward}]}}",
        "gsm8k",
    ),
    ("{kind: ppo, rewards: {format: 1}}", "gsm8k"),
)
OF_UNITS = """\
name: units
data: {sources: [{name: a, path: a.jsonl, shape: SHAPE}], tokenizer: {special_tokens: chat}}
model: {num_layers: 2, hidden_size: 32, num_heads: 2, context_length: 128}
train: {steps: 20, global_batch_size: 256, objective: OBJECTIVE}
"""


def test_every_setting_of_the_schema_is_compared_but_for_those_that_are_named(tmp_path: Path) -> None:
    file = tmp_path / "full.yaml"
    file.write_text(FULL)
    recipe = load(file)
    objectives = []
    for text, shape in OBJECTIVES:
        units = tmp_path / "units.yaml"
        units.write_text(OF_UNITS.replace("SHAPE", shape).replace("OBJECTIVE", text))
        objectives.append(load(units))
    of_objectives = [
        (one, *found) for one in objectives for found in altered(one) if found[0].startswith("train.objective.")
    ]
    seen = set()
    for whole, path, field, other in [*((recipe, *found) for found in altered(recipe)), *of_objectives]:
        assert isinstance(other, Recipe)
        named = [free for free in FREE + LENGTH if path == free or path.startswith(free + ".")]
        seen.update(named)
        free = named or (path.startswith("data.") and is_path(field))
        assert bool(changed_settings(whole, other)) != bool(free), path
    assert seen == set(FREE + LENGTH), "a name that is no setting any more"
    names = {".".join("N" if part.isdigit() else part for part in path.split(".")) for path in decisive(recipe)}
    assert len(names) > 100
    for ahead in AHEAD:
        assert any(name == ahead or name.startswith(ahead + ".") for name in names), ahead
    must = ("seed", "train.global_batch_size", "train.init_from", "train.document_masking", "train.packing")
    assert {*must, "model.dropout", "data.tokenizer.vocab_size", "train.optimizer.betas", "deepspeed"} <= names
    assert acts_ahead("train.optimizer.lr") and acts_ahead("data.sources.1.weight")
    assert not acts_ahead("train.optimizer.name") and not acts_ahead("seed")


# ---------------------------------------------------------------------------------------------------- a run that exists
@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def make(tmp_path: Path, data: Path) -> Callable[..., Recipe]:
    """Loads the tiny recipe, with overrides."""
    file = write_recipe(tmp_path / "recipe.yaml", data)
    return lambda *overrides: load(file, overrides)


def begin(recipe: Recipe, step: int = 20, **state: Any) -> Path:
    directory = write_fake_checkpoint(recipe, step, state)
    save(recipe, recipe.run_directory)
    return directory


def everything(run: Path) -> dict[str, str]:
    files = (path for path in run.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path): sha256_file(path) for path in files}


CHANGED = {
    "seed=99": "seed = 1234, but now it is 99",
    "train.global_batch_size=4": r"train.global_batch_size = 8, but now it is 4.*accept_changed=\[global_batch_size\]",
    "train.steps=10": r"the number of steps \(train.steps\) = 20, but now it is 10.*replica eval .* \[--step N\]",
    "train.init_from=/elsewhere": "train.init_from = None, but now it is /elsewhere",
    "train.document_masking=true": "train.document_masking = False, but now it is True",
    "train.packing=best_fit": "train.packing = stream, but now it is best_fit",
    "train.optimizer.lr=1e-4": "train.optimizer.lr = 0.003, but now it is 0.0001",
    "train.optimizer.name=muon": "train.optimizer.name = adamw, but now it is muon",
    "train.schedule.kind=wsd": "train.schedule.kind = cosine, but now it is wsd",
    "train.precision=bf16": "train.precision = fp32, but now it is bf16",
    "model.num_layers=3": "model.num_layers = 2, but now it is 3",
    "model.dropout=0.1": "model.dropout = 0.0, but now it is 0.1",
    "data.tokenizer.special_tokens=[x]": "data.tokenizer.special_tokens",
    "data.validation_fraction=0.5": "data.validation_fraction = 0.005, but now it is 0.5",
    "data.sources.0.max_documents=5": "data.sources.0.max_documents = None, but now it is 5",
}


@pytest.mark.parametrize("override", CHANGED)
def test_a_finished_run_is_not_taken_for_another_and_stays_as_it_was(
    make: Callable[..., Recipe], override: str
) -> None:
    began, wanted = make(), make(override)
    begin(began)
    before = everything(began.run_directory)
    assert check_finished(began) and not is_finished(wanted)
    with pytest.raises(ValueError, match=CHANGED[override]), working_in(wanted):
        pytest.fail("nothing may be done in it")
    with pytest.raises(ValueError, match=CHANGED[override]):
        train(wanted)
    assert everything(began.run_directory) == before


def test_all_differences_stand_in_one_message(make: Callable[..., Recipe]) -> None:
    begin(make())
    with pytest.raises(ValueError, match=r"(seed|layers) = .*; .*(seed|layers) = "):
        check_settings(make("seed=9", "model.num_layers=3"))


def test_what_decides_no_weight_may_change(make: Callable[..., Recipe]) -> None:
    begin(make())
    free = ("train.log_every=5", "train.micro_batch_size=2", "train.zero.stage=2", "train.checkpoint.keep=7")
    other = make(
        *free, "name=another", "evaluation.batch_size=3", "data.workers=3", "train.tokens=5120", "train.steps=null"
    )
    assert check_finished(other), "5,120 tokens are 20 steps"
    with working_in(other):
        pass


def test_more_steps_are_made_and_settings_of_later_steps_may_change(make: Callable[..., Recipe]) -> None:
    info = read_info(begin(make()))
    longer = make("train.steps=40", "train.optimizer.lr=1e-4")
    assert not check_finished(longer)
    from data_prep.tokens.shards import load_manifest

    kept = changes(info, longer, load_manifest(longer.data_directory))
    assert kept == [
        {"step": 20, "setting": "train.optimizer.lr", "before": 0.003, "after": 0.0001},
        {"step": 20, "setting": "the number of steps (train.steps)", "before": 20, "after": 40},
    ]
    for never in ("seed=9", "train.document_masking=true", "train.optimizer.name=muon"):
        with pytest.raises(ValueError, match="but now it is"):
            check_settings(make("train.steps=40", never))


def test_a_run_that_was_to_be_longer_is_not_one_of_the_steps_it_has(make: Callable[..., Recipe]) -> None:
    """Stopped at step 20 of 40: its learning rate never fell to its last value."""
    begin(make("train.steps=40"))
    with pytest.raises(ValueError, match=r"\(train.steps\) = 40, but now it is 20"):
        check_settings(make())
    assert check_settings(make("train.steps=30")) is not None


def test_secrets_that_a_checkpoint_does_not_hold_are_no_difference(make: Callable[..., Recipe]) -> None:
    hub = "data.sources=[{name: tiny, hub: {path: json, data_files: ['https://me:secret@host/f?token=%s']}}]"
    recipe = make(hub % "a")
    begin(recipe)
    file = recipe.run_directory / "checkpoints" / "step_00000020" / "recipe.yaml"
    file.write_text(published(recipe))
    assert check_finished(make(hub % "b"))


def test_accepted_changes_pass(make: Callable[..., Recipe]) -> None:
    begin(make())
    accepted = "train.checkpoint.accept_changed=[global_batch_size, data]"
    assert check_finished(make("train.global_batch_size=4", "data.validation_fraction=0.2", accepted))
    with pytest.raises(ValueError, match="seed"):
        check_settings(make("seed=9", accepted))


def test_the_base_model_counts_and_not_where_it_lies(make: Callable[..., Recipe], tmp_path: Path) -> None:
    """A project that moved names the weights that it started from by another path."""
    old, moved, other = (tmp_path / name for name in ("old", "moved", "other"))
    base = make("seed=5").model_copy(update={"out": str(old)})
    first = read_info(write_fake_checkpoint(base, 3))
    write_fake_checkpoint(base, 6)  # the base was trained further since
    begun = f"train.init_from={old}"
    begin(make(begun), **{BASE: first.fingerprint})
    assert check_finished(make(begun))
    shutil.copytree(old, moved)
    for path in (moved, moved / "checkpoints" / "step_00000003"):
        assert check_finished(make(f"train.init_from={path}")), path
    info = check_settings(make(f"train.init_from={moved}"))
    assert (
        info is not None and changes(info, make(f"train.init_from={moved}"), load_manifest(base.data_directory)) == []
    )
    write_fake_checkpoint(base.model_copy(update={"out": str(other)}), 9)
    for path in (other, moved / "checkpoints" / "step_00000006", tmp_path / "gone"):
        with pytest.raises(ValueError, match=r"train.init_from = .*, but now it is"):
            check_settings(make(f"train.init_from={path}"))


def test_a_hugging_face_base_is_known_by_its_files(make: Callable[..., Recipe], tmp_path: Path) -> None:
    for name in ("old", "moved"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    (base,) = base_fingerprints(tmp_path / "old")
    begin(make(f"train.init_from={tmp_path / 'old'}"), **{BASE: base})
    moved = make(f"train.init_from={tmp_path / 'moved'}")
    assert check_finished(moved)
    (tmp_path / "moved" / "model.safetensors").write_bytes(b"others!")
    with pytest.raises(ValueError, match=r"train\.init_from"):
        check_finished(moved)


@pytest.mark.parametrize("packing", ["stream", "best_fit"])
def test_epochs_are_of_the_data_that_lies_there_now(tmp_path: Path, data: Path, packing: str) -> None:
    """A run over data that grew since is not finished, though its steps were all that the data had."""
    shutil.copytree(data, tmp_path / "data")
    settings = [f"train.packing={packing}", "train.steps=null", "train.epochs=1"]
    accepting = load(
        write_recipe(tmp_path / "recipe.yaml", tmp_path / "data"), [*settings, "train.checkpoint.accept_changed=[data]"]
    )
    manifest = load_manifest(tmp_path / "data")
    if packing == "best_fit":
        assert not is_finished(accepting)
        for source in manifest.train:
            load_packing(manifest, source, accepting.model.context_length)
    windows = sum(source.windows for source in plan_mixture(accepting, manifest).sources)
    for there, finished in ((windows, True), (windows // 2, False)):  # windows that the checkpoint was trained on
        shutil.rmtree(accepting.run_directory, ignore_errors=True)
        directory = write_fake_checkpoint(accepting, total_steps(accepting, there), windows=there)
        content = read_json(directory / "manifest.json")
        fields = {key: value for key, value in content.items() if key not in ("seal", "schema")}
        write_json(directory / "manifest.json", manifest_content({**fields, "data_fingerprint": "of before"}))
        assert is_finished(accepting) == finished
        assert check_finished(accepting) == finished


# ---------------------------------------------------------------------------------------------------- what made a step
def test_a_trace_tells_what_was_read_whatever_the_recipe_says_now(make: Callable[..., Recipe]) -> None:
    recipe = make()
    begin(recipe)
    spans = list(trace(recipe, 3))
    save(make("seed=99", "train.global_batch_size=2"), recipe.run_directory)  # by hand
    assert list(trace(make("seed=99", "train.global_batch_size=2"), 3)) == spans
    assert {span.row for span in spans} == set(range(8))


def test_a_step_is_traced_with_the_batch_it_had(make: Callable[..., Recipe]) -> None:
    change = {"step": 10, "setting": "train.global_batch_size", "before": 4, "after": 8}
    moved = {"step": 5, "setting": "the data's fingerprint", "before": "old", "after": "new"}
    info = read_info(begin(make(), **{CHANGES: [moved, change]}))
    assert [recipe_of_step(info, step).train.global_batch_size for step in (6, 10, 11, 20)] == [4, 4, 8, 8]
    with pytest.raises(ValueError, match="step 5 was made on other data"):
        recipe_of_step(info, 5)


def test_a_trace_of_other_data_is_refused(make: Callable[..., Recipe], tmp_path: Path) -> None:
    begin(make())
    other = make(f"data.directory={prepare_data(tmp_path / 'other', {'tiny': 9_000})}")
    with pytest.raises(ValueError, match="other data"):
        list(trace(other, 3))


# -------------------------------------------------------------------------------------------------- the rate that jumps
def test_a_finished_cosine_run_made_longer_says_how_the_rate_jumps(make: Callable[..., Recipe]) -> None:
    info = read_info(begin(make()))
    said = rate_jump(info, make("train.steps=40"))
    assert said is not None
    assert "from 0.0003 to 0.0016 at step 21: the number of steps (train.steps) was 20 and is 40" in said
    assert "wsd" in said
    assert rate_jump(info, make()) is None
    assert rate_jump(info, make("train.steps=40", "train.optimizer.lr=5.64e-4")) is None, "it happens to fit"


def test_a_wsd_run_is_told_where_its_decay_began(make: Callable[..., Recipe]) -> None:
    wsd = "train.schedule.kind=wsd"
    info = read_info(begin(make(wsd)))
    assert "before its decay, which began at step 16" in str(rate_jump(info, make(wsd, "train.steps=40")))
    constant = "train.schedule.kind=constant"
    begun = make(constant).model_copy(update={"out": str(info.directory.parents[2] / "other")})
    assert rate_jump(read_info(begin(begun)), make(constant, "train.steps=40")) is None


# ---------------------------------------------------------------------------------------------- choosing a checkpoint
def test_a_checkpoint_by_its_step_or_its_loss(make: Callable[..., Recipe]) -> None:
    recipe = make()
    for step, loss in ((5, 3.0), (10, 1.5), (15, None), (20, 2.0)):
        write_fake_checkpoint(recipe, step, {"validation_loss": loss})
    assert checkpoint_of_step(recipe.run_directory, 15).step == 15
    with pytest.raises(ValueError, match="no checkpoint of step 7; it has those of steps 5, 10, 15, 20"):
        checkpoint_of_step(recipe.run_directory, 7)
    assert best_checkpoint(recipe.run_directory).step == 10
    (recipe.run_directory / "checkpoints" / "step_00000010" / "manifest.json").unlink()
    assert best_checkpoint(recipe.run_directory).step == 20, "a damaged one is none"


def test_no_checkpoint_with_a_loss_is_none_to_choose(make: Callable[..., Recipe]) -> None:
    recipe = make()
    write_fake_checkpoint(recipe, 5, {"validation_loss": None})
    with pytest.raises(ValueError, match="no checkpoint with a validation loss"):
        best_checkpoint(recipe.run_directory)


def test_yaml_of_a_checkpoint_is_what_is_compared(make: Callable[..., Recipe]) -> None:
    """Not the run's recipe, which a person can edit."""
    directory = begin(make())
    file = directory.parents[1] / "recipe.yaml"
    content = yaml.safe_load(file.read_text())
    content["seed"] = 99
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="seed = 1234, but now it is 99"):
        check_settings(load(file))
