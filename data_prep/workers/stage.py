"""Manages a stage's directory: skips a stage whose fingerprint is the same, and resumes an interrupted one.

Units of work are committed one by one: their files first, then `units/NAME.json`. `manifest.json` is written last and
stands for the whole. Fingerprints cover inputs, parameters and the code, never places.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from configs.common.files import fingerprint, read_json, remove_leftovers, sha256_file, temporary_beside, write_json
from configs.common.layout import MANIFEST
from data_prep.workers.worker_notes import current

_MARKER = "in_progress.json"
_UNITS = "units"


class WorkUnit(Protocol):
    """A task that commits one unit of work of a stage."""

    @property
    def name(self) -> str:
        """Name under which the unit is committed."""

    @property
    def bytes(self) -> float:
        """Bytes of text behind the unit, for the progress bar."""


Unit = TypeVar("Unit", bound=WorkUnit)


class Run(Protocol):
    """Runs a function over the units of a stage that are not committed yet, on any number of workers."""

    def __call__(self, label: str, function: Callable[[Unit], object], tasks: Sequence[Unit]) -> None:
        """Returns when all units are committed.

        Args:
            label: shown beside the progress bar.
            function: at module level, so that workers can import it; commits its task's unit.
            tasks: all units of the pass, those committed before included.
        """


def describe_file(path: Path) -> dict[str, Any]:
    """Size and SHA-256, as manifests hold them."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


class Stage:
    """One stage's directory.

    Args:
        directory: where it lies.
        inputs: everything its output depends on, JSON-serialisable.
    """

    def __init__(self, directory: Path, inputs: dict[str, Any]) -> None:
        self.directory = directory
        self.name = directory.name
        self.inputs = inputs
        self.fingerprint = fingerprint(inputs)

    def __getstate__(self) -> dict[str, Any]:
        """Workers need the place alone, and inputs may name a hundred thousand files."""
        return {**self.__dict__, "inputs": {}}

    def read(self) -> dict[str, Any] | None:
        """Reads the manifest. None unless its fingerprint matches and all files exist with their sizes.

        Clears away what a run left that was killed after it wrote the manifest.
        """
        file = self.directory / MANIFEST
        if not file.is_file():
            return None
        manifest: dict[str, Any] = read_json(file)
        if manifest.get("fingerprint") != self.fingerprint:
            return None
        for name, known in manifest["files"].items():
            path = self.directory / name
            if not path.is_file() or path.stat().st_size != known["bytes"]:
                return None
        self._clear_work()
        return manifest

    def begin(self) -> None:
        """Makes the directory ready: what an interrupted run of the same inputs committed stays, all else goes.

        Raises:
            ValueError: when the directory holds what no stage made, such as somebody's `documents`.
        """
        marker = self.directory / _MARKER
        same = marker.is_file() and read_json(marker) == {"fingerprint": self.fingerprint}
        if not same and self.directory.exists():
            self._remove()
        (self.directory / _UNITS).mkdir(parents=True, exist_ok=True)
        self._clear_leftovers()
        (self.directory / MANIFEST).unlink(missing_ok=True)
        write_json(marker, {"fingerprint": self.fingerprint})

    def _remove(self) -> None:
        known = (MANIFEST, _MARKER, _UNITS)
        if any(self.directory.iterdir()) and not any((self.directory / name).exists() for name in known):
            raise ValueError(
                f"{self.directory} holds files that data preparation did not make, and nothing of them is removed; "
                "choose another data.directory or --out"
            )
        aside = temporary_beside(self.directory)  # whole or gone: half of it would look like somebody's files
        self.directory.rename(aside)
        shutil.rmtree(aside)

    def unit_file(self, name: str, suffix: str) -> Path:
        """A file that belongs to a unit of work."""
        return self.directory / _UNITS / f"{name}{suffix}"

    def commit(self, name: str, content: dict[str, Any]) -> None:
        """Commits the unit. Its files must be in place."""
        write_json(self.unit_file(name, ".json"), content)
        current().committed(name)

    def unit(self, name: str) -> dict[str, Any] | None:
        """Content that was committed for the unit; None for a unit that is not done."""
        file = self.unit_file(name, ".json")
        return read_json(file) if file.is_file() else None

    def missing(self, tasks: Iterable[Unit]) -> list[Unit]:
        """The tasks whose unit is not committed yet."""
        return [task for task in tasks if not self.unit_file(task.name, ".json").is_file()]

    def committed(self) -> set[str]:
        """Names of the units that are done."""
        return {path.name.removesuffix(".json") for path in (self.directory / _UNITS).glob("[!.]*.json")}

    def finish(self, content: dict[str, Any], files: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Writes the manifest, then clears away what only served the work, and what dead workers left."""
        self._clear_leftovers()
        manifest = {"fingerprint": self.fingerprint, "inputs": self.inputs, "files": files, **content}
        write_json(self.directory / MANIFEST, manifest)
        self._clear_work()
        result: dict[str, Any] = json.loads(json.dumps(manifest))
        return result

    def _clear_leftovers(self) -> None:
        """Removes what workers left that died in the middle of a file."""
        for directory in (self.directory, *(path for path in self.directory.iterdir() if path.is_dir())):
            remove_leftovers(directory)

    def _clear_work(self) -> None:
        shutil.rmtree(self.directory / _UNITS, ignore_errors=True)
        (self.directory / _MARKER).unlink(missing_ok=True)
