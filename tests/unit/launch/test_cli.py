"""The console command: help everywhere, overrides anywhere, clear mistakes, and nothing heavy before it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import COMMANDS, main, parse

ROOT = Path(__file__).resolve().parents[3]
RECIPE = str(ROOT / "configs" / "gpt2-124m.yaml")


def exit_code(*arguments: str) -> int:
    """The code of a command line, whether it is returned or argparse exits with it."""
    try:
        return main(arguments)
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code


@pytest.mark.parametrize(
    "command", [[], *([name] for name in COMMANDS)], ids=lambda words: " ".join(words) or "replica"
)
def test_help_has_an_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(*command, "--help") == 0
    said = capsys.readouterr().out
    assert f"Example: {' '.join(['replica', *command])}" in said
    assert "--debug" in said


def test_the_table_of_commands() -> None:
    names = """
    run data tokenizer train decode eval score report compare export import sample compress decompress embed chat serve
    judge trace doctor sweep plan show
    """
    assert list(COMMANDS) == names.split()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--version") == 0
    assert capsys.readouterr().out.startswith("replica 0.")


def test_overrides_may_stand_anywhere() -> None:
    arguments = parse(["run", "r.yaml", "a.b=1", "--out", "d", "c=2", "--ranks", "2", "e.f=-3"])
    assert (arguments.recipe, arguments.out, arguments.ranks) == ("r.yaml", "d", 2)
    assert arguments.overrides == ["a.b=1", "c=2", "e.f=-3"]


@pytest.mark.parametrize("name", ["--num_accelerators", "--num_gpus", "--ranks"])
def test_ranks_go_by_the_names_of_the_launcher_too(name: str) -> None:
    assert parse(["train", "r.yaml", name, "4"]).ranks == 4


def test_debug_before_and_after_the_command() -> None:
    assert parse(["--debug", "show", "r.yaml"]).debug
    assert parse(["show", "r.yaml", "--debug"]).debug
    assert not hasattr(parse(["show", "r.yaml"]), "debug")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "the following arguments are required: RECIPE"),
        (["fly"], "invalid choice: 'fly'"),
        (["run", "r.yaml", "--speed", "3"], "unrecognized arguments: --speed 3"),
        (["report", "runs/x", "a.b=1"], "unrecognized arguments: a.b=1"),
        (["show", "nowhere.yaml"], "error: nowhere.yaml: no such recipe. Those that ship, by name: assistant, demo, "),
        (["show", RECIPE, "model.num_layer=2"], "did you mean `model.num_layers`?"),
        (["show", RECIPE, "train.micro_batch_size=7"], "not a multiple of train.micro_batch_size 7"),
        (["eval", "nowhere"], "error: nowhere is not a run directory"),
        (["compare", "nowhere", "elsewhere"], "error: nowhere has no results.json: evaluate the run first"),
        (["compare", "nowhere"], "error: name two runs or more to compare"),
        (["tokenizer", "compare", RECIPE, "--sizes", "many"], "'many' is not a vocabulary size; write 8192 or 8k"),
        (["tokenizer", "choose", RECIPE], "invalid choice: 'choose'"),
        (["sample", "nowhere", "--prompt", "x"], "error: nowhere is not a run directory"),
        (["trace", "nowhere", "--step", "1"], "error: nowhere is not a run directory"),
        (["export", "nowhere", "out"], "error: nowhere is not a run directory"),
        (["import", "nowhere"], "error: nowhere has no config.json"),
    ],
    ids=lambda value: " ".join(value).replace(RECIPE, "RECIPE") if isinstance(value, list) else "",
)
def test_mistakes_are_named_and_exit_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_all_problems_of_a_recipe_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("show", RECIPE, "model.num_layers=0", "train.stepz=1", "data.dedup.exact=maybe") == 2
    said = capsys.readouterr().err
    assert "3 problems" in said
    assert all(key in said for key in ("model.num_layers", "train.stepz", "data.dedup.exact"))


def test_a_mistake_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code("run", RECIPE, "train.stepz=1") == 2
    assert not list(tmp_path.iterdir())


def test_show_tells_where_values_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("show", RECIPE, "model.num_layers=2") == 0
    lines = {
        line.split("#")[0].strip(): line.split("# ")[-1]
        for line in capsys.readouterr().out.splitlines()
        if "# " in line
    }
    assert lines["num_layers: 2"] == "override model.num_layers=2"
    assert lines["hidden_size: 768"] == "gpt2-124m.yaml"
    assert lines["grad_clip: 1.0"] == "default"


def test_show_derives_facts(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("show", RECIPE, "train.ranks=8") == 0
    said = capsys.readouterr().out
    assert "480 sequences = 12 micro x 5 accumulation x 8 ranks; 491,520 tokens a step" in said
    assert "124,475,904" in said


def test_show_prints_the_run_directory_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("show", RECIPE, "--run-directory", "--out", "/somewhere/run") == 0
    assert capsys.readouterr().out == "/somewhere/run\n"


def test_the_command_line_imports_nothing_heavy() -> None:
    """`--help` and mistakes need no recipe either; nor does the code that loads one need a heavy library."""
    program = (
        "import sys; from launch.cli import parse; parse(['run', 'r.yaml'])\n"
        "print({'configs.schema.recipe', 'launch.run_stages', 'launch.planning.checks', 'rich'} & set(sys.modules))\n"
        "import launch.commands.loading, launch.run_stages\n"
        "heavy = {'torch', 'ray', 'deepspeed', 'datasets', 'transformers', 'lm_eval', 'matplotlib'}\n"
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\nset()\n"
