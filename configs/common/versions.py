"""Identifies the code and libraries in use: one rule for every stage that is skipped when nothing changed.

Prepared data, scores and pages are current when their inputs, settings and code are unchanged. The code is identified
by a digest of its source files, so nobody has to increase a version number by hand.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from configs.common.files import fingerprint, sha256_file

ROOT = Path(__file__).parents[2]
_READ_AT_RUN_TIME = (".py", ".json", ".css", ".j2", ".js")
_DISTRIBUTION = "gpt-replica"


def code_files(*places: str) -> list[Path]:
    """Lists the source files of rooms (`data_prep/text`) and modules (`eval/scorer`), also tables and templates.

    Raises:
        FileNotFoundError: a room or module that does not exist. A forgotten rename must not drop code from a
            fingerprint.
    """
    files: list[Path] = []
    for place in places:
        path = _root(place) / place
        if path.is_dir():
            files += [file for file in path.rglob("*.*") if file.suffix in _READ_AT_RUN_TIME]
        else:
            file = path if path.suffix in _READ_AT_RUN_TIME else path.with_name(f"{path.name}.py")
            if not file.is_file():
                raise FileNotFoundError(f"{file} is part of a code version, but does not exist; correct its name there")
            files.append(file)
    return sorted(set(files))


@cache
def code_version(*places: str) -> str:
    """Computes a digest of the source files of these rooms and modules, with their paths."""
    return fingerprint(
        {file.relative_to(_root(place)).as_posix(): sha256_file(file) for place in places for file in code_files(place)}
    )


def _root(place: str) -> Path:
    """Returns the directory that holds the package of a place: a Ray node unpacks each package into one of its own."""
    package = place.split("/")[0]
    if (ROOT / package).is_dir():
        return ROOT
    found = find_spec(package)
    locations = found.submodule_search_locations if found else None
    return Path(next(iter(locations))).parent if locations else ROOT


def installed(distribution: str) -> str | None:
    """Returns the version of an installed distribution; None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def own_version() -> str:
    """Returns the version of Replica; `unknown` in a clone that was not installed."""
    return installed(_DISTRIBUTION) or "unknown"


def git_commit() -> str | None:
    """Returns the commit of the clone that this code runs from, read from `.git`; None outside of a clone."""
    git = ROOT / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        named = head.removeprefix("ref: ")
        commit = head if named == head else (git / named).read_text(encoding="utf-8").strip()
    except OSError:
        commit = None
    return os.environ.get("GITHUB_SHA") or commit
