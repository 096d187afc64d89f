"""The documentation site: every page is in its nav, the API pages follow the files, links out of docs/ work."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

pytest.importorskip("mkdocs", reason="pip install -e '.[docs]'")
ROOT = Path(__file__).resolve().parents[2]
MKDOCS: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def reference() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "docs" / "site" / "pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def in_nav(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    else:
        for child in node.values() if isinstance(node, dict) else node:
            yield from in_nav(child)


def test_every_page_stands_in_the_nav_once_and_the_nav_names_no_other(reference: ModuleType) -> None:
    pages = {file.relative_to(ROOT / "docs").as_posix() for file in (ROOT / "docs").rglob("*.md")}
    pages |= {place for name, place in reference.ROOT_PAGES.items() if (ROOT / name).is_file()}
    listed = sorted(in_nav(MKDOCS["nav"]))
    assert listed == sorted(pages), "each page of docs/ needs a line in the nav of mkdocs.yml"


def test_warnings_are_errors_and_nothing_is_fetched_by_readers() -> None:
    assert MKDOCS["strict"] is True and MKDOCS["theme"]["font"] is False
    checks = {**MKDOCS["validation"]["nav"], **MKDOCS["validation"]["links"]}
    assert set(checks.values()) == {"warn"} and {"anchors", "omitted_files", "unrecognized_links"} <= set(checks)


def test_each_module_has_its_place_in_the_api(reference: ModuleType) -> None:
    pages = "\n".join(reference.page(room) for room in reference.rooms())
    files = [file for package in reference.PACKAGES for file in (ROOT / package).rglob("*.py")]
    names = [reference.dotted(file) for file in files if not file.name.startswith("_")]
    assert len(names) > 100 and not [name for name in names if pages.count(f"\n::: {name}\n") != 1]


def test_every_docstring_is_understood(reference: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    """Else `make docs-site` ends with an error, half a minute later."""
    griffe = pytest.importorskip("griffe")
    loader = griffe.GriffeLoader(search_paths=[ROOT], docstring_parser=griffe.Parser.google, allow_inspection=False)

    def read(node: Any) -> int:
        found = int(node.docstring is not None and bool(node.docstring.parsed))
        return found + sum(read(member) for member in node.members.values() if not member.is_alias)

    with caplog.at_level(logging.WARNING):
        assert sum(read(loader.load(package)) for package in reference.PACKAGES) > 1000
    assert not caplog.messages


def test_a_room_shows_its_own_words_then_what_is_in_it(reference: ModuleType, tmp_path: Path) -> None:
    room = tmp_path / "eval" / "likelihood"
    room.mkdir(parents=True)
    (room.parent / "__init__.py").write_text('"""Scores."""\n')
    (room / "__init__.py").write_text('"""Likelihoods | of texts.\n\nMore."""\n')
    (room / "scoring.py").write_text('"""Adds <one> text\'s\nlog-likelihoods.\n\nMore."""\n')
    (room / "_hidden.py").write_text("")
    top, inner = reference.page(room.parent, tmp_path), reference.page(room, tmp_path)
    assert top.startswith("::: eval\n") and "| [`likelihood/`](likelihood.md) | Likelihoods \\| of texts. |" in top
    assert "| [`scoring`](#eval.likelihood.scoring) | Adds &lt;one> text's log-likelihoods. |" in inner
    assert "::: eval.likelihood.scoring" in inner and "_hidden" not in inner
    assert [reference.address(room, tmp_path) for room in (room.parent, room)] == [
        "api/eval/index.md",
        "api/eval/likelihood.md",
    ]


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("[a](../configs/common/files.py)", "[a](api/configs/common.md#configs.common.files)"),
        ("[the `x`](../data_prep/readers)", "[the `x`](api/data_prep/readers.md)"),
        ("[a](../data_prep)", "[a](api/data_prep/index.md)"),
        ("[a](../configs/demo.yaml)", "[a](https://code.example/blob/main/configs/demo.yaml)"),
        ("[a](../examples/custom_reader.py)", "[a](examples.md#custom_reader)"),
        ("[a](../CHANGELOG.md#unreleased)", "[a](changelog.md#unreleased)"),
        ("[a](../not-there.py)", "[a](../not-there.py)"),
        ("[a](data.md) and ![b](../docs/images/funnel.png)", "[a](data.md) and ![b](../docs/images/funnel.png)"),
    ],
)
def test_links_out_of_the_documents_lead_somewhere(reference: ModuleType, written: str, shown: str) -> None:
    assert reference.repointed(written, "tutorial.md", "https://code.example/") == shown


def test_without_an_address_of_the_repository_a_link_to_it_is_text(reference: ModuleType) -> None:
    assert reference.repointed("see [a](../configs/demo.yaml)", "tutorial.md", None) == "see a"


def test_links_of_a_page_of_the_root_are_those_of_docs(reference: ModuleType) -> None:
    text = "[a](docs/data.md#x) [b](https://x.example) [c](#here) [d](configs/demo.yaml)"
    made = "[a](data.md#x) [b](https://x.example) [c](#here) [d](../configs/demo.yaml)"
    assert reference.as_in_docs(text, "CHANGELOG.md") == made
    assert (
        reference.as_in_docs("[a](../docs/data.md) [b](x.py)", "examples/README.md")
        == "[a](data.md) [b](../examples/x.py)"
    )
