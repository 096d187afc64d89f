"""Strings of a stranger's run in what is made to be shown around: pages and Markdown."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from configs.common.rendering import markdown_code, markdown_text
from configs.schema.recipe import save
from eval.report.page import write_report
from eval.results import load_results
from launch.planning.sweep_page import markdown
from tests.parts.fake_run import fake_recipe, fake_results, write_fake_run

HOSTILE = (
    "ok\n\n<img src=http://evil/x.png>\r\n\n[click](javascript:alert(1)) ![x](http://evil) | ✅ | `x` ``y`` **b** "
    "__c__ ~~d~~ <https://evil> https://evil www.evil.com \\ &lt; \x1b]0;x\x07 # h\n- item\n| a | b |\n|---|---|\n"
)


def meaning(text: str) -> Counter[str]:
    """What a reader of GitHub's Markdown finds in it: kind of element -> how often; autolinks by their signs."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    found = Counter(token.type for token in [*tokens, *(item for token in tokens for item in token.children or [])])
    found["autolink"] = len(re.findall(r"(?<!\\)://|\bwww\.", re.sub(r"`.*?`", "", text)))
    found["control"] = len(re.findall(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text))
    return Counter({kind: number for kind, number in found.items() if number})


def test_text_in_markdown_stays_text() -> None:
    assert set(meaning(markdown_text(HOSTILE))) - {"text_special"} == set(meaning("plain"))
    assert meaning(f"| {markdown_text(HOSTILE)} | b |\n|---|---|\n")["th_open"] == 2
    plain = "benchmark/replica_copa/acc_norm, 1.5 (95%): a-b, c.d + e = f! 中文"
    assert markdown_text(plain) == plain
    assert markdown_text("_a_ __b") == r"\_a\_ \_\_b"


@pytest.mark.parametrize("text", [HOSTILE, "`", "a``b", "|", "", "plain"])
def test_code_in_markdown_ends_where_it_should(text: str) -> None:
    code = markdown_code(text)
    assert meaning(code)["code_inline"] == 1 and set(meaning(code)) == set(meaning("`a`"))
    assert meaning(f"| {code} | b |\n|---|---|\n") == meaning("| `a` | b |\n|---|---|\n")


def hostile_run(directory: Path) -> Path:
    """A run whose strings are all hostile."""
    write_fake_run(directory)
    recipe = fake_recipe(directory, ["perplexity/heldout/bits_per_byte < 2.4"])
    save(recipe.model_copy(update={"report": recipe.report.model_copy(update={"title": HOSTILE})}), directory)
    named = [replace(item, name=f"{item.name}/{HOSTILE}") for item in fake_results().results[3:]]
    results = load_results(directory)
    replace(results, results=[*results.results, *named], checkpoint={**results.checkpoint, "name": HOSTILE}).save(
        directory
    )
    return directory


def test_the_summary_of_a_hostile_run_has_no_markup_of_its_own(tmp_path: Path) -> None:
    run = hostile_run(tmp_path / "run")
    write_report(run, baseline=hostile_run(tmp_path / "`base|line`"))
    text = (run / "report" / "report.md").read_text(encoding="utf-8")
    found = meaning(text)
    assert set(found) <= {
        "heading_open", "heading_close", "paragraph_open", "paragraph_close", "inline", "text", "text_special",
        "code_inline", "table_open", "table_close", "thead_open", "thead_close", "tbody_open", "tbody_close", "tr_open",
        "tr_close", "th_open", "th_close", "td_open", "td_close",
    }  # fmt: skip
    assert found["table_open"] == 3 and found["heading_open"] == 1
    assert "\\<img" in text


def test_the_summary_of_a_sweep(tmp_path: Path) -> None:
    row: dict[str, Any] = dict.fromkeys(("layers", "width", "lr", "batch", "weight_decay"), 1)
    row |= {"parameters": 1e6, "tokens": 1e6, "compute": 1e12, "val_loss": 1.0, "bits_per_byte": 1.0}
    text = markdown({"name": HOSTILE, "runs": [{**row, "label": HOSTILE}]})
    assert len(text.splitlines()) == 7 and not {"html_inline", "image", "link_open", "control"} & set(meaning(text))
