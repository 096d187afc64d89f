"""What the recipe's evaluation section and `replica sample` refuse, and how broken sets are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from configs.schema.data import Normalize
from configs.schema.evaluation import Benchmarks, Evaluation, PerplexitySet, Samples
from configs.schema.pair_sets import TranslationSet
from configs.schema.recipe import Recipe, RecipeError, load
from data_prep.decontamination.evaluation_sets import read_items, read_texts
from data_prep.decontamination.pair_files import read_all_pairs
from launch.cli import parse
from tests.parts.training_run import write_recipe


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        (Evaluation, {"perplexity": [{"name": "a", "path": "x"}, {"name": "a", "path": "y"}]}, "repeated: a"),
        (Evaluation, {"translation": [{"name": "b", "path": "x"}] * 2}, "names of translation sets must differ"),
        (Benchmarks, {"tasks": ["c", "d", "c"]}, "tasks must differ; repeated: c"),
        (PerplexitySet, {"name": "a/b", "path": "x"}, "name"),
        (TranslationSet, {"name": "a b", "path": "x"}, "name"),
        (Samples, {"prompts": ["\udcff"]}, "not a character"),
        (Samples, {"top_p": 0.0}, "top_p"),
        (Samples, {"temperature": float("nan")}, "finite"),
    ],
)
def test_refused_at_the_recipe(section: type[BaseModel], values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        section.model_validate(values)


def test_one_name_may_stand_in_both_lists() -> None:
    one = {"name": "wmt", "path": "x"}
    assert Evaluation.model_validate({"perplexity": [one], "translation": [one]}).perplexity[0].name == "wmt"


def numbers(model: type[BaseModel], path: str = "") -> list[str]:
    """Dotted paths of all float settings that can be reached without a list."""
    found = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += numbers(kind, f"{path}{name}.")
        elif "float" in str(kind) and "dict" not in str(kind):
            found.append(f"{path}{name}")
    return found


def test_no_setting_is_infinite(tmp_path: Path) -> None:
    """Every float of every section, and those in lists; the key is named."""
    recipe = write_recipe(tmp_path / "recipe.yaml", tmp_path / "data")
    names = [*numbers(Recipe), "data.sources.0.max_epochs", "data.sources.0.weight"]
    assert len(names) > 20
    for name in names:
        for value in (".inf", "-.inf", ".nan"):
            with pytest.raises(RecipeError, match=name.replace(".", r"\.")):
                load(recipe, [f"{name}={value}"])


# ------------------------------------------------------------------------------------------------------------- sampling
@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--top-k", "-1", "expected a whole number of 0 or more, got '-1'"),
        ("--top-k", "x", "--top-k"),
        ("--top-p", "0", "probability above 0"),
        ("--top-p", "1.5", "probability above 0"),
        ("--top-p", "nan", "got 'nan'"),
        ("--temperature", "nan", "got 'nan'"),
        ("--temperature", "inf", "got 'inf'"),
        ("--temperature", "-0.1", "expected a number of 0 or more"),
        ("--seed", "99999999999999999999", "expected a whole number from"),
        ("--seed", "1.5", "expected a whole number from"),
        ("--max-new-tokens", "-3", "--max-new-tokens"),
        ("--prompt", "caf\udcff", "expected text in UTF-8"),
    ],
)
def test_samplings_that_cannot_be(option: str, value: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(["sample", "runs/x", "--prompt", "a", f"{option}={value}"])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2 and words in error and option in error


def test_samplings_that_can_be() -> None:
    arguments = parse(["sample", "x", "--prompt=", "--top-k=0", "--top-p=1", "--temperature=1e-45", "--seed=-1"])
    assert (arguments.top_k, arguments.top_p, arguments.temperature, arguments.seed) == (0, 1.0, 1e-45, -1)


# ----------------------------------------------------------------------------------------------------------------- sets
def lines(path: Path, *texts: str) -> str:
    path.write_text("".join(f"{text}\n" for text in texts))
    return str(path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": broken', "record 2, is not a document .invalid_json"),
        ('{"txt": "no field"}', "record 2, is not a document .missing_text"),
        ('{"text": null}', "record 2, is not a document .missing_text"),
        ('{"text": "half \\ud800"}', "record 2, is not a document .invalid_utf8"),
        ("[1]", "record 2, is not a document .invalid_json"),
    ],
)
def test_a_broken_record_of_a_scored_set_is_an_error(tmp_path: Path, line: str, words: str) -> None:
    """A score of the others alone would pass for one of the whole set."""
    path = lines(tmp_path / "set.jsonl", '{"text": "good"}', line, '{"text": "good too"}')
    with pytest.raises(ValueError, match=f"perplexity set `p`: set.jsonl, {words}"):
        read_texts(PerplexitySet(name="p", path=path), Normalize())


def test_a_broken_record_of_a_set_to_keep_out_of_training_is_an_error(tmp_path: Path) -> None:
    """Its documents would be trained on without a word."""
    path = lines(tmp_path / "set.jsonl", '{"text": "good"}', '{"text": broken')
    settings = f"data.decontaminate={{files: [{path}], evaluation: false}}"
    recipe = load(write_recipe(tmp_path / "recipe.yaml", tmp_path / "data"), [settings])
    with pytest.raises(ValueError, match=r"decontaminate\.files: set.jsonl, record 2"):
        list(read_items(recipe))


def test_blank_lines_and_empty_texts_are_no_error(tmp_path: Path) -> None:
    path = lines(tmp_path / "set.jsonl", '{"text": "good"}', "", '{"text": ""}', '{"text": " "}', '{"text": "too"}')
    item = PerplexitySet(name="p", path=path)
    assert read_texts(item, Normalize()) == ["good", " ", "too"]
    assert read_texts(item.model_copy(update={"normalize": "training"}), Normalize()) == ["good", "too"]


def test_half_a_character_in_a_pair(tmp_path: Path) -> None:
    rows = [json.dumps({"source": "a", "target": text}) for text in ("b", "c \udc80")]
    with pytest.raises(ValueError, match=r"item 2 of .* surrogate"):
        read_all_pairs(TranslationSet(name="t", path=lines(tmp_path / "pairs.jsonl", *rows)))
