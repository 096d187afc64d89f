"""The stages of `replica run`, in order, each skipped when its fingerprint holds.

The skip path imports neither torch nor ray: asking whether a finished run is current takes a second.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from configs.files import read_json
from configs.recipe import Recipe, save


@dataclass(frozen=True)
class Stage:
    """One stage: its name, whether its output is current, and the work."""

    title: str
    is_current: Callable[[], bool]
    work: Callable[[], object]


def run_all(recipe: Recipe) -> int:
    """Runs every stage that is not current, then prints the report's path and the headline numbers."""
    console = Console(stderr=True, highlight=False)
    run = recipe.run_directory
    save(recipe, run)
    began = time.monotonic()
    stages = _stages(recipe)
    for number, stage in enumerate(stages, start=1):
        _do(stage, f"[{number}/{len(stages)}] {stage.title}", console)
    console.print(f"done in {_duration(time.monotonic() - began)}")
    print_headlines(run)
    print(f"report: {_shown(run / 'report' / 'index.html')}")
    return print_gates(run)
