"""Writes a page for the items of each part, `report/items/PART.html`: the worst, what changed, scores by length.

A page is self-contained, has no script, and shows a bounded number of items with shortened texts: it works from disk,
and stays small for sets of any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.common.files import atomic_directory
from configs.common.layout import REPORT
from eval.comparison.comparable import other_rules
from eval.items.item import beginning
from eval.items.store import stem
from eval.items.table import ItemTable
from eval.report.item_view import Judged, Metric, item_view, metric_of
from eval.report.run_items import open_items
from eval.results import Results

if TYPE_CHECKING:
    import jinja2

DIRECTORY = "items"
MOST = 100  # of the worst items on a page; half as many of those that changed, each way
_LONGEST = 1500  # characters of a text
_LONGEST_CHOICE = 300
_EXCERPT = 110


@dataclass(frozen=True)
class OtherRun:
    """The run that items are compared with.

    Attributes:
        name: how pages call it.
        directory: with its `results.json` and `scores`.
        results: contents of `results.json`.
    """

    name: str
    directory: Path
    results: Results


@dataclass(frozen=True)
class PageLink:
    """A part on the report's page: the link to its items, or what is wrong with them."""

    part: str
    n: int
    href: str | None
    remark: str = ""


def write_item_pages(
    run: Path, results: Results, environment: jinja2.Environment, common: dict[str, Any], other: OtherRun | None = None
) -> list[PageLink]:
    """Writes the pages of all parts of a run at once, in place of earlier ones; returns what links to them.

    Args:
        run: the run directory.
        results: contents of its `results.json`.
        environment: of the page's templates, with escaping.
        common: `title`, `style`, `replica_version` and `checkpoint` of the page.
        other: a run to compare items with.
    """
    links: list[PageLink] = []
    pages: dict[str, dict[str, Any]] = {}
    for part in results.items:
        try:
            table = open_items(run, part, results)
        except ValueError as error:
            links.append(PageLink(part, 0, None, str(error)))
            continue
        file = f"{stem(part)}.html"
        pages[file] = _facts(table, results, other)
        links.append(PageLink(part, len(table), f"{DIRECTORY}/{file}"))
    template = environment.get_template("items.html.j2")
    siblings = [(link.part, Path(link.href).name) for link in links if link.href]
    with atomic_directory(run / REPORT / DIRECTORY) as temporary:
        for file, facts in pages.items():
            text = template.render({**common, **facts, "siblings": siblings, "own": file})
            (temporary / file).write_text(text, encoding="utf-8")
    return links


def item_pages_are_there(run: Path, parts: Sequence[str]) -> bool:
    """Tells whether each part that has items has its page."""
    return all((run / REPORT / DIRECTORY / f"{stem(part)}.html").is_file() for part in parts)


# --------------------------------------------------------------------------------------------------------------- facts
def _facts(table: ItemTable, results: Results, other: OtherRun | None) -> dict[str, Any]:
    metric = metric_of(table, results)
    there, remark = (None, "") if other is None else _same_part(table, metric, results, other)
    view = item_view(table, metric, there, MOST)
    kind = table.part.partition("/")[0]
    scores = [score for score in results.results if score.named.kind == kind and score.named.subject in table.subjects]
    return {
        "part": table.part,
        "view": view,
        "metric": metric,
        "scores": scores[:MOST],
        "other": other.name if there is not None and other is not None else None,
        "remark": remark,
        "worst": [_shown(one, metric) for one in view.worst],
        "worse": [] if view.change is None else [_shown(one, metric) for one in view.change.most_worse],
        "better": [] if view.change is None else [_shown(one, metric) for one in view.change.most_better],
        "top": max((band.score for band in view.lengths), default=0.0) or 1.0,
    }


def _same_part(
    table: ItemTable, metric: Metric | None, results: Results, other: OtherRun
) -> tuple[ItemTable | None, str]:
    """Returns the items of the same part of the other run, or why they cannot be compared."""
    try:
        there = open_items(other.directory, table.part, other.results)
    except ValueError as error:
        return None, f"Not compared with {other.name}: {error}"
    kind = table.part.partition("/")[0]
    ours, theirs = results.by_name(), other.results.by_name()
    for subject in table.subjects:
        name = f"{kind}/{subject}/{metric.name if metric else ''}"
        if name in ours and name in theirs and (reason := other_rules(ours[name], theirs[name])):
            return None, f"Not compared with {other.name}: {reason}"
    return there, ""


def _shown(one: Judged, metric: Metric | None) -> dict[str, Any]:
    item, other = one.item, one.other
    chosen = item.answer if item.choices else None
    choices = [
        {
            "text": beginning(text.strip(), _LONGEST_CHOICE),
            "nats": item.log_likelihoods[place] if place < len(item.log_likelihoods) else None,
            "right": text == item.reference,
            "chosen": text == chosen,
            "before": other is not None and text == other.answer,
        }
        for place, text in enumerate(item.choices)
    ]
    same = other is None or item.choices or other.answer is None
    return {
        "id": item.id,
        "subject": item.subject,
        "hash": item.hash,
        "value": one.value,
        "before": one.before,
        "step": None if one.before is None else one.value - one.before,
        "good": None if one.before is None or metric is None else (one.value > one.before) == metric.higher,
        "excerpt": beginning(" ".join(item.asked.split()), _EXCERPT),
        "asked": beginning(item.asked, _LONGEST),
        "reference": None if item.choices else _cut(item.reference),
        "answer": None if item.choices else _cut(item.answer),
        "other_answer": None if same or other is None else _cut(other.answer),
        "choices": choices,
        "nats": item.log_likelihoods[0] if not item.choices and len(item.log_likelihoods) == 1 else None,
        "facts": _sizes(one),
        "notes": {name: beginning(text, _LONGEST_CHOICE) for name, text in list(item.notes.items())[:8]},
        "tags": item.tags,
    }


def _cut(text: str | None) -> str | None:
    return None if text is None else beginning(text, _LONGEST)


def _sizes(one: Judged) -> list[str]:
    item = one.item
    sizes = [f"{item.bytes:,} bytes"] if item.bytes is not None else []
    sizes += [f"{item.tokens:,} tokens"] if item.tokens is not None else []
    return sizes + ([f"{item.seconds:.2g} s"] if item.seconds is not None else [])
