"""Counts what became of every document and byte that was read: the tally of a unit, the funnel of a run.

Rows are `{source, stage, reason, documents, bytes, tokens}`. Per source, the row `read` is what came in (bytes as they
stood in the files), and the other rows divide it up exactly. Reasons without documents are bytes that a step took out
of documents (negative where it added some); `train` and `validation` are what is left. Tokens are those of a
document's text at the moment it was kept or dropped; of dropped documents they are counted with `data.keep_dropped`.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from data_prep.workers.manifests import Capped, Count, Counts

# In the order in which documents go through them.
STAGES = (
    "read", "extract", "normalize", "lines", "language", "quality", "privacy",
    "exact", "repeated_lines", "near", "substrings", "decontaminate", "select", "shards",
)  # fmt: skip
READ = "read/read"
KEPT = "kept"
LEFT = ("train", "validation", "kept")  # `kept`: where nothing was split, as in a sample


class Tally:
    """Documents and bytes by `stage/reason`, and some examples of what was kept out or changed.

    Args:
        examples: how many of each reason are remembered.
        characters: how much of each text.
    """

    def __init__(self, examples: int = 3, characters: int = 200) -> None:
        self.counts: Counts = defaultdict(Count)
        self.marks: dict[str, int] = defaultdict(int)  # things counted that are neither documents nor bytes
        self.examples: list[dict[str, Any]] = []
        self._shown, self._characters = Capped(examples), characters

    def add(self, key: str, documents: int, size: int) -> None:
        """Counts documents of `size` bytes in all under `stage/reason`."""
        self.counts[key] = self.counts[key].plus(documents, size)

    def example(
        self, key: str, identifier: str, text: str, after: str | None = None, detail: str | None = None
    ) -> None:
        """Remembers what a rule did, if it is one of its first: the text, and what it became."""
        if not self._shown.take(key):
            return
        if after is not None:
            text, after = _around_the_change(text, after, self._characters)
        entry: dict[str, Any] = {"key": key, "id": identifier, "excerpt": self._cut(text)}
        if after is not None:
            entry["after"] = self._cut(after)
        if detail:
            entry["detail"] = detail
        self.examples.append(entry)

    def wants(self, key: str) -> bool:
        """Tells whether another example of this reason would be remembered."""
        return self._shown.wants(key)

    def _cut(self, text: str) -> str:
        return text[: self._characters].encode(errors="backslashreplace").decode()


def _around_the_change(text: str, after: str, characters: int) -> tuple[str, str]:
    """Up to `characters` of both texts: from shortly before the first difference to a line that both have."""
    same, end = 0, min(len(text), len(after))
    while same < end:  # the longest common beginning, by halves
        middle = (same + end + 1) // 2
        same, end = (middle, end) if text[same:middle] == after[same:middle] else (same, middle - 1)
    start = max(0, same - characters // 4)
    start = text.find("\n", start, same) + 1 or start if start else 0
    stretches = [whole[start : start + characters] for whole in (text, after)]
    if max(len(text), len(after)) <= start + characters:
        return stretches[0], stretches[1]
    # Otherwise what lies beyond one end alone would look like a change. The last line is cut, so it says nothing.
    left, right = (stretch.split("\n")[:-1] for stretch in stretches)
    blocks = difflib.SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks()[:-1]
    last = blocks[-1] if blocks else None
    if last is None or left[: last.a] == right[: last.b]:  # no line after the change is in both
        return stretches[0], stretches[1]
    return "\n".join(left[: last.a + last.size]), "\n".join(right[: last.b + last.size])


class Funnel:
    """Adds up counts by source, stage and reason."""

    def __init__(self, sources: Iterable[str]) -> None:
        self._counts: dict[str, dict[str, list[int]]] = {name: defaultdict(lambda: [0, 0, 0]) for name in sources}

    def add(self, source: str, key: str, documents: int, size: int, tokens: int = 0) -> None:
        """Counts documents with their bytes and tokens under `stage/reason`."""
        assert key.split("/")[0] in STAGES, key
        entry = self._counts[source][key]
        for index, value in enumerate((documents, size, tokens)):
            entry[index] += value

    def left(self) -> Counts:
        """Documents and bytes of each source that nothing has taken so far."""
        return {
            source: Count(*(2 * counts[READ][i] - sum(entry[i] for entry in counts.values()) for i in range(2)))
            for source, counts in self._counts.items()
        }

    def rows(self) -> list[dict[str, Any]]:
        """The table in the order of sources and stages; raises `ValueError` unless it adds up."""
        rows = []
        for source, counts in self._counts.items():
            # What came in has the tokens of all that it became.
            counts[READ][2] = sum(entry[2] for key, entry in counts.items() if key != READ)
            if not counts["shards/kept"][0]:
                for split in LEFT[:2]:
                    counts[f"shards/{split}"] = counts[f"shards/{split}"]
            for key in sorted(counts, key=_place):
                stage, _, reason = key.partition("/")
                values = dict(zip(("documents", "bytes", "tokens"), counts[key], strict=True))
                if any(values.values()) or key == READ or (stage == "shards" and reason != "kept"):
                    rows.append({"source": source, "stage": stage, "reason": reason, **values})
        check(rows)
        return rows


def _place(key: str) -> tuple[int, bool, str]:
    return STAGES.index(key.split("/")[0]), key != READ, key


def check(rows: Iterable[Mapping[str, Any]]) -> None:
    """Raises `ValueError` where a source's rows do not add up to what was read (tokens: where they were counted)."""
    left: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    rows = list(rows)
    uncounted = {row["source"] for row in rows if row["reason"] == "read" and not row["tokens"]}
    for row in rows:
        sign = 1 if row["reason"] == "read" else -1
        for index, key in enumerate(("documents", "bytes", "tokens")):
            if key != "tokens" or row["source"] not in uncounted:
                left[row["source"]][index] += sign * row[key]
    wrong = {source: rest for source, rest in left.items() if any(rest)}
    if wrong:
        raise ValueError(f"the funnel does not add up (documents, bytes, tokens left over): {wrong}")
