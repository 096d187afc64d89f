"""Tells which code and which libraries are at work: one rule for everything that is skipped when nothing changed.

Prepared data, scores and pages are current when their inputs, their settings and the code that made them are the same.
The code is a digest of source files, so nobody has to raise a number by hand.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from configs.common.files import fingerprint, sha256_file

ROOT = Path(__file__).parents[2]
_READ_AT_RUN_TIME = (".py", ".json", ".css", ".j2", ".js")
_DISTRIBUTION = "gpt-replica"


def code_files(*places: str) -> list[Path]:
    """The source files of rooms (`data_prep/text`) and modules (`eval/scorer`), with tables, templates and styles.

    Raises:
        FileNotFoundError: a place that does not exist: a forgotten rename must not leave code out of a fingerprint.
    """
    files: list[Path] = []
    for place in places:
        path = ROOT / place
        if path.is_dir():
            files += [file for file in path.rglob("*.*") if file.suffix in _READ_AT_RUN_TIME]
        else:
            file = path if path.suffix in _READ_AT_RUN_TIME else path.with_name(f"{path.name}.py")
            if not file.is_file():
                raise FileNotFoundError(f"{file} is named in a version of the code, and does not exist")
            files.append(file)
    return sorted(set(files))


@cache
def code_version(*places: str) -> str:
    """Digest of the source files of these places, by their paths: files of the same name in two rooms are two."""
    return fingerprint({file.relative_to(ROOT).as_posix(): sha256_file(file) for file in code_files(*places)})


def installed(distribution: str) -> str | None:
    """The version of an installed distribution; None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def own_version() -> str:
    """The version of Replica; `unknown` where it runs from a clone that was not installed."""
    return installed(_DISTRIBUTION) or "unknown"


def git_commit() -> str | None:
    """Commit of the checkout that this code runs from, read from `.git` itself; None outside of one."""
    git = ROOT / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        named = head.removeprefix("ref: ")
        commit = head if named == head else (git / named).read_text(encoding="utf-8").strip()
    except OSError:
        commit = None
    return os.environ.get("GITHUB_SHA") or commit
