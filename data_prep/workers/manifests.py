"""Types of what stages write into their manifests, and how their counts are added up.

On disk a manifest is JSON (`Stage.finish`); these classes hold the content that other stages use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple


class Count(NamedTuple):
    """Documents and the UTF-8 bytes of their text; in JSON the list [documents, bytes]."""

    documents: int = 0
    bytes: int = 0

    def plus(self, documents: int, size: int) -> Count:
        """The count with so many documents and bytes more."""
        return Count(self.documents + documents, self.bytes + size)


Counts = dict[str, Count]  # by reason, or by `stage/reason`
Marks = dict[str, list[int]]  # by kind; the first number says how often
Example = dict[str, Any]  # what a rule did to one document, for the funnel page


def read_counts(content: Mapping[str, Sequence[int]]) -> Counts:
    """Counts from their JSON."""
    return {key: Count(*entry) for key, entry in content.items()}


def add_counts(total: Counts, counts: Mapping[str, Sequence[int]]) -> None:
    """Adds counts, or their JSON, in place."""
    for key, (documents, size) in counts.items():
        total[key] = total.get(key, Count()).plus(documents, size)


def add_marks(total: Marks, marks: Mapping[str, Sequence[int]]) -> None:
    """Adds marks in place, number by number."""
    for key, values in marks.items():
        total[key] = [have + more for have, more in zip(total.get(key, [0] * len(values)), values, strict=True)]


class Capped:
    """Lets through the first few things of each kind, such as examples of each reason.

    Args:
        limit: how many of each kind.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: Counter[Hashable] = Counter()

    def take(self, kind: Hashable) -> bool:
        """Counts one more of this kind; True for the first ones."""
        self._seen[kind] += 1
        return self._seen[kind] <= self._limit

    def wants(self, kind: Hashable) -> bool:
        """Tells whether `take` would say True; counts nothing."""
        return self._seen[kind] < self._limit


# ------------------------------------------------------------------------------------------------------------ manifests
@dataclass(frozen=True)
class PartEntry:
    """One part of the documents."""

    name: str
    source: str
    file: str  # name of the input file
    documents: int
    bytes: int  # of the normalised text


@dataclass(frozen=True)
class DocumentsManifest:
    """What stage `documents` wrote.

    Attributes:
        parts: in the order that decides which document comes first.
        counts: by source, then `stage/reason`.
        marks: by source, then kind.
        examples: some of each source and reason.
    """

    parts: list[PartEntry]
    counts: dict[str, Counts]
    marks: dict[str, Marks]
    examples: list[Example]

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> DocumentsManifest:
        """From the stage's manifest."""
        counts = {source: read_counts(own) for source, own in manifest["counts"].items()}
        return cls([PartEntry(**part) for part in manifest["parts"]], counts, manifest["marks"], manifest["examples"])

    def content(self) -> dict[str, Any]:
        """For `Stage.finish`."""
        return asdict(self)


@dataclass(frozen=True)
class VerdictManifest:
    """What a verdict stage decided.

    Attributes:
        counts: dropped documents and bytes taken out, by source, then reason.
        marks: documents that are counted and stay, by source, then reason.
        examples: some of each source and reason.
    """

    counts: dict[str, Counts]
    marks: dict[str, Marks]
    examples: list[Example]

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> VerdictManifest:
        """From the stage's manifest."""
        counts = {source: read_counts(own) for source, own in manifest["counts"].items()}
        return cls(counts, manifest["marks"], manifest["examples"])

    def content(self) -> dict[str, Any]:
        """For `Stage.finish`."""
        return asdict(self)


@dataclass(frozen=True)
class ShardEntry:
    """One shard; `prefix` is its path inside the stage, without an ending."""

    split: str
    source: str
    prefix: str
    documents: int
    tokens: int
    bytes: int  # of the text behind the tokens


@dataclass(frozen=True)
class ShardsManifest:
    """What stage `shards` wrote.

    Attributes:
        shards: in order.
        files: size and SHA-256 of each file, by its path inside the stage.
        tokenizer: fingerprint of the vocabulary.
        dropped_tokens: tokens of documents that were left out, by source, then `stage/reason`.
        lost: documents and bytes that the tokens do not give back, by source.
        units: of conversations, pairs and prompts: how many, bytes of their text and tokens, by source, then split or
            the reason why they are not in the shards; None for documents, which the shards count.
    """

    shards: list[ShardEntry]
    files: dict[str, Any]
    tokenizer: str
    dropped_tokens: dict[str, dict[str, int]]
    lost: Counts
    units: dict[str, dict[str, list[int]]] | None = None

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> ShardsManifest:
        """From the stage's manifest."""
        return cls(
            [ShardEntry(**shard) for shard in manifest["shards"]],
            manifest["files"],
            manifest["inputs"]["tokenizer"],
            manifest["dropped_tokens"],
            read_counts(manifest["lost"]),
            manifest.get("units"),
        )
