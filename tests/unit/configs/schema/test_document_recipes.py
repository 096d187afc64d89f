"""The YAML blocks of README and docs: a whole recipe loads as it stands, a part of one loads inside the demo's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from configs.schema.recipe import load

ROOT = Path(__file__).resolve().parents[4]
# The blocks of ci.md are files of GitHub and GitLab; `tests/unit/test_project_files.py` looks at them.
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "ci.md")]


def blocks(page: Path) -> list[str]:
    """The contents of all ```yaml blocks of a page, also of those that are indented; without tasks of lm-eval."""
    found = re.findall(r"^( *)```yaml\n(.*?)^\1```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [text for _, text in found if not text.startswith("task:")]


BLOCKS = [
    (page.relative_to(ROOT).as_posix(), number, text) for page in PAGES for number, text in enumerate(blocks(page))
]


def test_there_are_blocks_to_look_at() -> None:
    assert len(BLOCKS) >= 8


@pytest.mark.parametrize(("page", "number", "text"), BLOCKS, ids=[f"{page}-{number}" for page, number, _ in BLOCKS])
def test_the_block_loads(page: str, number: int, text: str, tmp_path: Path) -> None:
    written = yaml.safe_load(text)
    assert isinstance(written, dict), "a recipe, or sections of one"
    if "name" not in written:
        demo = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text(encoding="utf-8"))
        # The dial sets the whole shape; of other sections the block's keys stand beside the demo's.
        whole = [key for key in ("model", "train") if {"size", "depth"} & set(written.get("model", {}))]
        merged = {
            key: written[key]
            if key in whole or not isinstance(written.get(key), dict)
            else {**demo.get(key, {}), **written[key]}
            for key in written
        }
        written = {**demo, **merged}
    file = tmp_path / "page.yaml"
    file.write_text(yaml.safe_dump(written, allow_unicode=True), encoding="utf-8")
    assert load(file).name
