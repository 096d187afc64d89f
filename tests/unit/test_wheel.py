"""A wheel is built, installed and used away from the clone: nothing that a run reads is missing from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.import_all import PACKAGES, modules

ROOT = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
BUILD = "from setuptools import build_meta; build_meta.build_wheel('dist')"
IMPORT = """
import importlib, sys
for name in sys.argv[1:]:
    print(importlib.import_module(name).__file__)
"""
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Installed:
    """A wheel and the folder that it was installed into."""

    wheel: Path
    folder: Path

    def run(self, directory: Path, *command: object) -> str:
        """Output of a command that sees the installed packages, and neither the clone nor its working directory."""
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "300"}
        done = subprocess.run(
            [sys.executable, *map(str, command)], cwd=directory, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    # In a copy: setuptools leaves its build folder and metadata beside the sources, and takes old files from there.
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-c", BUILD], cwd=source, check=True, capture_output=True)
    (wheel,) = (source / "dist").glob("*.whl")
    command = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--target", folder, wheel]
    subprocess.run([sys.executable, *map(str, command)], check=True)
    return Installed(wheel, folder)


def test_the_wheel_holds_what_the_packages_hold(installed: Installed) -> None:
    inside = {name for name in zipfile.ZipFile(installed.wheel).namelist() if ".dist-info/" not in name}
    files = (file.relative_to(ROOT) for package in PACKAGES for file in (ROOT / package).rglob("*") if file.is_file())
    expected = {file.as_posix() for file in files if not {"__pycache__"} & set(file.parts) and file.name[0] != "."}
    assert sorted(expected - inside) == [] and sorted(inside - expected) == []
    assert {f"{package}/py.typed" for package in PACKAGES} <= inside
    assert {"configs/demo.yaml", "configs/corpus/gutenberg-train.jsonl.zst", "launch/slurm.sh"} <= inside


def test_the_command_knows_its_version_and_the_shipped_recipes(installed: Installed, tmp_path: Path) -> None:
    replica = installed.folder / "bin" / "replica"
    assert installed.run(tmp_path, replica, "--version") == f"replica {VERSION}\n"
    shown = installed.run(tmp_path, replica, "show", "demo", "train.tokens=4096")
    assert str(installed.folder / "configs" / "corpus") in shown and str(ROOT) not in shown
    assert not list(tmp_path.iterdir())


def test_every_module_is_imported_from_the_wheel(installed: Installed, tmp_path: Path) -> None:
    names = list(modules())
    files = installed.run(tmp_path, "-c", IMPORT, *names).splitlines()
    assert len(files) == len(names) > 200
    assert all(Path(file).is_relative_to(installed.folder) for file in files)
