"""The recipe: precedence, problems with their paths, where paths point, the arithmetic derived from it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from configs.schema.batch_plan import solve_batch, total_steps
from configs.schema.presets import PRESETS
from configs.schema.recipe import (
    Recipe,
    RecipeError,
    check_name,
    dump,
    load,
    load_run,
    load_with_origins,
    save,
    to_yaml,
)
from configs.schema.train import Train
from launch.cli import main as replica
from launch.planning.sweep import Point, Sweep
from pretrain.train import main as train_command

TEXT = """
name: small
data:
  sources:
    - {name: books, path: [texts/a.txt, /abs/b.txt]}
    - {name: web, hub: {path: json, data_files: [w.jsonl, "https://example.org/x.jsonl"]}}
  tokenizer: {kind: file, path: vocab}
model: {family: gpt2, num_layers: 2, num_heads: 4, hidden_size: 32, context_length: 16}
train: {steps: 5, global_batch_size: 8, optimizer: {lr: 1e-3}}
evaluation:
  perplexity: [{name: held, path: "~/held.txt"}]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "configs" / "small.yaml"
    path.parent.mkdir()
    path.write_text(TEXT, encoding="utf-8")
    return path


def problems(file: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as error:
        load(file, overrides)
    assert str(file) in str(error.value)
    return str(error.value)


def test_precedence_and_family_defaults(file: Path) -> None:
    recipe = load(file, ["model.num_layers=3", "model.num_layers=4", "model.bias=false"])
    assert recipe.model.num_layers == 4
    assert (recipe.model.position, recipe.model.tied_embeddings) == ("learned", True)  # from the family
    assert recipe.model.bias is False  # said, against the family
    assert recipe.train.optimizer.weight_decay == 0.1  # default
    with pytest.raises(ValidationError):
        recipe.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "0.001", "1.0e-3", ".1e-2", "+1e-3"])
def test_scientific_notation_is_a_number(file: Path, text: str) -> None:
    assert load(file).train.optimizer.lr == 1e-3  # written 1e-3, which YAML 1.1 takes for a string
    assert load(file, [f"train.optimizer.lr={text}"]).train.optimizer.lr == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.num_layer=2", "model.num_layer: unknown key; did you mean `model.num_layers`?"),
        ("train.optimizer.weightdecay=0", "did you mean `train.optimizer.weight_decay`?"),
        (
            "data.sources.1.hub.splits=x",
            "data.sources.1.hub.splits: unknown key; did you mean `data.sources.1.hub.split`?",
        ),
        ("evaluation.perplexity.0.strides=4", "did you mean `evaluation.perplexity.0.stride`?"),
        ("trainn.steps=4", "trainn: unknown key; did you mean `train`?"),
        (
            "train.zero.qqq=4",
            "train.zero.qqq: unknown key; known keys: stage, offload_optimizer, offload_parameters",
        ),
    ],
)
def test_unknown_keys_have_a_path_and_a_neighbour(file: Path, override: str, words: str) -> None:
    assert words in problems(file, override)


def test_all_problems_are_reported_at_once(file: Path) -> None:
    message = problems(
        file, "train.steps=some", "seed=-1", "model.famly=x", "data.sources.7.name=x", "noequals", "name.x=1", "seed=[1"
    )
    assert "7 problems" in message
    for words in (
        "train.steps: Input should be a valid integer (given: 'some')",
        "model.famly: unknown key",
        "data.sources is a list; give an index below 2",
        "`noequals`: write it as a.b=value",
        "name is a single value, it has no `x`",
        "override `seed=[1` is not valid YAML",
    ):
        assert words in message, message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.tokens=100"], "exactly one of steps, tokens and epochs (given: steps, tokens)"),
        (["train.steps=null"], "exactly one of steps, tokens and epochs (given: none)"),
        (["model.num_heads=5"], "hidden_size 32 is not a multiple of num_heads 5"),
        (["model.num_kv_heads=3"], "num_heads 4 is not a multiple of num_kv_heads 3"),
        (["model.head_dim=5", "model.position=rope"], "position rope needs an even head width, not 5"),
        (["data.sources.0.name=web"], "source names must differ; repeated: web"),
        (["data.sources.0.hub={path: json}"], "give exactly one of `path` (files), `paths_file`"),
        (["data.tokenizer.kind=bpe"], "`path` and `kind: file` need each other"),
        (["model.num_layers=2.0"], "model.num_layers"),
        (["train.compile=1"], "train.compile"),
    ],
)
def test_settings_that_contradict_each_other(file: Path, overrides: list[str], words: str) -> None:
    assert words in problems(file, *overrides)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TEXT + "name: again\n", "line 12: the key `name` is given twice"),
        (TEXT.replace("num_layers: 2,", "num_layers: 2, num_layers: 3,"), "the key `num_layers` is given twice"),
        (TEXT + "? [a]\n: 2\n", "not valid YAML"),
        (TEXT + "7: x\n", "Keys should be strings"),
        (TEXT.replace("name: small", "name: 2024-01-01"), "name: Input should be a valid string"),
        ("- a list\n", "a recipe is a mapping of sections"),
        ("", "a recipe is a mapping of sections"),
        ("name: [\n", "not valid YAML"),
        (b"name: \xff\n", "not UTF-8"),
    ],
)
def test_files_that_are_no_recipe(file: Path, text: str | bytes, words: str) -> None:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert words in problems(file)


def test_a_missing_file_names_the_shipped_recipes(tmp_path: Path) -> None:
    message = problems(tmp_path / "demoo.yaml")
    assert "no such recipe" in message and "Did you mean `demo`?" in message and "zh-en-small" in message


def test_list_items_and_yaml_values_in_overrides(file: Path) -> None:
    weights = ["data.sources.0.weight=2", "data.sources.1.weight=1"]
    recipe = load(file, [*weights, "evaluation.samples.prompts=[a, b]", "deepspeed.comms_logger.verbose=true"])
    assert [source.weight for source in recipe.data.sources] == [2, 1]
    assert "give a weight to every source or to none of them (without one: web)" in problems(file, weights[0])
    assert recipe.evaluation.samples.prompts == ["a", "b"]
    assert recipe.deepspeed == {"comms_logger": {"verbose": True}}


def test_aliases_merge_and_are_not_shared(file: Path) -> None:
    sets = "[&p {name: a, path: x, stride: 4}, {<<: *p, name: b}]\n  translation: [&t {name: c, path: y}, *t]"
    file.write_text(TEXT.replace('[{name: held, path: "~/held.txt"}]', sets), encoding="utf-8")
    recipe = load(file, ["evaluation.translation.1.shots=1", "evaluation.translation.1.name=d"])
    assert [(item.name, item.stride) for item in recipe.evaluation.perplexity] == [("a", 4), ("b", 4)]
    assert [item.shots for item in recipe.evaluation.translation] == [4, 1]


def test_paths_are_relative_to_where_they_were_written(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    here = file.parent
    recipe = load(f"../configs/{file.name}")
    assert recipe.data.sources[0].path == [f"{elsewhere}/../configs/texts/a.txt", "/abs/b.txt"]
    recipe = load(file)
    assert recipe.data.sources[0].path == [str(here / "texts/a.txt"), "/abs/b.txt"]
    assert recipe.data.sources[1].hub is not None
    assert recipe.data.sources[1].hub.data_files == [str(here / "w.jsonl"), "https://example.org/x.jsonl"]
    assert recipe.data.tokenizer.path == str(here / "vocab")
    assert recipe.evaluation.perplexity[0].path == str(Path.home() / "held.txt")
    assert recipe.run_directory == elsewhere / "runs" / "small"
    assert recipe.data_directory == recipe.run_directory / "data"
    recipe = load(file, ["data.sources.0.path=mine.txt", "data.tokenizer={kind: file, path: v}", "data.directory=d"])
    assert recipe.data.sources[0].path == str(elsewhere / "mine.txt")
    assert recipe.data.tokenizer.path == str(elsewhere / "v")
    assert recipe.data_directory == elsewhere / "d"
    assert recipe.evaluation.perplexity[0].path == str(Path.home() / "held.txt")


def test_origins(file: Path) -> None:
    _, origins = load_with_origins(file, ["model.num_layers=3", "data.tokenizer={kind: byte}"])
    assert origins.of(("model", "num_layers")) == "override model.num_layers=3"
    assert origins.of(("data", "tokenizer", "kind")) == "override data.tokenizer={kind: byte}"
    assert origins.of(("model", "hidden_size")) == "small.yaml"
    assert origins.of(("data", "sources", 1, "hub", "path")) == "small.yaml"
    assert origins.of(("model", "qk_norm")) == "default"


def test_a_run_directory_gives_its_recipe_back_after_a_move(file: Path, tmp_path: Path) -> None:
    recipe = load(file, [f"out={tmp_path / 'run'}", "train.optimizer.eps=1e-15"])
    save(recipe, recipe.run_directory)
    assert load_run(tmp_path / "run") == recipe
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = load_run(tmp_path / "moved")
    assert moved == recipe.model_copy(update={"out": str(tmp_path / "moved")})
    assert moved.data_directory == tmp_path / "moved" / "data"
    with pytest.raises(RecipeError, match=r"not a run directory: it has no recipe\.yaml"):
        load_run(tmp_path)


def test_fingerprint_sees_settings_and_not_places(file: Path) -> None:
    plain = load(file).fingerprint()
    assert load(file, ["out=elsewhere", "data.directory=shared"]).fingerprint() == plain
    assert load(file, ["seed=1235"]).fingerprint() != plain
    assert load(file, ["data.sources.0.weight=3", "data.sources.1.weight=1"]).fingerprint() != plain
    code = f"from configs.schema.recipe import load; print(load({str(file)!r}).fingerprint())"
    other = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "7"}, cwd=Path(__file__).parents[4], capture_output=True
    )
    assert other.stdout.decode().strip() == plain


@pytest.mark.parametrize("preset", ["none", *PRESETS])
def test_defaults_written_out_say_the_same(file: Path, tmp_path: Path, preset: str) -> None:
    recipe = load(file, [f"data.preset={preset}"])
    (tmp_path / "full.yaml").write_text(dump(recipe), encoding="utf-8")
    assert load(tmp_path / "full.yaml") == recipe
    assert load(tmp_path / "full.yaml").fingerprint() == recipe.fingerprint()


@pytest.mark.parametrize(
    ("total", "micro", "ranks", "plan"),
    [(64, 4, 2, (4, 8)), (64, 64, 1, (64, 1)), (64, None, 1, (16, 4)), (6, None, 2, (3, 1)), (34, None, 1, (2, 17))],
)
def test_batch_equation(total: int, micro: int | None, ranks: int, plan: tuple[int, int]) -> None:
    solved = solve_batch(Train(steps=1, global_batch_size=total, micro_batch_size=micro), ranks)
    assert (solved.micro_batch, solved.accumulation) == plan
    assert solved.micro_batch * solved.accumulation * solved.ranks == solved.global_batch == total


@pytest.mark.parametrize(
    ("total", "micro", "ranks", "words"), [(10, None, 4, "over 4 ranks"), (12, 4, 2, "6 sequences per rank")]
)
def test_batch_equation_without_solution(total: int, micro: int | None, ranks: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        solve_batch(Train(steps=1, global_batch_size=total, micro_batch_size=micro), ranks)


@pytest.mark.parametrize(
    ("length", "windows", "steps"),
    [
        ("train.steps=7", 0, 7),
        ("train.tokens=128", 0, 1),
        ("train.tokens=129", 0, 2),
        ("train.epochs=1.0", 80, 10),
        ("train.epochs=1.0", 81, 11),
        ("train.epochs=0.5", 80, 5),
        ("train.epochs=0.001", 80, 1),
    ],
)
def test_total_steps(file: Path, length: str, windows: int, steps: int) -> None:
    """8 sequences of 16 tokens a step."""
    recipe: Recipe = load(file, ["train.steps=null", length])
    assert total_steps(recipe, windows) == steps


def test_a_preset_sets_defaults_that_can_be_set_alone(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        "name: r\ndata: {preset: fineweb, sources: [{name: s, path: a.txt}], language: {keep: [de]}}\n"
        "model: {}\ntrain: {steps: 1}\n"
    )
    recipe, origins = load_with_origins(file, ["data.dedup.near.similarity=0.7"])
    assert [rule.rule for rule in recipe.data.quality.rules][:2] == ["gopher_repetition", "gopher_quality"]
    assert (recipe.data.language.keep, recipe.data.language.min_confidence) == (["de"], 0.65)
    assert recipe.data.dedup.near is not None
    assert recipe.data.dedup.near.similarity == 0.7
    assert origins.of(("data", "language", "min_confidence")) == "preset fineweb"
    assert origins.of(("data", "language", "keep")) == "r.yaml"
    assert origins.of(("data", "unit_bytes")) == "default"


# ------------------------------------------------------------------------------------------------------ literal values
PLACES = [
    "runs/exp #3",
    "null",
    "~",
    "&a",
    "2024",
    "2024-01-02",
    "runs/a: b",
    "'q'",
    "12:30",
    "[x]",
    "{a}",
    "-x",
    "a=b",
]


@pytest.mark.parametrize("place", PLACES)
def test_what_options_say_is_taken_as_it_is(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(file, (), {"out": place}).run_directory == (tmp_path / place).resolve()
    recipe, origins = load_with_origins(file, ["seed=3"], {"out": place, "data.ray_address": place})
    assert (recipe.seed, recipe.data.ray_address) == (3, place)
    assert origins.of(("out",)) == f"override out={place}"
    for command in (["show", str(file), "--run-directory", f"--out={place}"],):
        assert replica(command) == 0
        assert capsys.readouterr().out.strip() == str((tmp_path / place).resolve())
    saved = load(save(recipe, tmp_path / "run"))
    assert saved.out == place


def test_an_empty_place_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["show", str(file), "--out", ""],
        ["doctor", str(file), "--out", ""],
        ["data", str(file), "--ray-address="],
    ):
        assert replica(words) == 2
        assert "at least 1 character" in capsys.readouterr().err
    assert train_command(["--recipe", str(file), "--out", ""]) == 2
    assert "out: String should have at least 1 character" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--out is empty"):
        Sweep(str(file), [], "")
    with pytest.raises(RecipeError, match=r"data.directory: .* at least 1 character"):
        load(file, ["data.directory=''"])


def test_a_sweep_writes_where_it_was_told(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = Sweep(str(file), [], "exp #3")
    recipe = sweep.recipe(Point("lr=1: x", []))
    assert recipe.run_directory == tmp_path / "exp #3" / "lr=1: x"


# ------------------------------------------------------------------------------------------------- a recipe's own name
def test_a_recipe_is_called_like_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nameless = TEXT.replace("name: small\n", "", 1)
    cases = {"mine.yaml": "mine", "my letters.yaml": "my-letters", "_x.yml": "x", "...yaml": "recipe"}
    for name, called in cases.items():
        (tmp_path / name).write_text(nameless)
        recipe = load(tmp_path / name)
        assert recipe.name == called and recipe.run_directory == tmp_path / "runs" / called
        check_name(tmp_path / name, recipe)


def test_a_copy_does_not_run_in_the_place_of_the_original(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = file.with_name("mine.yaml")
    mine.write_text(file.read_text())
    for command in ("run", "data", "train", "show", "doctor"):
        assert replica([command, str(mine)]) == 2
        said = capsys.readouterr().err
        assert "mine.yaml says `name: small`, so it would run in runs/small, the directory of small.yaml" in said
    assert train_command(["--recipe", str(mine)]) == 2
    assert "says `name: small`" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    for words in (["--out", "elsewhere"], ["name=mine"], ["out=elsewhere"], ["name=small"]):
        assert replica(["show", str(mine), "--run-directory", *words]) == 0, words
    assert replica(["show", str(file), "--run-directory"]) == 0
    resolved = save(load(file), tmp_path / "a run")
    assert replica(["show", str(resolved), "--run-directory"]) == 0, "a run's own recipe"


def test_the_fast_writer_writes_what_yaml_does() -> None:
    """And what can be read: libyaml alone would escape letters above U+FFFF."""
    values = {
        "prompts": [
            "学而时习之",
            "Zwölf 😀 boxers",
            "line 1\nline 2\n",
            " lead",
            "- a",
            "a: b",
            ": #x",
            "\x1b[31m",
            "x y " * 60,
        ],
        "numbers": [1e-5, 1e20, float("inf"), "1e5", "yes", "0x1", None, True],
        "empty": {"list": [], "text": ""},
    }
    form = {"sort_keys": False, "allow_unicode": True, "width": 120}
    for part in (values, *({"prompt": prompt} for prompt in values["prompts"])):  # type: ignore[attr-defined]
        assert to_yaml(part) == yaml.safe_dump(part, **form)  # type: ignore[arg-type]
    assert "😀" in to_yaml(values)
