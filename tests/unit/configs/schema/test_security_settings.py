"""Settings of a stranger's recipe: none of them imports code, runs it, or writes where the recipe says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from configs.common.exit_codes import USER_ERROR
from configs.safety.trust import trusting
from configs.schema.deepspeed_keys import PASSED, check_deepspeed
from configs.schema.evaluation import Benchmarks
from configs.schema.recipe import RecipeError, load
from data_prep.decontamination.benchmark_tasks import SHIPPED_TASKS, open_tasks, task_passages
from eval.harness.benchmarks import load_tasks
from launch.cli import main, parse
from tests.parts.training_run import tiny_recipe, write_recipe


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"torch_autocast": {"lower_precision_safe_modules": ["evilmod.Linear"]}}, "torch_autocast.lower_precision"),
        ({"flops_profiler": {"enabled": True, "output_file": "/any/file"}}, "flops_profiler.output_file"),
        ({"csv_monitor": {"enabled": True, "output_path": "D", "job_name": "../x"}}, "csv_monitor"),
        ({"tensorboard": {"enabled": True, "output_path": "D"}}, "tensorboard"),
        ({"autotuning": {"enabled": True, "results_dir": "D"}}, "autotuning"),
        ({"zero_optimization": {"offload_param": {"nvme_path": "/any"}}}, "zero_optimization.offload_param.nvme_path"),
        ({"zero_optimization": {"leaf_module": {"classes": ["a.B"]}}}, "zero_optimization.leaf_module"),
        ({"compile": {"backend": "evilmod.backend"}}, "compile"),
        ({"nebula": {"enabled": True}}, "nebula"),
        ({"zero_optimization": ["stage"]}, "zero_optimization"),
        ({"comms_logger": {"prof_ops": [{"output_file": "x"}]}}, "comms_logger.prof_ops"),
        ({"wall_clock_breakdown": {"output_file": "x"}}, "wall_clock_breakdown"),
        ({"zero_optimization.offload_param": {"nvme_path": "x"}}, "zero_optimization.offload_param"),
    ],
)
def test_deepspeed_settings_that_import_or_write(tmp_path: Path, settings: dict[str, Any], key: str) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", tmp_path)
    with pytest.raises(RecipeError, match=rf"deepspeed\.{key}.* cannot be set: only keys that import no code"):
        load(recipe, [f"deepspeed={settings!r}"])


def test_deepspeed_settings_that_may_pass_are_deepspeeds() -> None:
    """A name that DeepSpeed does not have would be ignored by it, or refused long after the start."""
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    for section, model in (
        ("zero_optimization", DeepSpeedZeroConfig),
        ("bf16", DeepSpeedBF16Config),
        ("fp16", DeepSpeedFP16Config),
    ):
        names = {name for field, info in model.model_fields.items() for name in (field, info.alias) if name}
        ours = {key.split(".")[1] for key in PASSED if key.startswith(f"{section}.")}
        assert ours <= names | {"offload_param", "offload_optimizer"}, section
    check_deepspeed({"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}, "dump_state": True})


def test_deepspeed_settings_pass_as_they_are(tmp_path: Path) -> None:
    settings = {"zero_optimization": {"reduce_bucket_size": 10}, "comms_logger": {"prof_ops": ["all_reduce"]}}
    recipe = load(write_recipe(tmp_path / "recipe.yaml", tmp_path), [f"deepspeed={settings!r}"])
    assert recipe.deepspeed == settings
    assert tiny_recipe(tmp_path, tmp_path).deepspeed == {}


# ------------------------------------------------------------------------------------------------- tasks that are code
@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A directory with a task whose data is a function of its own."""
    directory = tmp_path / "run" / "tasks"
    directory.mkdir(parents=True)
    (directory / "evil.yaml").write_text("task: evil\ncustom_dataset: !function evil.go\noutput_type: generate_until\n")
    (directory / "evil.py").write_text(f"def go(**_):\n    open({str(tmp_path / 'code-ran')!r}, 'w').close()\n")
    return directory


def test_tasks_of_a_run_directory_do_not_run(tasks: Path, tmp_path: Path) -> None:
    message = rf"evaluation\.benchmarks\.include_path: .* name it on the command line: --trust {tasks}"
    with pytest.raises(ValueError, match=message):
        load_tasks(Benchmarks(tasks=["evil"], include_path=str(tasks)), tmp_path / "cache")
    with pytest.raises(ValueError, match=message):
        list(task_passages(["evil"], [str(SHIPPED_TASKS), str(tasks)], "data.decontaminate.tasks"))
    with trusting([tmp_path / "others", tmp_path / "run" / "task"]), pytest.raises(ValueError, match=message):
        open_tasks(["evil"], [str(tasks)], tmp_path, "x")
    assert not (tmp_path / "code-ran").exists()


@pytest.mark.parametrize("trusted", ["tasks", "."])
def test_tasks_that_are_named_do_run(tasks: Path, tmp_path: Path, trusted: str) -> None:
    with trusting([tasks.parent / trusted]), pytest.raises(ValueError, match="benchmark task `evil`"):
        open_tasks(["evil"], [str(tasks)], tmp_path, "x")
    assert (tmp_path / "code-ran").exists(), "or the tests above prove nothing"
    with pytest.raises(ValueError, match="--trust"):
        open_tasks(["evil"], [str(tasks)], tmp_path, "x")


@pytest.mark.parametrize("section", ["evaluation", "data"])
def test_a_recipe_is_refused_before_anything_is_done(
    tasks: Path, tmp_path: Path, section: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", tmp_path)
    (tmp_path / "none.txt").write_text("The recipe's source: what is not there would be said first.")
    own = {"evaluation": "evaluation.benchmarks.tasks=[evil]", "data": "data.decontaminate.tasks=[evil]"}[section]
    words = ["run", str(recipe), f"evaluation.benchmarks.include_path={tasks}", own]
    assert main(words) == USER_ERROR
    assert f"--trust {tasks}" in capsys.readouterr().err
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_the_command_line_names_them(tmp_path: Path) -> None:
    for words in (["run", "x.yaml"], ["data", "x.yaml"], ["eval", "RUN"], ["show", "x.yaml"]):
        assert parse([*words, "--trust", "a", "--trust=b"]).trust == ["a", "b"]
