"""What is current: one digest of the code for prepared data, nodes, scores and pages."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from configs.common import versions
from configs.common.versions import ROOT, code_files, code_version
from data_prep.stages import graph
from eval import currency
from eval.report import stamp

# What pages and scores read but are not made by: the recipe's schema, which the fingerprint of the recipe covers, files
# as such, and what finds checkpoints and data.
NOT_MAKING = (
    "configs/schema",
    "configs/common",
    "configs/safety",
    "pretrain/checkpoint",
    "pretrain/phases",
    "pretrain/signals",
    "eval/currency",
    "data_prep/sources",
    "data_prep/workers",
)


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sources in a folder of their own, where they may be edited."""
    for file in [*code_files("configs/common", "data_prep", "eval"), ROOT / "configs/safety/terminal.py"]:
        target = tmp_path / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    code_version.cache_clear()
    yield tmp_path
    code_version.cache_clear()


def edited(file: Path, *places: str) -> bool:
    """Whether another line in the file makes another version of these places."""
    before = code_version(*places)
    file.write_bytes(file.read_bytes() + b"\n/* */\n")
    code_version.cache_clear()
    return code_version(*places) != before


@pytest.mark.parametrize(
    "file",
    [
        "configs/common/style.css",
        "data_prep/funnel/table.py",
        "eval/report/page.html.j2",
        "configs/common/rendering.py",
    ],
)
def test_whatever_draws_the_page_makes_it_anew(file: str, copied: Path) -> None:
    places = [place for place in stamp.CODE if (copied / place).exists() or (copied / f"{place}.py").exists()]
    assert edited(copied / file, *places)


def test_nodes_are_compared_file_by_file(copied: Path) -> None:
    """Files of the same name in two rooms are two files: each of them is looked at."""
    names = [file.name for file in code_files("data_prep")]
    twice = next(file for file in code_files("data_prep") if names.count(file.name) > 1)
    assert edited(copied / twice.relative_to(copied), "data_prep")


def test_a_place_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match="no_such_module"):
        code_version("data_prep/no_such_module")


def imported(file: Path) -> set[str]:
    """Modules of the project that a file imports, as `package/room/module`."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for name in [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]:
                if (ROOT / f"{name.replace('.', '/')}.py").is_file():
                    found.add(name.replace(".", "/"))
    return found


@pytest.mark.parametrize("places", [stamp.CODE, currency.CODE], ids=["page", "scores"])
def test_nothing_that_makes_scores_or_pages_is_left_out(places: tuple[str, ...]) -> None:
    covered = {file.relative_to(ROOT).with_suffix("").as_posix() for file in code_files(*places)}
    needed = {name for file in code_files(*places) if file.suffix == ".py" for name in imported(file)}
    left_out = {name for name in needed - covered if not name.startswith(NOT_MAKING)}
    assert not left_out


def test_what_a_score_calls_is_part_of_its_code() -> None:
    """`eval/suite` hands it to the scorer, so no import of the scorer's leads there."""
    covered = {file.relative_to(ROOT).as_posix() for file in code_files(*currency.CODE)}
    assert {"pretrain/objectives/reward_scorer.py", "pretrain/objectives/reward_modelling.py"} <= covered


def test_every_stage_of_the_data_names_code_that_exists() -> None:
    for places in (graph.DOCUMENT_CODE, graph.TOKENIZER_CODE, graph.PACKING_CODE):
        assert code_files(*(f"data_prep/{place}" for place in places))


def test_packages_that_lie_apart_have_the_same_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Ray node each package lies in a folder of its own."""
    names = ("data_prep", "configs", "data_prep/text", "eval/scorer")
    here = [code_version(name) for name in names]
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    code_version.cache_clear()
    assert [code_version(name) for name in names] == here
    code_version.cache_clear()
    with pytest.raises(FileNotFoundError, match="no_package"):
        code_version("no_package/module")
