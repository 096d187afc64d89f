"""Names in the documents lead somewhere: links, anchors, `docs/x.md` in code, files in backticks, rooms."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "configs" / "tasks" / "README.md"]
PACKAGES = ("configs", "data_prep", "pretrain", "eval", "launch", "benchmarks", "examples")


def _prose(page: Path) -> str:
    return re.sub(r"^( *)```.*?^\1```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", _prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.strip().lower()).replace(" ", "-") for title in titles}


def _unknown(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    file = page.parent / name if name else page
    return not file.exists() or bool(anchor and file.suffix == ".md" and anchor not in _anchors(file))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`(?!\])", "", _prose(page)))
    assert not [link for link in links if "://" not in link and not link.startswith("mailto:") and _unknown(page, link)]


def _is_history(page: Path) -> bool:
    """Names files as they were called on its day."""
    return page.name in {"CHANGELOG.md", "lab-notes.md"} or page.parent.name == "decisions"


@pytest.mark.parametrize("page", [page for page in PAGES if not _is_history(page)], ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(rf"`((?:{'|'.join(PACKAGES)}|tests)/[\w/.-]+\.(?:py|sh|yaml|md))`", _prose(page))
    assert not [name for name in named if not (ROOT / name).exists()]


def test_pages_that_code_and_messages_name_exist() -> None:
    files = [
        file for package in PACKAGES for file in (ROOT / package).rglob("*") if file.suffix in {".py", ".sh", ".yaml"}
    ]
    named = {
        (file.relative_to(ROOT).as_posix(), page)
        for file in [*files, *PAGES]
        for page in re.findall(r"(?<![\w/])docs/[\w-]+\.md", file.read_text(encoding="utf-8"))
    }
    assert len(named) > 20
    assert not [pair for pair in named if not (ROOT / pair[1]).is_file()]


def test_every_room_stands_in_the_architecture_with_its_own_sentence() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = [file for package in PACKAGES[:5] for file in sorted((ROOT / package).glob("*/__init__.py"))]
    assert len(rooms) > 25
    for file in rooms:
        words = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
        assert words, file
        row = f"| `{file.parent.relative_to(ROOT).as_posix()}/` | {words.splitlines()[0]} | `"
        assert row in page, row
        assert (file.parent / page.split(row)[1].partition("`")[0]).is_file(), row


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert not [name for name in sorted(pages) if f"({name})" not in index]
