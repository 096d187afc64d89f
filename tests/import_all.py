"""Imports every module of the project; with `--minimal`, as if the first group of dependencies alone were installed.

    python tests/import_all.py              # in an environment that has that group alone
    python tests/import_all.py --minimal    # in any: other packages cannot be found

The first group is `dependencies` in pyproject.toml, with what those packages need themselves.
"""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from types import ModuleType
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("configs", "data_prep", "pretrain", "eval", "launch")
# The only modules that need more than the first group to be imported: one derives from a class of lm-eval, the others
# are web servers.
NEED_MORE = {
    "eval.harness.lm_eval_adapter",
    *(f"launch.chat.{name}" for name in ("answering", "guard", "server", "web")),
    "launch.judging.judging_server",
}


def modules() -> Iterator[str]:
    """Dotted names of all modules that promise to be importable."""
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            if name not in NEED_MORE:
                yield name


def first_group() -> set[str]:
    """Distributions of the first group and all that they need, by their normalised names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: set[str] = set()
    waiting = [Requirement(text) for text in project["dependencies"]]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found or not (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            continue
        try:
            waiting += map(Requirement, requires(name) or [])
        except PackageNotFoundError:  # meant for another platform, or not needed here
            continue
        found.add(name)
    return found


class Without(MetaPathFinder):
    """A finder that does not find certain modules, as if they were not installed."""

    def __init__(self, finder: Any, hidden: set[str]) -> None:
        self._finder, self._hidden = finder, hidden

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The finder's answer, and None for a hidden module."""
        if fullname.partition(".")[0] in self._hidden:
            return None
        found: ModuleSpec | None = self._finder.find_spec(fullname, path, target)
        return found


def hidden_modules() -> set[str]:
    """Installed top-level modules that do not belong to the first group."""
    allowed = first_group()
    return {
        module
        for module, owners in packages_distributions().items()
        if not {canonicalize_name(owner) for owner in owners} & allowed and module not in PACKAGES
    }


def hide() -> None:
    """Lets this process find the first group alone."""
    hidden = hidden_modules()
    sys.meta_path[:] = [Without(finder, hidden) for finder in sys.meta_path]


def main(arguments: list[str]) -> int:
    """Prints each module that cannot be imported; returns 1 if there is any."""
    sys.path.insert(0, str(ROOT))
    if arguments == ["--minimal"]:
        hide()
    failed = 0
    for name in modules():
        try:
            importlib.import_module(name)
        except ImportError as error:
            failed += 1
            print(f"{name}: {error}", file=sys.stderr)
    print(f"{failed} of {len(list(modules()))} modules cannot be imported")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
