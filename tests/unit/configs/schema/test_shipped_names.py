"""Recipes that ship are known by name everywhere; a file of that name in the working directory is never mistaken."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from configs.schema.recipe import RecipeError, check_name, load
from configs.schema.shipped import find_recipe, shipped_recipes
from launch.cli import parse

SHIPPED = shipped_recipes()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", SHIPPED)
def test_each_is_found_by_name_and_runs_in_its_own_place(name: str, elsewhere: Path) -> None:
    recipe = load(name)
    check_name(name, recipe)
    assert recipe.run_directory == elsewhere / "runs" / name
    assert recipe == load(SHIPPED[name])


def test_a_file_with_exactly_that_name_is_the_recipe(elsewhere: Path) -> None:
    (elsewhere / "demo").write_bytes(SHIPPED["demo"].read_bytes())
    assert find_recipe("demo") == Path("demo") and find_recipe("./demo") == Path("demo")


def test_a_directory_with_that_name_is_none(elsewhere: Path) -> None:
    (elsewhere / "demo").mkdir()
    assert find_recipe("demo") == SHIPPED["demo"]


def test_a_copy_beside_is_a_conflict_and_both_can_be_named(elsewhere: Path) -> None:
    (elsewhere / "demo.yaml").write_bytes(SHIPPED["demo"].read_bytes())
    with pytest.raises(
        RecipeError, match=r"demo is a recipe that ships, and demo\.yaml lies here: write \./demo\.yaml, or"
    ):
        load("demo")
    assert find_recipe("./demo.yaml") == Path("demo.yaml") and find_recipe(SHIPPED["demo"]) == SHIPPED["demo"]


def test_beside_the_shipped_ones_there_is_no_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SHIPPED["demo"].parent)
    assert find_recipe("demo").samefile(SHIPPED["demo"])


@pytest.mark.parametrize(
    ("written", "meant"),
    [("configs/demo.yaml", "demo"), ("demo.yaml", "demo"), ("mine", "mine.yaml"), ("deom", "demo"), ("nowhere", None)],
)
def test_what_is_not_there_names_the_nearest(written: str, meant: str | None, elsewhere: Path) -> None:
    (elsewhere / "mine.yaml").write_text("{}")
    with pytest.raises(RecipeError) as caught:
        load(written)
    message = str(caught.value)
    assert message.startswith(f"{written}: no such recipe.") and "demo, diffusion, dna, " in message
    assert ("Did you mean" in message) == (meant is not None) and (meant is None or f"`{meant}`" in message)


def test_a_name_behind_files_is_the_recipe() -> None:
    found: Namespace = parse(["tokenizer", "compare", "--files", "a.json", "b.json", "demo"])
    assert found.recipe == "demo" and found.files == ["a.json", "b.json"]
