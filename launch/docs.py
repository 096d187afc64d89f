"""Generates `docs/recipe.md` and `configs/recipe.schema.json` from the recipe's schema.

python -m launch.docs            # write both; a test keeps them current
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from annotated_types import BaseMetadata
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from configs.common.files import write_text
from configs.schema.recipe import Recipe, json_schema
from configs.schema.section import PathMarker
from configs.schema.stage import Stage

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "recipe.md"
SCHEMA = ROOT / "configs" / "recipe.schema.json"

_INTRODUCTION = """# Recipe reference

This page lists every setting, for users who write or change a recipe. Show a recipe with all its values, and where each
comes from:

```sh
replica show configs/demo.yaml train.optimizer.lr=3e-4 data.sources.0.weight=2
```

A recipe is one YAML file. Every key can also be set on the command line by its path, with list items by their index, as
in this command.

- Precedence: defaults, then the file, then overrides from left to right.
- An unknown key is an error that names the nearest known one. All problems of a recipe are reported at once.
- Relative paths in a recipe are resolved against its directory, and relative paths in overrides against the working
  directory.
- Units: *sequences* are windows of `model.context_length` tokens. *Tokens* are target positions. *Bytes* are UTF-8
  bytes of normalised text.
- For completion in an editor, start the file with `# yaml-language-server: $schema=recipe.schema.json`.
- `make docs` generates this page from the schema in `configs/`; a test keeps it current.
"""


def reference() -> str:
    """Builds the text of `docs/recipe.md`: introduction, index, one table for each section."""
    # Kinds of an objective share sections, such as their rewards.
    sections = list({_title(model, path): (model, path) for model, path in _sections(Recipe, "")}.values())
    return _INTRODUCTION + _index(sections) + "".join(_section(model, path) for model, path in sections)


def _index(sections: list[tuple[type[BaseModel], str]]) -> str:
    """Builds the table of links to all sections, with their summaries."""
    rows = [
        f"| [{_title(model, path)}](#{_anchor(_title(model, path))}) | {_summary(model)} |" for model, path in sections
    ]
    return "\n".join(["\n## Sections", "", "| section | contents |", "|---|---|", *rows, ""])


def _title(model: type[BaseModel], path: str) -> str:
    """Returns the heading of a section. Kinds of list items share a path, so the heading names their fixed keys too."""
    if not path:
        return "Top level"
    kinds = [
        f"{name}: {', '.join(get_args(field.annotation))}"
        for name, field in model.model_fields.items()
        if "Literal" in str(getattr(field.annotation, "__origin__", ""))
        and (len(get_args(field.annotation)) == 1 or (name == "kind" and field.default is PydanticUndefined))
    ]
    return f"`{path.rstrip('.')}`" + (f" with `{', '.join(kinds)}`" if kinds else "")


def _anchor(title: str) -> str:
    """Returns the anchor of a heading, as GitHub and mkdocs make it."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _summary(model: type[BaseModel]) -> str:
    return _escape(" ".join((model.__doc__ or "").split()))


def _sections(model: type[BaseModel], path: str) -> Iterator[tuple[type[BaseModel], str]]:
    yield model, path
    if model is Stage:
        return  # an objective here is what `train.objective` is
    for name, field in model.model_fields.items():
        for nested, is_item in _nested(field.annotation):
            yield from _sections(nested, f"{path}{name}." + ("N." if is_item else ""))


def _nested(annotation: Any, is_item: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, is_item
    for argument in get_args(annotation):
        yield from _nested(argument, is_item or getattr(annotation, "__origin__", None) is list)


def _section(model: type[BaseModel], path: str) -> str:
    rows = [
        f"| `{path}{name}` | {_type(field)} | {_default(field)} | {_meaning(field, f'{path}{name}')} |"
        for name, field in model.model_fields.items()
    ]
    return "\n".join(
        [
            f"\n## {_title(model, path)}",
            "",
            _summary(model),
            "",
            "| key | type | default | meaning |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _meaning(field: FieldInfo, path: str) -> str:
    """Returns a field's description, or for a section without one a link to its table."""
    if field.description:
        return _escape(field.description)
    sections = [_title(model, path + (".N" if is_item else "")) for model, is_item in _nested(field.annotation)]
    return " ".join(f"[{title}](#{_anchor(title)})" for title in sections)


def _type(field: FieldInfo) -> str:
    named = _type_name(field.annotation)
    bounds = [_bound(item) for item in field.metadata if isinstance(item, BaseMetadata)]
    return _escape(", ".join([named, *[bound for bound in bounds if bound]]))


def _type_name(annotation: Any) -> str:
    if annotation is type(None):
        return "null"
    origin, arguments = getattr(annotation, "__origin__", None), get_args(annotation)
    if any(isinstance(item, PathMarker) for item in getattr(annotation, "__metadata__", ())):
        return "path"
    if origin is list:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return "mapping"
    if "Literal" in str(origin):
        return " / ".join(f"`{value}`" for value in arguments)
    if arguments:  # a union, or Annotated
        names = [_type_name(item) for item in arguments if not isinstance(item, BaseMetadata) and item is not ...]
        return " or ".join(dict.fromkeys(name for name in names if name))
    if isinstance(annotation, type):
        section = issubclass(annotation, BaseModel)
        return (
            "section"
            if section
            else {"str": "text", "bool": "true / false"}.get(annotation.__name__, annotation.__name__)
        )
    return ""


def _bound(item: BaseMetadata) -> str:
    match = re.match(r"(Ge|Gt|Le|Lt|MinLen|MaxLen)\(\w+=(.+)\)", repr(item))
    if not match:
        return ""
    signs = {"Ge": "≥", "Gt": ">", "Le": "≤", "Lt": "<", "MinLen": "at least", "MaxLen": "at most"}
    suffix = " items" if match[1].endswith("Len") else ""
    return f"{signs[match[1]]} {match[2]}{suffix}"


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "*required*"
    if isinstance(field.default, BaseModel):
        return "below"
    text = {None: "null", True: "true", False: "false"}[field.default] if _is_word(field.default) else field.default
    return f"`{_escape(str(text))}`"


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _escape(text: str) -> str:
    """Escapes text for a table cell, and turns names of other pages into links."""
    return re.sub(r"`?docs/([\w-]+)\.md`?", r"[\1](\1.md)", text).replace("|", "\\|").replace("\n", "\\n")


def main() -> None:
    """Writes both files."""
    for path, text in ((REFERENCE, reference()), (SCHEMA, json_schema())):
        write_text(path, text)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
