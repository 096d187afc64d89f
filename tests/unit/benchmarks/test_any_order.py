"""The benchmark of masked diffusion: its recipes load, and its table and curve; nothing is trained here."""

from __future__ import annotations

import importlib.util
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
_SPEC = importlib.util.spec_from_file_location("any_order", ROOT / "benchmarks" / "any_order.py")
assert _SPEC is not None and _SPEC.loader is not None
any_order: Any = importlib.util.module_from_spec(_SPEC)
sys.modules["any_order"] = any_order  # its dataclasses look themselves up
_SPEC.loader.exec_module(any_order)


def test_the_runs_of_a_part_differ_in_objective_start_and_length_alone(tmp_path: Path) -> None:
    for part in any_order.PARTS:
        runs = any_order.runs_of(part, tiny=False)
        recipes = {run.name: any_order.recipe_of(run, tmp_path, 1, tiny=False) for run in runs}
        assert len({recipe.data_directory for recipe in recipes.values()}) == 1
        assert len({recipe.data.tokenizer.model_dump_json() for recipe in recipes.values()}) == 1
        for run in runs:
            assert recipes[run.name].model.causal == (run.objective == any_order.CAUSAL)
            started = recipes[run.name].train.init_from
            assert started == (str(tmp_path / part / f"{run.start}-1") if run.start else None)
    tokens = {run.name: recipe.train.tokens for run, recipe in [
        (run, any_order.recipe_of(run, tmp_path, 1, tiny=False)) for run in any_order.runs_of("text", tiny=False)
    ]}  # fmt: skip
    assert tokens["causal"] == tokens["masked"] == 2 * tokens["masked-half"] == 2 * tokens["masked-from-causal"]
    assert tokens["causal-half"] + tokens["masked-after-half"] == tokens["masked"], "as many tokens in all"


def test_table_and_curve() -> None:
    found = [
        any_order.Measured(
            "proteins", f"{kind}-{count}", kind, f"{count} epochs", seed, 1e5 * count, 4.2, 4.1, 4.3, 9e3
        )
        for kind in (any_order.CAUSAL, any_order.MASKED)
        for count in any_order.EPOCHS
        for seed in (1, 2)
    ]
    rows = any_order.table(found).splitlines()[2:]
    assert (
        len(rows) == 6 and "| causal | 1 epochs | 100,000 | 4.200 | 4.100 to 4.300 | 4.200, 4.200 | 9,000 |" in rows[0]
    )
    assert "≤ 4.200" in rows[3]
    assert ET.fromstring(any_order.curve(found)) is not None and any_order.curve([]) is None
