"""Stage fingerprints: they cover all code that decides what a stage writes, so that no stale data is used again."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from data_prep.decontamination.decontaminate import Decontamination
from data_prep.dedup.exact import ExactDeduplication
from data_prep.dedup.near import NearDeduplication
from data_prep.dedup.repeated_lines import LineDeduplication
from data_prep.dedup.substrings import SubstringDeduplication
from data_prep.selection.select import Selection
from data_prep.stages import graph

ROOT = Path(__file__).resolve().parents[4] / "data_prep"
# Where and when work is done, and what is shown of it; no byte of a stage's files depends on these.
MACHINERY = {"workers/stage", "workers/worker_notes"}
STAGES = {
    "dedup/exact": ExactDeduplication.code,
    "dedup/repeated_lines": LineDeduplication.code,
    "dedup/near": NearDeduplication.code,
    "dedup/substrings": SubstringDeduplication.code,
    "decontamination/decontaminate": Decontamination.code,
    "selection/select": Selection.code,
    "documents/parts_writer": graph.DOCUMENT_CODE,
    "tokens/pack": graph.PACKING_CODE,
    "tokens/vocab_training": graph.TOKENIZER_CODE,
}


@cache
def imported(module: str) -> frozenset[str]:
    """Modules of data_prep that a module imports, inside functions too, as `room/file`."""
    file = ROOT / f"{module}.py"
    names: set[str] = set()
    for node in ast.walk(ast.parse((file if file.is_file() else ROOT / module / "__init__.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("data_prep."):
            inner = node.module.removeprefix("data_prep.").replace(".", "/")
            below = {f"{inner}/{alias.name}" for alias in node.names if (ROOT / inner / f"{alias.name}.py").is_file()}
            names |= below or {inner}
    return frozenset(names)


@pytest.mark.parametrize("module", STAGES)
def test_a_fingerprint_covers_all_code_that_a_stage_imports(module: str) -> None:
    needed, queue = set(), [module]
    while queue:
        name = queue.pop()
        if name not in needed and name not in MACHINERY:
            needed.add(name)
            queue += imported(name)
    code = STAGES[module]
    assert {name for name in code if not (ROOT / name).is_dir() and not (ROOT / f"{name}.py").is_file()} == set()
    covered = {name for name in needed if name in code or name.split("/")[0] in code}
    assert needed - covered == set()
