"""Counts of documents and bytes, capped examples, and manifests that survive the way to disk and back."""

from __future__ import annotations

import json

from data_prep.workers.manifests import Capped, Count, DocumentsManifest, PartEntry, add_counts, add_marks, read_counts


def test_counts_add_up_and_are_lists_in_json() -> None:
    total = {"a/b": Count(1, 10)}
    add_counts(total, {"a/b": [2, 5], "c/d": [0, -3]})
    assert total == {"a/b": (3, 15), "c/d": (0, -3)}
    assert json.dumps(total) == '{"a/b": [3, 15], "c/d": [0, -3]}'
    assert read_counts(json.loads(json.dumps(total))) == total


def test_marks_add_up_whatever_their_length() -> None:
    marks = {"privacy/emails": [3]}
    add_marks(marks, {"privacy/emails": [4], "near/seen": [1, 200]})
    add_marks(marks, {"near/seen": [1, 1]})
    assert marks == {"privacy/emails": [7], "near/seen": [2, 201]}


def test_the_first_of_each_kind_are_taken() -> None:
    capped = Capped(2)
    assert [capped.take(kind) for kind in "aababa"] == [True, True, True, False, True, False]
    assert not capped.wants("a") and capped.wants("c") and not Capped(0).wants("c")


def test_a_manifest_comes_back_from_disk() -> None:
    part = PartEntry("000-00000-000000", "s", "a.jsonl", 3, 30)
    manifest = DocumentsManifest(
        [part], {"s": {"read/read": Count(3, 33)}}, {"s": {"privacy/emails": [1]}}, [{"key": "x"}]
    )
    assert DocumentsManifest.of(json.loads(json.dumps(manifest.content()))) == manifest
