"""Takes prepared stages of earlier runs: a stage with equal inputs is not made twice.

A run's data stays whole and its own: files are hard links, so that either run may be moved, copied or removed, and the
bytes lie on the disk once. Where links cannot be, on another file system, files are copied. What was made where is
noted beside the run directories, in `.prepared/`, by those who made it: data that came with a run directory from
elsewhere is never taken for one's own.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from configs.common.files import atomic_directory, read_json, sha256_file, write_text
from configs.common.layout import MANIFEST
from configs.common.locks import locked
from configs.common.notices import say
from configs.safety.own_files import refuse_links
from configs.schema.recipe import Recipe
from data_prep.stages.graph import Plan
from data_prep.tokens.vocab import Vocab
from data_prep.workers.stage import Stage

_NOTES = ".prepared"
_LOCK = ".lock"
# Inputs of stages that say with which programs a stage is made, or follow from an earlier stage.
_PROGRAMS = {"code", "sample_code", "libraries", "unicode", "tokenizers", "before", "documents"}


class Reuse:
    """The notes beside a run directory. None are kept when the recipe names `data.directory`: its owner shares it.

    Args:
        recipe: of the run whose data is to be prepared.
    """

    def __init__(self, recipe: Recipe) -> None:
        own = recipe.data_directory
        self._run = None if recipe.data.directory else recipe.run_directory
        self._own = own

    def _note(self, stage: Stage) -> Path | None:
        return None if self._run is None else self._run.parent / _NOTES / f"{stage.name}-{stage.fingerprint}"

    def note(self, stage: Stage) -> None:
        """Notes that this run makes the stage, or has made it. Does nothing where the note cannot be written."""
        note = self._note(stage)
        if note is not None and self._run is not None:
            with suppress(OSError):
                write_text(note, self._run.name + "\n")

    def _other(self, stage: Stage) -> Path | None:
        """The data directory of the run that the stage was noted for; None for this run itself."""
        note = self._note(stage)
        if note is None or self._run is None or not note.is_file():
            return None
        name = note.read_text(encoding="utf-8").strip()
        other = self._run.parent / name / "data"
        if Path(name).name != name or name in ("", ".", "..") or other == self._own or other.is_symlink():
            return None
        return other if other.is_dir() and _mine(note.parent) and _mine(note) and _mine(other) else None

    def wait(self, stages: list[Stage]) -> None:
        """Waits for a run that is making one of these stages; call it while holding no lock."""
        for stage in stages:
            other = None if stage.read() is not None else self._other(stage)
            if other is None or (other / stage.name / MANIFEST).is_file() or not (other / _LOCK).is_file():
                continue

            def tell(other: Path = other) -> None:
                say(f"{other.parent} is preparing the same data; waiting for it")

            with locked(other / _LOCK, "", float("inf"), tell):
                pass

    def have(self, stage: Stage) -> dict[str, Any] | None:
        """The stage's manifest when this run has it, or another one that is noted; else None: it is to be made here.

        Also where it is made here, that is noted, so that others can wait for it.
        """
        found = stage.read()
        if found is None and (found := self.take(stage)) is None:
            self.note(stage)
        return found

    def take(self, stage: Stage) -> dict[str, Any] | None:
        """The stage of another run in this one's place, and its manifest; None where there is none."""
        other = self._other(stage)
        if other is None:
            return None
        source = other / stage.name
        try:
            refuse_links(source)
            manifest = read_json(source / MANIFEST)
            if manifest.get("fingerprint") != stage.fingerprint:
                return None
            if (damaged := _damaged(source, manifest["files"])) is not None:
                say(f"data: {source / damaged} is not what was written; `{stage.name}` is made here")
                return None
            with atomic_directory(stage.directory) as temporary:
                for file in sorted(path for path in source.rglob("*") if path.is_file() and path.name[0] != "."):
                    target = temporary / file.relative_to(source)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _link(file, target)
        except (OSError, ValueError, KeyError):  # it is being made anew, or is damaged: make our own
            return None
        taken = stage.read()
        if taken is not None:
            self.note(stage)
            say(f"data: `{stage.name}` is the one that {other.parent} has")
        return taken


def _mine(path: Path) -> bool:
    """Tells whether it is this user's: where all may write, as in /tmp, a note could be anybody's."""
    return path.stat().st_uid == os.geteuid()


def _damaged(directory: Path, files: dict[str, Any]) -> str | None:
    """The first file with other contents than were written: read once, so that one run's damage stays its own."""
    return next((name for name, known in files.items() if sha256_file(directory / name) != known["sha256"]), None)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


def changed_inputs(recipe: Recipe) -> list[str]:
    """Names the inputs that differ from those of the prepared data, as `stage.input`. Ignores versions of programs.

    A stage without a manifest does not say what it was made of, and is named as such.
    """
    plan = Plan(recipe)
    stages = [plan.documents, *(stage for _, stage in plan.verdicts), plan.tokenizer]
    if (plan.tokenizer.directory / MANIFEST).is_file():
        stages.append(plan.shards(Vocab.load(plan.tokenizer.directory)))
    found = []
    for stage in stages:
        file = stage.directory / MANIFEST
        if not file.is_file():
            found.append(f"{stage.name}/{MANIFEST} is gone")
            continue
        made = read_json(file).get("inputs", {})
        keys = (made.keys() | stage.inputs.keys()) - _PROGRAMS
        found += [f"{stage.name}.{key}" for key in sorted(keys) if made.get(key) != stage.inputs.get(key)]
    return found
