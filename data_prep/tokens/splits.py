"""Decides for each document whether it is trained on or validated with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from configs.schema.chat import Unit
from configs.schema.sources import Source
from data_prep.chat.messages import Pair, messages_to_json, unit_from_json
from data_prep.documents.document import UNIT, parent_id

TRAIN, VALIDATION = SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Split:
    """The split of the documents of one source.

    Attributes:
        source: with its `split`.
        validation_fraction: of a source without one.
        unit: what documents say.
    """

    source: Source
    validation_fraction: float
    unit: Unit = "document"

    def with_needed(self, columns: Sequence[str]) -> list[str]:
        """Adds the columns of a row that `__call__` needs."""
        needed = ["id", "part", *(["metadata"] if self.unit == "pair" else [])]
        return list(dict.fromkeys([*needed, *columns]))

    def __call__(self, row: Mapping[str, Any]) -> str:
        """Returns `train` or `validation` for a row of a part."""
        whole = split_key(parent_id(row["id"], row["part"]), self.unit, row)
        return split_of(whole, self.source, self.validation_fraction)


def split_of(identifier: str, source: Source, validation_fraction: float) -> str:
    """`train` or `validation`: the source's own, else by a hash of the document's id (of the whole, for a part)."""
    if source.split != "hash":
        return source.split
    return VALIDATION if unit_interval(identifier.encode()) < validation_fraction else TRAIN


def unit_interval(data: bytes) -> float:
    """A number in [0, 1) that depends on the bytes alone."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest()) / 2**64


@lru_cache(maxsize=1)
def _prompt_of(metadata: str) -> str:
    pair = unit_from_json("pair", json.loads(metadata)[UNIT])
    assert isinstance(pair, Pair)
    return json.dumps(messages_to_json(pair.prompt), sort_keys=True)


def split_key(identifier: str, unit: Unit, row: Mapping[str, Any]) -> str:
    """What decides on which side of the split a document is: its id, but of a pair the prompt.

    Else answers to one question could be trained on with one pair and validated with another.
    """
    return _prompt_of(row["metadata"]) if unit == "pair" else identifier
