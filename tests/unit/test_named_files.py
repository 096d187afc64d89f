"""Files, modules and pages that comments and docstrings name exist: a rename must not leave readers at an old name."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("configs", "data_prep", "pretrain", "eval", "launch")
FOLDERS = (*PACKAGES, "tests", "benchmarks", "examples")
FILES = sorted(
    file
    for folder in FOLDERS
    for file in (ROOT / folder).rglob("*.*")
    if file.suffix in (".py", ".sh", ".yaml") and file != Path(__file__).resolve()
)
ELSEWHERE = {"tests/eval_common.py", "configs/letters.yaml"}  # trafilatura's; a copy that the user makes
_PACKAGE = "|".join(PACKAGES)
# `name.py`, `room/name.py`; package/room/name.py; docs/page.md
_PATHS = (
    re.compile(r"`([a-z_][\w/]*\.(?:py|sh))`"),
    re.compile(rf"(?<![\w/.])((?:{_PACKAGE}|benchmarks)/[\w/]+\.(?:py|sh|yaml|css))\b"),
    re.compile(r"(?<![\w/.])(docs/[\w/-]{2,}\.md)\b"),
)
_DOTTED = re.compile(rf"`((?:{_PACKAGE})(?:\.\w+)+)`")


@cache
def names_of_files() -> frozenset[str]:
    """Every ending of a path in the repository: `name.py`, `room/name.py`, `package/room/name.py`."""
    paths = [path.relative_to(ROOT) for folder in (*FOLDERS, "docs") for path in (ROOT / folder).rglob("*.*")]
    return frozenset("/".join(path.parts[start:]) for path in paths for start in range(len(path.parts)))


def prose(file: Path) -> str:
    """The docstrings and comments of a file."""
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".py":
        return "\n".join(line for line in text.splitlines() if line.lstrip().startswith("#"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, documented)]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return "\n".join(found + [token.string for token in tokens if token.type == tokenize.COMMENT])


def is_defined(dotted: str) -> bool:
    """Whether a dotted name is a module, or a name at the top level of one (or an attribute of that)."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        module = ROOT.joinpath(*parts[:end])
        if module.is_dir() and end == len(parts):
            return True
        file = module.with_suffix(".py")
        if file.is_file():
            return end == len(parts) or re.search(rf"\b{parts[end]}\b", file.read_text(encoding="utf-8")) is not None
    return False


def missing(text: str) -> set[str]:
    """Names in a text that are no file of the repository and no module."""
    paths = {name for pattern in _PATHS for name in pattern.findall(text)}
    return (paths - names_of_files() - ELSEWHERE) | {name for name in _DOTTED.findall(text) if not is_defined(name)}


def missing_in(file: Path) -> set[str]:
    """The same for the prose of a file; most files name nothing that is missing, and need no parsing."""
    return missing(prose(file)) if missing(file.read_text(encoding="utf-8")) else set()


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_file_that_is_named_exists(folder: str) -> None:
    files = [file for file in FILES if file.relative_to(ROOT).parts[0] == folder]
    assert not {f"{file.relative_to(ROOT)}: {name}" for file in files for name in missing_in(file)}


def test_an_old_name_is_found() -> None:
    gone = "see `old_name.py`, pretrain/old_room/file.py, `eval.suite.no_such_name` and docs/no-page.md"
    assert missing(gone) == {"old_name.py", "pretrain/old_room/file.py", "eval.suite.no_such_name", "docs/no-page.md"}
    assert not missing("see `eval/suite.py`, `suite.py`, `eval.suite`, `eval.suite.evaluate` and docs/resume.md")
