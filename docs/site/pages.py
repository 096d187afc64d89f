"""Adds to the site what lies outside docs/: the API reference, a page for each package and room, and the examples.

mkdocs calls the functions `on_*` (mkdocs.yml, `hooks`). Pages are made from the files that are there. Those of the API
hold mkdocstrings' `:::` lines alone, which read the docstrings from the sources: nothing of the project is imported, so
that the site needs neither torch nor Ray.
"""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("configs", "data_prep", "pretrain", "eval", "launch")
SECTION = "API"  # of the nav in mkdocs.yml; the pages are put behind those that stand there
# Files outside docs/ that are pages of the site too.
ROOT_PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/README.md": "examples.md",
}
_SHOWN = {".py": "python", ".yaml": "yaml"}  # files of examples/ whose text is shown
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\((\.\./[^()\s#]*)(#[^()\s]*)?\)")


def rooms(root: Path = ROOT) -> Iterator[Path]:
    """Folders with Python modules, each package before its rooms."""
    for package in PACKAGES:
        yield from sorted(file.parent for file in (root / package).rglob("__init__.py"))


def modules(room: Path) -> list[Path]:
    """The room's public modules."""
    return sorted(file for file in room.glob("*.py") if not file.name.startswith("_"))


def dotted(path: Path, root: Path = ROOT) -> str:
    """The name that Python imports a file or folder by."""
    return ".".join(path.relative_to(root).with_suffix("").parts)


def address(room: Path, root: Path = ROOT) -> str:
    """Where the room's page lies below docs/."""
    parts = room.relative_to(root).parts
    return "/".join(("api", *parts)) + ("/index.md" if len(parts) == 1 else ".md")


def page(room: Path, root: Path = ROOT) -> str:
    """The Markdown of one room: its docstring as heading, a table of what is in it, then each module."""
    inside = [child for child in rooms(root) if child.parent == room]
    lines = [f"::: {dotted(room, root)}", "    options:", "      members: false", "      heading_level: 1", ""]
    rows = [(f"[`{child.name}/`]({_relative(room, child, root)})", first_sentence(child / "__init__.py"))
            for child in inside]  # fmt: skip
    rows += [(f"[`{file.stem}`](#{dotted(file, root)})", first_sentence(file)) for file in modules(room)]
    if rows:
        lines += ["| part | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows), ""]
    for file in modules(room):
        lines += [f"::: {dotted(file, root)}", ""]
    return "\n".join(lines)


def _relative(room: Path, child: Path, root: Path) -> str:
    depth = len(room.relative_to(root).parts)
    return address(child, root).split("/")[-1] if depth == 1 else f"{room.name}/{child.name}.md"


def first_sentence(file: Path) -> str:
    """The first line of the module's docstring, fit for a cell of a table."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split()).replace("|", "\\|").replace("<", "&lt;")


# ------------------------------------------------------------------------------------------------------------ links out
def repointed(markdown: str, here: str, repository: str | None, root: Path = ROOT) -> str:
    """Makes links of a page that lead out of docs/ work on the site.

    A Python module leads to its place in the API, a folder that is a room to its page, and any other file to the
    repository; without the repository's address only the text of the link is left. A link to what does not exist stays
    as it is, and mkdocs reports it.

    Args:
        markdown: the page.
        here: its place below docs/, such as `tutorial.md`.
        repository: address of the repository (`repo_url` in mkdocs.yml).
    """

    def replace(link: re.Match[str]) -> str:
        text, target, anchor = link[1], (root / "docs" / here).parent / link[2], link[3] or ""
        path = target.resolve()
        if not path.exists() or path.is_relative_to(root / "docs"):
            return link[0]
        up = "../" * here.count("/")
        name = path.relative_to(root).as_posix()
        if path in set(rooms(root)):
            return f"[{text}]({up}{address(path, root)})"
        if path.suffix == ".py" and path.parent in set(rooms(root)) and path in modules(path.parent):
            return f"[{text}]({up}{address(path.parent, root)}#{dotted(path, root)})"
        if path.parent == root / "examples" and path.suffix in _SHOWN:
            return f"[{text}]({up}{ROOT_PAGES['examples/README.md']}#{path.stem})"
        if name in ROOT_PAGES:
            return f"[{text}]({up}{ROOT_PAGES[name]}{anchor})"
        return f"[{text}]({repository.rstrip('/')}/blob/main/{name}{anchor})" if repository else text

    return _LINK.sub(replace, markdown)


def as_in_docs(markdown: str, name: str) -> str:
    """A page from outside docs/ with its links as they would be written in docs/.

    Args:
        markdown: the page.
        name: its file, relative to the root.
    """
    folder = name.rpartition("/")[0]

    def replace(link: re.Match[str]) -> str:
        place = posixpath.normpath(posixpath.join(folder, link[1]))
        return f"]({place.removeprefix('docs/') if place.startswith('docs/') else f'../{place}'})"

    return re.sub(r"\]\((?!https?:|#|mailto:)([^)\s]+)\)", replace, markdown)


def shown(file: Path) -> str:
    """A section with the text of a program."""
    text = file.read_text(encoding="utf-8").rstrip()
    return f"\n## {file.name} {{ #{file.stem} }}\n\n```{_SHOWN[file.suffix]}\n{text}\n```\n"


# ----------------------------------------------------------------------------------------------------------- for mkdocs
def on_config(config: Any) -> Any:
    """Puts the pages into the nav."""
    entries: list[Any] = []
    for package in PACKAGES:
        own: list[Any] = [{room.name: address(room)} for room in rooms() if room.relative_to(ROOT).parts[0] == package]
        own[0] = address(ROOT / package)  # the section's own page
        entries.append({package: own})
    section = next(item for item in config.nav if isinstance(item, dict) and SECTION in item)
    section[SECTION] = [*section[SECTION], *entries]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages."""
    for room in rooms():
        files.append(File.generated(config, address(room), content=page(room)))
    for name, place in ROOT_PAGES.items():
        if (file := ROOT / name).is_file():
            text = as_in_docs(file.read_text(encoding="utf-8"), name)
            if file.parent.name == "examples":
                text += "".join(shown(path) for path in sorted(file.parent.iterdir()) if path.suffix in _SHOWN)
            files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Makes links to files of the repository work."""
    return repointed(markdown, page.file.src_uri, config.repo_url)
