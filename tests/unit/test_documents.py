"""The pages for readers: each begins with its purpose and a command; commands and settings are understood."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from configs.schema.recipe import Recipe
from launch.cli import parse

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
GENERATED = {"recipe.md"}
# Lists of dated entries, written as they come: their entries name what was true on that day.
RECORDS = {"lab-notes.md", "benchmarks.md", "CHANGELOG.md"}
# Recipes that the reader is told to make.
READERS_OWN = {"configs/letters.yaml", "configs/crawl.yaml"}
PURPOSE_LINES = 25
MOST_LINES = 260
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", flags=re.DOTALL | re.MULTILINE)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [page for page in DOCS if page.name not in GENERATED], ids=name)
def test_a_page_begins_with_what_it_is_for_and_a_command(page: Path) -> None:
    """A heading, a paragraph, and within the first lines a block to run."""
    lines = page.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ") and lines[1] == ""
    assert len(lines[2]) > 40 and not lines[2].startswith(("|", "#", "-", "`", "!")), "say what the page is for"
    if page.name not in RECORDS:
        assert any(line.lstrip().startswith("```") for line in lines[:PURPOSE_LINES]), "show the first command"


@pytest.mark.parametrize("page", [page for page in DOCS if page.name not in GENERATED | RECORDS], ids=name)
def test_no_page_is_a_wall(page: Path) -> None:
    assert len(page.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


# ------------------------------------------------------------------------------------------------------------ commands
def shell_lines(page: Path) -> Iterator[str]:
    """Commands of the ```sh and ```bash blocks, continued lines joined, without comments."""
    for _, language, text in _FENCE.findall(page.read_text(encoding="utf-8")):
        if language in ("sh", "bash"):
            for line in re.sub(r"\\\n\s*", "", text).splitlines():
                with contextlib.suppress(ValueError):
                    yield shlex.join(shlex.split(line, comments=True))


def replica_calls(page: Path) -> Iterator[list[str]]:
    """Arguments of each `replica …`, wherever it stands in a line (behind `srun …` or `run --` too)."""
    for line in shell_lines(page):
        words = shlex.split(line)
        for place, word in enumerate(words):
            if word in ("replica", ".venv/bin/replica", "bin/replica") and words[place - 1 : place] != ["show"]:
                stops = [n for n in range(place + 1, len(words)) if words[n] in ("|", "||", "&&", ";", "&", ">", ")")]
                call = words[place + 1 : min(stops, default=len(words))]
                yield [item.rstrip(")") if item == call[-1] else item for item in call]


CALLS = sorted({(name(page), shlex.join(call)) for page in [ROOT / "README.md", *DOCS] for call in replica_calls(page)})


def test_there_are_commands_to_look_at() -> None:
    assert len(CALLS) > 60


@pytest.mark.parametrize(("page", "call"), CALLS, ids=[f"{page}: {call}" for page, call in CALLS])
def test_the_command_line_is_understood(page: str, call: str) -> None:
    """By the parser of `replica`; settings and recipes in it exist."""
    words = shlex.split(call)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            arguments = parse(words)
    except SystemExit as end:
        assert end.code == 0, said.getvalue()  # --help, --version
        return
    for override in getattr(arguments, "overrides", []):
        assert is_setting(override.partition("=")[0]), override
    recipe = getattr(arguments, "recipe", None)
    if isinstance(recipe, str) and recipe.startswith("configs/") and recipe not in READERS_OWN:
        assert (ROOT / recipe).is_file(), recipe


# ------------------------------------------------------------------------------------------------------------ settings
@cache
def settings() -> frozenset[str]:
    """Dotted paths of all keys, list items as `N`; a mapping's own keys as `*`."""
    schema = Recipe.model_json_schema()
    found: set[str] = set()

    def walk(node: dict[str, object], path: str) -> None:
        for part in _parts(node, schema):
            properties = part.get("properties")
            if isinstance(properties, dict):
                for key, value in properties.items():
                    inner = f"{path}.{key}" if path else key
                    found.add(inner)
                    walk(value, inner)
            if part.get("type") == "object" and not isinstance(properties, dict):
                found.add(f"{path}.*")
            if isinstance(part.get("items"), dict):
                found.add(f"{path}.N")
                walk(part["items"], f"{path}.N")  # type: ignore[arg-type]

    walk(schema, "")
    return frozenset(found)


def _parts(node: object, schema: dict[str, object]) -> Iterator[dict[str, object]]:
    """A node of the schema with references followed and alternatives apart."""
    if not isinstance(node, dict):
        return
    if isinstance(reference := node.get("$ref"), str):
        definitions = schema["$defs"]
        assert isinstance(definitions, dict)
        yield from _parts(definitions[reference.rpartition("/")[2]], schema)
        return
    alternatives = [*node.get("anyOf", []), *node.get("oneOf", []), *node.get("allOf", [])]
    if alternatives:
        for alternative in alternatives:
            yield from _parts(alternative, schema)
    else:
        yield node


def is_setting(path: str) -> bool:
    """Whether a dotted path names a key of the recipe; list items may be numbers, and stages names."""
    names = ["N" if part.isdigit() else part for part in path.split(".")]
    if names[0] == "stages" and len(names) > 1:
        names[1] = "N"
    plain = ".".join(names)
    return plain in settings() or any(f"{'.'.join(names[:end])}.*" in settings() for end in range(1, len(names)))


def test_settings_are_known() -> None:
    assert (
        is_setting("train.optimizer.lr") and is_setting("data.sources.0.weight") and is_setting("train.wandb.project")
    )
    assert is_setting("stages.grpo.objective.rewards") and not is_setting("stages.grpo.objective.reward")
    assert is_setting("deepspeed.zero_optimization.reduce_bucket_size") and is_setting("data.quality.rules.0.min_words")
    assert (
        not is_setting("train.optimizer.rate")
        and not is_setting("trian.tokens")
        and not is_setting("data.sources.weight")
    )


_INLINE = re.compile(r"`((?:data|model|train|evaluation|report)\.[a-z_0-9.N]+[a-z_0-9N])(?:[=:][^`]*)?`")


@pytest.mark.parametrize("page", [page for page in [ROOT / "README.md", *DOCS] if page.name not in RECORDS], ids=name)
def test_settings_named_in_the_text_exist(page: Path) -> None:
    named = set(_INLINE.findall(page.read_text(encoding="utf-8")))
    unknown = sorted(path for path in named if not is_setting(path) and not _is_file(path))
    assert not unknown


def _is_file(path: str) -> bool:
    return path.rpartition(".")[2] in ("py", "yaml", "json", "md", "jsonl", "html", "safetensors", "parquet")
