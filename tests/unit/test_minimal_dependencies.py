"""A node that trains needs the first group of dependencies alone: every module can be imported with nothing else."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from tests.import_all import NEED_MORE, Without, hidden_modules

ROOT = Path(__file__).resolve().parents[2]


def test_every_module_can_be_imported_with_the_first_group_alone() -> None:
    command = [sys.executable, "-B", "tests/import_all.py", "--minimal"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.startswith("0 of ")


def test_the_exceptions_are_modules() -> None:
    assert all((ROOT / name.replace(".", "/")).with_suffix(".py").is_file() for name in NEED_MORE)


def test_the_optional_packages_are_hidden_and_the_first_group_is_not() -> None:
    hidden = hidden_modules()
    finders = [Without(finder, hidden) for finder in sys.meta_path]

    def is_found(name: str) -> bool:
        return any(finder.find_spec(name) is not None for finder in finders)

    assert all(map(is_found, ("numpy", "torch", "tokenizers", "configs", "json")))
    assert all(map(importlib.util.find_spec, ("ray", "transformers", "lm_eval", "orjson", "lxml")))
    assert not any(map(is_found, ("ray", "transformers", "lm_eval", "orjson", "lxml")))


def test_a_recipe_that_is_scored_elsewhere_can_be_used_with_the_first_group_alone() -> None:
    code = "from tests.import_all import hide; hide(); from launch.cli import main; exit(main(['show', 'demo']))"
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sacrebleu is not installed" in done.stderr and "lm-eval is not installed" in done.stderr
