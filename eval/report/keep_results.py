"""Keeps of a run what a later report compares with: scores, their items, the report. CI keeps it as an artifact."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from configs.common.files import atomic_directory
from configs.common.layout import REPORT, RESULTS, STAGES
from eval.items.store import DIRECTORY as SCORES
from eval.items.store import SUFFIX
from eval.report.stamp import PAGES


def keep_results(run: Path, directory: Path) -> None:
    """Copies `results.json`, items and report of a run and its stages; an earlier copy is replaced as a whole.

    The recipe stays behind, because it may have secrets; `results.json` has it without them.

    Args:
        run: an evaluated run directory with its report.
        directory: new or empty, or an earlier copy. `replica report --baseline` takes it in place of a run.

    Raises:
        ValueError: when the directory holds anything else, which would be lost.
    """
    if directory.exists() and not _is_ours(directory):
        raise ValueError(f"--keep {directory}: this is no earlier copy of results; name a new or an empty directory")
    with atomic_directory(directory) as temporary:
        for file in _files(run):
            target = temporary / file.relative_to(run)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def _is_ours(directory: Path) -> bool:
    if not directory.is_dir() or directory.is_symlink():
        return False
    found = {path.name for path in directory.iterdir()}
    return not found or (RESULTS in found and found <= {RESULTS, SCORES, REPORT, STAGES})


def _files(run: Path) -> Iterator[Path]:
    yield run / RESULTS
    yield from sorted((run / SCORES).glob(f"*{SUFFIX}"))
    yield from (page for name in PAGES if (page := run / REPORT / name).is_file())
    for results in sorted(run.glob(f"{STAGES}/*/{RESULTS}")):
        yield from _files(results.parent)
