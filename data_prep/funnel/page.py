"""Writes the funnel page: counts of every rule, with examples side by side."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.common.files import write_text
from configs.common.rendering import short, size, style_sheet
from data_prep.funnel.table import funnel_rows, label, place
from data_prep.funnel.tally import LEFT
from data_prep.workers.manifests import Capped, VerdictManifest
from data_prep.workers.verdicts import Part, remaining, without

PAGE_NAME = "funnel.html"
_LONGEST_LINES = 400
_CONTEXT_LINES = 4
_EXAMPLES = 12

Manifest = dict[str, Any]
Block = list[tuple[str, str]]  # lines with what became of them: same, gone, new, skip


def write_page(
    file: Path,
    title: str,
    funnel: list[Manifest],
    marks: Manifest,
    examples: Sequence[Manifest],
    note: str,
) -> Path:
    """Renders the page; returns the file.

    Args:
        file: where to write it.
        title: heading.
        funnel: rows as `Funnel.rows` gives them.
        marks: by source, things counted that are neither documents nor bytes.
        examples: as `verdict_examples` and the stage `documents` give them.
        note: a sentence on what was read.
    """
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
    )
    facts = {
        "title": title,
        "note": note,
        "style": style_sheet(),
        "cards": _cards(funnel),
        "funnel": funnel_rows(funnel),
        "groups": list(_groups(funnel, examples)),
        "marks": [
            (source, key.partition("/")[2].replace("_", " "), f"{count[0]:,}")
            for source, own in marks.items()
            for key, count in sorted(own.items())
        ],
    }
    write_text(file, environment.get_template("page.html.j2").render(facts))
    return file


def _cards(funnel: list[Manifest]) -> list[tuple[str, str, str]]:
    def total(reasons: Sequence[str], key: str) -> int:
        return sum(row[key] for row in funnel if row["reason"] in reasons)

    read, kept = (total(reasons, "documents") for reasons in (("read",), LEFT))
    read_bytes, kept_bytes = (total(reasons, "bytes") for reasons in (("read",), LEFT))
    cards = [
        ("Documents read", f"{read:,}", size(read_bytes)),
        ("Documents kept", f"{kept:,}", f"{kept / max(1, read):.1%} of those read"),
        ("Text kept", size(kept_bytes), f"{kept_bytes / max(1, read_bytes):.1%} of the bytes read"),
    ]
    tokens = total(LEFT, "tokens")
    if tokens:
        cards.append(("Tokens kept", short(tokens), f"{kept_bytes / tokens:.2f} bytes per token"))
    return cards


def _groups(funnel: list[Manifest], examples: Sequence[Manifest]) -> Iterator[Manifest]:
    """The examples of every reason, in the funnel's order."""
    keys = dict.fromkeys(f"{row['stage']}/{row['reason']}" for row in sorted(funnel, key=place))
    known = {example["key"] for example in examples}
    for key in [*keys, *sorted(known - set(keys))]:
        own = [example for example in examples if example["key"] == key]
        if not own:
            continue
        rows = [row for row in funnel if f"{row['stage']}/{row['reason']}" == key]
        documents, taken = (sum(row[column] for row in rows) for column in ("documents", "bytes"))
        stage, _, reason = key.partition("/")
        yield {
            "anchor": key.replace("/", "-"),
            "stage": stage,
            "label": label({"stage": stage, "reason": reason, "documents": documents}),
            "counts": (f"{documents:,} document{'s' if documents > 1 else ''}, " if documents else "") + size(taken),
            "examples": [_side_by_side(example) for example in own[:_EXAMPLES]],
        }


# ------------------------------------------------------------------------------------------------------------- examples
def verdict_examples(
    stages: Sequence[tuple[str, VerdictManifest]], parts: Sequence[Part], most: int, characters: int
) -> list[Manifest]:
    """The verdict stages' examples with their texts, and those of the documents that they are like.

    Args:
        stages: name and manifest of each stage, in order.
        parts: with the verdicts of all of them.
        most: examples of one reason.
        characters: how much of a text is shown.
    """
    by_name = {part.name: part for part in parts}
    chosen: list[tuple[int, str, Manifest]] = []
    shown = Capped(most)
    for index, (name, manifest) in enumerate(stages):
        chosen += [(index, name, entry) for entry in manifest.examples if shown.take((name, entry["reason"]))]
    return [
        _example_of(
            entry, name, replace(by_name[entry["part"]], verdicts=by_name[entry["part"]].verdicts[:index]),
            characters, by_name,
        )
        for index, name, entry in chosen
    ]  # fmt: skip


def _example_of(entry: Manifest, stage: str, part: Part, characters: int, parts: Mapping[str, Part]) -> Manifest:
    found = _row(part, entry["row"])
    text, detail = found["text"], entry["detail"] or ""
    example = {"key": f"{stage}/{entry['reason']}", "source": entry["source"], "id": found["id"], "detail": detail}
    if entry["action"] == "cut":
        # The stretch of text around the first cut, and the same without what was cut.
        start = max(0, entry["spans"][0] - characters // 4)
        stretch = text.encode()[start : start + characters]
        inside = [min(max(position - start, 0), len(stretch)) for position in entry["spans"]]
        return {**example, "excerpt": _decoded(stretch), "after": _decoded(without(stretch, inside))}
    example["excerpt"] = text[:characters]
    words, _, place = detail.rpartition(" ")
    name, _, row = place.rpartition(":")
    if name in parts and row.isdecimal():  # the document that stays, as deduplication names it
        other = _row(replace(parts[name], verdicts=()), int(row))
        return {**example, "detail": f"{words} {other['id']}", "like": other["text"][:characters]}
    return example


def _row(part: Part, row: int) -> Manifest:
    """Id and text of one document."""
    return next(fields for number, fields in remaining(part, ["id", "text"]) if number == row)


def _decoded(data: bytes) -> str:
    """The text, without characters that the ends cut in two."""
    return data.decode(errors="ignore")


def _side_by_side(example: Manifest) -> Manifest:
    """Both columns as lines: what was there, and what it became or what it is like."""
    left = example["excerpt"]
    right = example.get("after", example.get("like"))
    shown: Manifest = {
        "source": example.get("source", ""),
        "id": example["id"],
        "detail": example.get("detail", ""),
        "heading": "what is left" if "after" in example else "the one that stays",
    }
    if right is None:
        return {**shown, "left": [("same", line) for line in _lines(left)], "right": None}
    columns = _compared(_lines(left), _lines(right))
    if "like" in example:  # no text was changed: only say what differs
        columns = tuple([(kind if kind != "gone" else "new", line) for kind, line in column] for column in columns)
    return {**shown, "left": columns[0], "right": columns[1]}


def _lines(text: str) -> list[str]:
    return text.split("\n")[:_LONGEST_LINES]


def _compared(left: list[str], right: list[str]) -> tuple[Block, ...]:
    """Lines marked `gone` on the left and `new` on the right; long stretches of equal lines are shortened."""
    columns: tuple[Block, Block] = ([], [])
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    for action, a, b, c, d in matcher.get_opcodes():
        if action == "equal":
            for column, lines in ((columns[0], left[a:b]), (columns[1], right[c:d])):
                column += _shortened(lines)
        else:
            columns[0].extend(("gone", line) for line in left[a:b])
            columns[1].extend(("new", line) for line in right[c:d])
    return columns


def _shortened(lines: list[str]) -> Block:
    if len(lines) <= 3 * _CONTEXT_LINES:
        return [("same", line) for line in lines]
    middle = len(lines) - 2 * _CONTEXT_LINES
    return [
        *(("same", line) for line in lines[:_CONTEXT_LINES]),
        ("skip", f"… {middle} lines unchanged …"),
        *(("same", line) for line in lines[-_CONTEXT_LINES:]),
    ]
