"""The plan of the house, enforced over the syntax trees: who may import whom, and that importing does nothing.

configs <- data_prep <- pretrain <- eval <- launch; no imports the other way.
"""

from __future__ import annotations

import ast
import graphlib
import json
import os
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ["configs", "data_prep", "pretrain", "eval", "launch"]
FILES = sorted(file for layer in LAYERS for file in (ROOT / layer).rglob("*.py"))
MODULES = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in FILES]
KNOWN = frozenset(MODULES)
# The rooms of each package, from the ground up: a room (a folder, or a file beside the folders) imports only rooms that
# stand before it in its line.
ROOMS = {
    "configs": "safety common schema",
    "data_prep": "text sources readers extraction quality workers funnel chat documents decontamination dedup tokens "
    "selection stages __main__",
    "pretrain": "signals phases garbage rewards sizes batches model generation denoising parallel optimizer engine "
    "checkpoint interchange reliability metrics numerics rollout objectives loop session coding planning train",
    "eval": "results statistics text_metrics items contamination reading parts pairs people aggregate remarks "
    "comparison stage_facts currency chat_setting likelihood codec information generation summaries "
    "preference_accuracy harness scorer in_training scaling_law export_check lineage texts embedding suite report "
    "comparison_report __main__",
    "launch": "training_finished docs headlines trace_rollout trace processes run_stages planning models chat judging "
    "commands cli cluster",
}
# Class names that still mean two things.
TWO_CLASSES: dict[str, set[str]] = {}
# Heavy or optional packages, and the only places that may import them.
ONLY_IN = {
    "ray": (
        *("data_prep/workers/cluster.py", "data_prep/workers/private_ray.py", "data_prep/workers/worker_process.py"),
        "launch/",
    ),
    # deepspeed_estimate.py calls its estimators of memory, which need no engine.
    "deepspeed": ("pretrain/engine/", "pretrain/planning/deepspeed_estimate.py"),
    "constriction": ("pretrain/coding/entropy.py",),
    "torchao": ("pretrain/model/float8.py",),
    "torch": ("pretrain/", "eval/", "launch/"),
    "datasets": ("data_prep/", "eval/"),
    "transformers": ("eval/",),
    "ftfy": ("data_prep/",),
    "starlette": ("launch/chat/", "launch/judging/"),
    "uvicorn": ("launch/chat/",),
    "lm_eval": ("eval/", "data_prep/decontamination/benchmark_tasks.py"),
}


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def statements(file: Path) -> tuple[list[ast.Import | ast.ImportFrom], list[str]]:
    """Imports, and names of public classes: one walk over each file, which is most of the time of these tests."""
    nodes = [node for node in ast.walk(tree_of(file)) if isinstance(node, (ast.Import, ast.ImportFrom, ast.ClassDef))]
    classes = [node.name for node in nodes if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    return [node for node in nodes if not isinstance(node, ast.ClassDef)], classes


def imports(file: Path) -> Iterator[tuple[str, int]]:
    """Every imported module with its line, those inside functions and under TYPE_CHECKING too."""
    for node in statements(file)[0]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: write absolute imports"
            assert node.module is not None
            yield node.module, node.lineno


def test_every_folder_with_code_is_a_package_that_is_installed() -> None:
    """A folder without `__init__.py` works in a clone and is missing from the wheel."""
    folders = {file.parent.relative_to(ROOT).as_posix().replace("/", ".") for file in FILES}
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    assert options["namespaces"] is False
    assert folders == set(find_packages(str(ROOT), include=options["include"]))


def test_imports_point_to_the_left() -> None:
    """Of all files in one test: one for each took longer than looking."""
    wrong = []
    for file in FILES:
        name = file.relative_to(ROOT).as_posix()
        allowed = LAYERS[: LAYERS.index(name.split("/")[0]) + 1]
        for module, line in imports(file):
            top = module.split(".")[0]
            if top in LAYERS and top not in allowed:
                wrong.append(f"{name}:{line} imports {module}, which lies to its right")
            if top in ONLY_IN and not name.startswith(ONLY_IN[top]):
                wrong.append(f"{name}:{line}: {top} belongs in {', '.join(ONLY_IN[top])}")
    assert not wrong, "\n".join(wrong)


def room_of(module: str) -> tuple[str, str]:
    """`pretrain.model.attention` -> ("pretrain", "model")."""
    package, _, rest = module.partition(".")
    return package, rest.partition(".")[0]


@cache
def arrows() -> list[tuple[str, int, str]]:
    """(file, line, imported module) of all imports within a package, `from package.room import module` too."""
    found = []
    for file in FILES:
        package = file.relative_to(ROOT).parts[0]
        submodules = [
            (f"{node.module}.{alias.name}", node.lineno)
            for node in statements(file)[0]
            if isinstance(node, ast.ImportFrom) and (node.module == package or node.module in KNOWN)
            for alias in node.names
            if f"{node.module}.{alias.name}" in KNOWN
        ]
        for module, line in [*imports(file), *submodules]:
            if module.startswith(f"{package}."):
                found.append((file.relative_to(ROOT).as_posix(), line, module))
    return found


def test_every_room_stands_on_a_declared_floor() -> None:
    for package, rooms in ROOMS.items():
        found = {room_of(module)[1] for module in MODULES if module.startswith(f"{package}.")}
        assert found == set(rooms.split())


def test_rooms_import_only_rooms_below_them() -> None:
    """Imports inside functions and under TYPE_CHECKING count, so there can be no circle of rooms either."""
    wrong = []
    for file, line, module in arrows():
        package, below = room_of(module)
        rooms = ROOMS[package].split()
        own = room_of(file.removesuffix(".py").replace("/", "."))[1]
        if rooms.index(below) > rooms.index(own):
            wrong.append(f"{file}:{line} imports {module}, but {below} stands above {own}")
    assert not wrong, "\n".join(wrong)


def test_files_do_not_import_in_circles() -> None:
    """Of files that import each other, one can be read only after the other."""
    needs: dict[str, set[str]] = {module: set() for module in MODULES}
    for file, _, module in arrows():
        name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        if module in needs and module != name:
            needs[name].add(module)
    graphlib.TopologicalSorter(needs).prepare()  # raises CycleError, which names the circle


def test_no_two_files_of_a_package_have_the_same_name() -> None:
    """A name in a stack trace or a search must mean one file."""
    for package in LAYERS:
        names = Counter(file.name for file in (ROOT / package).rglob("*.py") if file.name != "__init__.py")
        assert [name for name, times in names.items() if times > 1] == []


def test_no_two_test_files_have_the_same_name() -> None:
    """pytest imports a test file by its bare name: of two equal ones the second cannot be collected in one run."""
    names = Counter(file.name for file in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, times in names.items() if times > 1] == []


def test_no_two_public_classes_of_a_package_have_the_same_name() -> None:
    """One word, one meaning: an error message or a pickled task must name one class."""
    for package in LAYERS:
        names = Counter(name for file in (ROOT / package).rglob("*.py") for name in statements(file)[1])
        assert {name for name, times in names.items() if times > 1} <= TWO_CLASSES.get(package, set()), package


def test_every_room_says_in_one_sentence_what_it_is_for() -> None:
    for file in FILES:
        if file.name == "__init__.py":
            sentence = ast.get_docstring(tree_of(file))
            assert sentence and sentence.splitlines()[0].endswith("."), f"{file}: say what the room is for"


def test_eval_is_never_imported_by_its_bare_name() -> None:
    """`import eval` hides a builtin."""
    assert not [(file, line) for file in FILES for module, line in imports(file) if module == "eval"]


def test_no_file_of_pretrain_hides_a_module() -> None:
    """`deepspeed pretrain/train.py` puts pretrain/ first on sys.path."""
    # A name of the standard library, of an installed distribution, or of one of our own packages.
    taken = set(sys.stdlib_module_names) | set(packages_distributions()) | set(LAYERS)
    names = {path.stem for path in (ROOT / "pretrain").iterdir() if path.suffix == ".py" or path.is_dir()}
    hidden = (names - {"__init__", "__pycache__"}) & taken
    assert not hidden, f"rename {sorted(hidden)}"


# Imports every module in one fresh process, in an empty directory, and tells what that did.
PROBE = """
import importlib, json, os, sys, threading
report = {}
for name in sys.argv[1:]:
    before = set(sys.modules)
    importlib.import_module(name)
    report[name] = sorted({module.split(".")[0] for module in set(sys.modules) - before})
sys.stdout.flush()
json.dump({"loaded": report, "threads": threading.active_count(), "files": os.listdir(".")}, sys.stderr)
"""


def probe(modules: list[str], directory: Path) -> dict[str, object]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", PROBE, *modules]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", f"importing prints: {done.stdout}"
    report: dict[str, object] = json.loads(done.stderr)
    return report


@pytest.mark.slow
def test_importing_does_nothing(tmp_path: Path) -> None:
    report = probe([name for name in MODULES if name != "pretrain.engine.engine"], tmp_path)
    assert report["files"] == [] and report["threads"] == 1


def test_entry_points_import_little(tmp_path: Path) -> None:
    """Help texts and skipped stages must not wait for torch, ray or datasets."""
    light = [name for name in MODULES if name.split(".")[0] in ("configs", "data_prep")]
    loaded = probe([*light, "launch.cli", "eval.__main__", "pretrain.interchange.exportable"], tmp_path)["loaded"]
    assert isinstance(loaded, dict)
    heavy = {"torch", "ray", "datasets", "transformers", "deepspeed", "lm_eval", "matplotlib"}
    for name, modules in loaded.items():
        assert not heavy & set(modules), f"importing {name} loads {heavy & set(modules)}"
