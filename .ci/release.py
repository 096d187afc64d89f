"""Prepares a release: `check TAG` compares all that names the version, `urls ADDRESS` adds the repository's addresses.

The addresses are not in pyproject.toml, because a fork or a moved repository would publish those of another one.
Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def check(tag: str, root: Path = ROOT) -> list[str]:
    """Returns what disagrees with `tag`, such as `v1.2.3`: the version, the changelog, the citation."""
    version = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    problems = []
    if tag != f"v{version}":
        problems.append(f"the tag is {tag}, and pyproject.toml says version {version}: tag v{version}, or change it")
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE):
        problems.append(f"CHANGELOG.md has no heading `## [{version}] - YYYY-MM-DD`: give [Unreleased] that name")
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    if f"\nversion: {version}\n" not in citation:
        problems.append(f"CITATION.cff does not say `version: {version}`")
    return problems


def with_urls(project: str, address: str) -> str:
    """Returns the text of pyproject.toml with `[project.urls]` of the repository at `address`.

    Raises:
        ValueError: the address is not one of https, or the text has such a table.
    """
    if not re.fullmatch(r"https://[\w.-]+(/[\w.-]+)+", address):
        raise ValueError(f"{address!r}: give the repository's address, such as https://example.org/owner/name")
    if "[project.urls]" in project:
        raise ValueError("pyproject.toml has a table [project.urls] already: remove it, or leave this step out")
    urls = {
        "Homepage": address,
        "Repository": address,
        "Issues": f"{address}/issues",
        "Changelog": f"{address}/blob/main/CHANGELOG.md",
    }
    table = "[project.urls]\n" + "".join(f'{name} = "{url}"\n' for name, url in urls.items())
    return project.replace("\n[project.scripts]\n", f"\n{table}\n[project.scripts]\n", 1)


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 1 when something disagrees, 2 for a mistake in the command."""
    try:
        action, value = arguments
        if action == "check":
            problems = check(value)
            for problem in problems:
                print(f"error: {problem}", file=sys.stderr)
            return 1 if problems else 0
        if action != "urls":
            raise ValueError(f"{action!r}: the actions are check and urls")
        file = ROOT / "pyproject.toml"
        file.write_text(with_urls(file.read_text(encoding="utf-8"), value), encoding="utf-8")
    except ValueError as error:
        print(f"error: {error}\nusage: release.py check TAG | release.py urls ADDRESS", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
