"""What can be known to fail is refused at once by every command that takes a recipe, all problems together."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.schema.recipe import Recipe, load
from eval.likelihood.compressors import compression_results
from eval.report.gates import COMPRESSORS, gate_problems
from launch.cli import main
from launch.planning import checks
from launch.planning.checks import check, machine_problems, notes
from tests.parts.training_run import prepare_data, write_recipe

SETS = "evaluation.perplexity=[{name: held, path: held.jsonl}]"
PAIRS = "evaluation.translation=[{name: t, path: pairs.jsonl, max_new_tokens: 8}]"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("held.jsonl", "pairs.jsonl", "none.txt"):
        (tmp_path / name).write_text("{}\n")
    return write_recipe(tmp_path / "recipe.yaml", prepare_data(tmp_path / "data"))


@pytest.fixture
def make(file: Path) -> Callable[..., Recipe]:
    return lambda *overrides: load(file, [SETS, *overrides])


PROBLEMS = {
    'report.gates=["nonsense"]': "report.gates: gate `nonsense`: write it as `metric op value`",
    'report.gates=["perplexity/nosuch/bits_per_byte < 2"]': "no metric `perplexity/nosuch/bits_per_byte`; near: perpl",
    'report.gates=["perplexity/held/bits_per_byte < compression/held/7z"]': "there is no metric `compression/held/7z`",
    'report.gates=["benchmark/piqa/acc > 0.5"]': "there is no metric `benchmark/piqa/acc`",
    "evaluation.perplexity=[{name: held, path: /nonexistent.jsonl}]": "`held`: /nonexistent.jsonl: no such file",
    "evaluation.perplexity.0.stride=100": "`held`: stride 100 is more than model.context_length 32",
    "evaluation.perplexity.0.context=33": "`held`: context 33 is more than model.context_length 32",
    "evaluation.translation=[{name: t, path: gone.jsonl}]": "gone.jsonl: no such file",
    "evaluation.translation=[{name: t, path: pairs.jsonl, tokenize: klingon}]": "no tokenizer `klingon`",
    "evaluation.translation=[{name: t, path: pairs.jsonl, max_new_tokens: 31}]": "31 leaves no room for a prompt",
    "evaluation.benchmarks={tasks: [x], include_path: nowhere}": "include_path: ",
    "evaluation.benchmarks.tasks=[replica_copper]": "`replica_copper` is neither a task in an include_path nor one of",
    "train.init_from=nowhere": "train.init_from: ",
    "train.ranks=3": "train.global_batch_size 8 cannot be divided over 3 ranks",
    "deepspeed={gradient_clipping: 7.0}": "deepspeed.gradient_clipping: 7.0 clashes with",
    "train.zero={stage: 1, offload_parameters: cpu}": "needs train.zero.stage 3, not 1",
    "train.parallel.sequence=4": "train.parallel.sequence 4 needs model.num_heads to be a multiple of it, not 2",
    "data.directory=null data.sources=[{name: a, path: gone.txt}]": "data.sources `a`: ",
}
MACHINE = {
    "train.precision=fp16": "train.precision fp16 needs a GPU",
    "train.wandb={project: p}": "train.wandb is set, but wandb is not installed",
}


@pytest.mark.parametrize("overrides", PROBLEMS)
@pytest.mark.parametrize("command", ["show", "data", "train", "run"])
def test_every_command_refuses_it_at_once(
    file: Path, command: str, overrides: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = _joined(overrides.split(" ")) if overrides.startswith("data.directory") else [overrides]
    assert main([command, str(file), SETS, *words]) == 2
    assert PROBLEMS[overrides] in capsys.readouterr().err
    assert not (file.parent / "run").exists()


def _joined(words: list[str]) -> list[str]:
    """Words with a blank in their value, put together again."""
    out: list[str] = []
    for word in words:
        out += [word] if "=" in word else []
        if "=" not in word:
            out[-1] += f" {word}"
    return out


@pytest.mark.parametrize("overrides", MACHINE)
def test_what_this_machine_cannot_is_refused_where_training_runs_here(
    file: Path, overrides: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    recipe = load(file, [SETS, overrides])
    assert any(MACHINE[overrides] in text for text in machine_problems(recipe, trains_here=True))
    with pytest.raises(ValueError, match="problem"):
        check(recipe, trains_here=True)
    capsys.readouterr()
    check(recipe, trains_here=False)  # another machine may train it
    assert f"note: on this machine, {MACHINE[overrides]}" in capsys.readouterr().err


def test_all_problems_stand_together(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    three = [
        'report.gates=["nonsense"]',
        "evaluation.perplexity.0.stride=100",
        "train.init_from=nowhere",
        "train.ranks=3",
    ]
    assert main(["run", str(file), SETS, *three]) == 2
    said = capsys.readouterr().err
    assert "4 problems in the recipe tiny" in said
    assert all(word in said for word in ("nonsense", "stride 100", "train.init_from", "3 ranks"))


def test_what_is_right_passes(make: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]) -> None:
    gates = [
        "perplexity/held/bits_per_byte < 2.4",
        "perplexity/held/nats_per_token <= compression/held/xz_bits_per_byte",
        "benchmark/any/acc,none > 0.1",
        "translation/t/copy_bleu >= 0",
    ]
    recipe = make(PAIRS, "evaluation.benchmarks.tasks=[any]", f"report.gates={gates}")
    check(recipe, trains_here=True)
    assert capsys.readouterr().err == ""
    assert gate_problems(make('report.gates=["perplexity/held/bits_per_byte/clean < 2"]'))
    compared = make('report.gates=["perplexity/held/bits_per_byte/clean < 2"]', "data.decontaminate={}")
    assert not gate_problems(compared)


def test_a_gate_on_a_benchmark_that_is_not_listed_is_said(
    make: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    gates = ["benchmark/any/acc > 0.1", "benchmark/hellaswag/acc_norm > 0.3"]
    check(make("evaluation.benchmarks.tasks=[any]", f"report.gates={gates}"), trains_here=True)
    said = capsys.readouterr().err
    assert said.count("note:") == 1 and "lists no `hellaswag`; the gate fails unless a group among any has it" in said


def test_a_name_of_the_hub_is_no_directory(make: Callable[..., Recipe]) -> None:
    with pytest.raises(ValueError, match=r"train.init_from: .*gpt2 is not there; download a model of the hub first"):
        check(make("train.init_from=gpt2"), trains_here=True)


def test_ranks_of_several_nodes_may_share_a_row(make: Callable[..., Recipe]) -> None:
    recipe = make("train.ranks=1", "train.parallel.tensor=2")
    assert not checks.training_problems(recipe), "on two nodes"


def test_a_finished_run_is_asked_for_no_device(make: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "is_finished", lambda recipe: True)
    check(make("train.precision=fp16"), trains_here=True)
    with pytest.raises(ValueError, match="nonsense"):
        check(make('report.gates=["nonsense"]'), trains_here=True)


def test_raw_text_may_be_gone_once_it_is_prepared(make: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "none.txt").unlink()
    check(make(), trains_here=True, reads_sources=False)
    with pytest.raises(ValueError, match="no such file"):
        check(make(), trains_here=True)


def test_a_package_that_a_tokenizer_needs_is_named(
    make: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None if name == "MeCab" else importlib.util.find_spec(name))
    recipe = make("evaluation.translation=[{name: t, path: pairs.jsonl, tokenize: ja-mecab}]")
    with pytest.raises(ValueError, match=r"`ja-mecab` needs another package; run `pip install 'sacrebleu\[ja\]'`"):
        check(recipe, trains_here=False, scores_here=True)


def test_packages_of_scoring_are_asked_for_where_it_scores_alone(
    make: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A node that trains has neither sacrebleu nor lm-eval."""
    missing = ("sacrebleu", "lm_eval", "constriction")
    monkeypatch.setattr(checks, "find_spec", lambda name: None if name in missing else importlib.util.find_spec(name))
    recipe = make(PAIRS, "evaluation.benchmarks.tasks=[copa]", "evaluation.compression.codec=[held]")
    check(recipe, trains_here=True, reads_sources=False)
    said = capsys.readouterr().err
    assert said.count("on this machine, evaluation.") == 3
    with pytest.raises(ValueError, match="3 problems") as refused:
        check(recipe, trains_here=True, scores_here=True)
    assert "compression.codec: constriction is not installed; run `pip install" in str(refused.value)
    assert "lm-eval is not installed" in str(refused.value) and "sacrebleu is not installed" in str(refused.value)


def test_a_masked_model_is_not_trained_to_code_a_file(make: Callable[..., Recipe]) -> None:
    """Coding needs each token from those before it; the error came after hours of training."""
    mask = 'data.tokenizer.special_tokens=["<|endoftext|>", "<|mask|>"]'
    masked = make("evaluation.compression.codec=[held]", "train.objective={kind: masked_diffusion}", mask)
    (problem,) = checks.recipe_problems(masked)
    assert problem.startswith("evaluation.compression.codec needs a model that predicts each token from those before")
    assert not checks.recipe_problems(make("evaluation.compression.codec=[held]"))


def test_what_cannot_be_exported_is_said_before_training(
    make: Callable[..., Recipe], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not notes(make())
    recipe = make("model.logit_softcap=30.0")
    check(recipe, trains_here=True)
    assert "note: `replica export` will not be possible:" in capsys.readouterr().err
    assert main(["show", str(file), "model.logit_softcap=30.0"]) == 0
    assert "model.logit_softcap=30.0" in capsys.readouterr().err


def test_names_of_scores_are_those_that_are_made() -> None:
    made = [result.name for result in compression_results("held", ["some text"])]
    assert sorted(made) == [f"compression/held/{program}_bits_per_byte" for program in COMPRESSORS]


def test_betas_of_one_are_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(file), "train.optimizer.betas=[0.9, 1.0]"]) == 2
    assert "train.optimizer.betas.1: Input should be less than 1" in capsys.readouterr().err
