"""Uploads the newest checkpoints to an fsspec URL, after each commit and beside training. Free of torch."""

from __future__ import annotations

import re
import shutil
import threading
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import Any

from configs.common.files import fsync_path, read_json, temporary_beside, write_json
from configs.common.notices import say, warn
from configs.common.stores import open_store
from configs.safety.parsing import parse_json
from configs.schema.train import CheckpointPolicy
from pretrain.checkpoint.manifest import MANIFEST
from pretrain.checkpoint.ranking import penalty
from pretrain.checkpoint.retention import expired

_OWNER = "mirror.json"  # in the run directory and at the URL: a name for the run whose checkpoints these are


def _own_file(parent: Path) -> Path:
    return parent.parent / _OWNER  # not among checkpoints, where leftovers of writers are removed


def _own_name(parent: Path) -> str | None:
    file = _own_file(parent)
    return str(read_json(file)["run"]) if file.is_file() else None


class OtherRun(ValueError):
    """The mirror belongs to another run."""


class Mirror:
    """The checkpoints of one run in another place: `URL/step_00000100/…`, complete when they have a manifest.

    One upload at a time, in a thread; when checkpoints come faster than they are sent, the newest is the next to go.
    """

    def __init__(self, policy: CheckpointPolicy) -> None:
        """Raises `ValueError` when fsspec is missing, or the URL's protocol is none of ours."""
        url = policy.mirror
        assert url is not None
        try:
            self._store, root = open_store(url, policy.mirror_options)
        except ValueError as error:
            raise ValueError(f"train.checkpoint.mirror: {error}; or drop train.checkpoint.mirror") from error
        self._url, self._root, self._policy = url, root.rstrip("/"), policy
        self._changed = threading.Condition()
        self._waiting: Path | None = None
        self._closing = False
        self._thread: threading.Thread | None = None
        self.sending: str | None = None  # name of the checkpoint that is being read

    # --------------------------------------------------------------------------------------------------------- owning
    def check(self, parent: Path) -> None:
        """Refuses a mirror of another run, whose checkpoints would be removed as old ones of this run.

        Args:
            parent: the directory of this run's checkpoints.

        Raises:
            OtherRun: naming the URL; nothing was copied or removed.
        """
        theirs = self._owner()
        # Earlier versions gave runs no names; then a checkpoint that is here and there tells.
        ours = theirs == _own_name(parent) if theirs is not None else not self.names() or self._shares_one_with(parent)
        if not ours:
            raise OtherRun(
                f"train.checkpoint.mirror {self._url} holds checkpoints of another run, and nothing is copied there or "
                "removed; choose a URL of this run's own"
            )

    def _owner(self) -> str | None:
        """Name of the run that the mirror belongs to; None: of no run yet."""
        file = f"{self._root}/{_OWNER}"
        if not self._store.exists(file):
            return None
        content = parse_json(self._store.cat_file(file))
        return str(content.get("run")) if isinstance(content, dict) else ""

    def _shares_one_with(self, parent: Path) -> bool:
        for name in self.names():
            file = parent / name / MANIFEST
            if file.is_file() and self._store.cat_file(f"{self._root}/{name}/{MANIFEST}") == file.read_bytes():
                return True
        return False

    def _claim(self, parent: Path) -> None:
        """Makes the mirror this run's, if it belongs to none yet."""
        self._store.invalidate_cache()
        self.check(parent)
        if _own_name(parent) is None:
            write_json(_own_file(parent), {"run": uuid.uuid4().hex})
        if self._owner() is None:
            self._store.makedirs(self._root, exist_ok=True)
            self._store.pipe_file(f"{self._root}/{_OWNER}", _own_file(parent).read_bytes())
            self._store.invalidate_cache()
            self.check(parent)  # another run may have done so at the same moment

    # ------------------------------------------------------------------------------------------------------- fetching
    def names(self) -> list[str]:
        """The complete checkpoints there, newest first."""
        if not self._store.exists(self._root):
            return []
        self._store.invalidate_cache()
        found = [path.rstrip("/").rpartition("/")[2] for path in self._store.ls(self._root, detail=False)]
        steps = sorted((name for name in found if re.fullmatch(r"step_\d{8}", name)), reverse=True)
        return [name for name in steps if self._store.exists(f"{self._root}/{name}/{MANIFEST}")]

    def fetch(self, parent: Path, skip: Collection[str]) -> Path | None:
        """Copies the newest complete checkpoint that is not in `skip` into `parent`; None when there is none.

        Raises:
            OSError: when it cannot be read or written.
        """
        name = next((name for name in self.names() if name not in skip), None)
        if name is None:
            return None
        say(f"fetching {name} from {self._url} …")
        parent.mkdir(parents=True, exist_ok=True)
        if (owner := self._owner()) is not None:
            write_json(_own_file(parent), {"run": owner})  # this run goes on as that one
        partial = temporary_beside(parent / name)
        partial.mkdir()
        try:
            for remote in self._store.find(f"{self._root}/{name}"):
                file = partial / remote.rpartition(f"/{name}/")[2]
                if not file.resolve().is_relative_to(partial.resolve()):
                    raise ValueError(f"{self._url}: {remote} lies outside its checkpoint; use another mirror")
                file.parent.mkdir(parents=True, exist_ok=True)
                self._store.get_file(remote, str(file))
                fsync_path(file)
            fsync_path(partial)
            partial.rename(parent / name)
            fsync_path(parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return parent / name

    # ------------------------------------------------------------------------------------------------------ uploading
    def send(self, directory: Path) -> None:
        """Uploads a committed checkpoint when the one under way is done; returns at once."""
        with self._changed:
            self._waiting = directory
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Waits for what is to be sent."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self.sending = None
                self._changed.wait_for(lambda: self._waiting is not None or self._closing)
                directory, self._waiting = self._waiting, None
                if directory is None:
                    return
                self.sending = directory.name
            try:
                self._upload(directory)
            except Exception as error:  # whatever a store raises: training does not depend on it
                warn(
                    f"{directory.name} could not be copied to {self._url}: {type(error).__name__}: {error}; "
                    "the next checkpoint will be tried"
                )

    def _upload(self, directory: Path) -> None:
        self._claim(directory.parent)
        target = f"{self._root}/{directory.name}"
        if self._store.exists(target):
            self._remove(directory.name)
        files = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != MANIFEST]
        for file in [*files, directory / MANIFEST]:  # which makes it complete
            remote = f"{target}/{file.relative_to(directory).as_posix()}"
            self._store.makedirs(remote.rpartition("/")[0], exist_ok=True)
            self._store.put_file(str(file), remote)
        names = {int(name.removeprefix("step_")): name for name in self.names()}
        scores = {step: self._score(name) if self._policy.keep_best else None for step, name in names.items()}
        for step in expired(scores, self._policy):
            self._remove(names[step])

    def _score(self, name: str) -> float | None:
        state: dict[str, Any] = parse_json(self._store.cat_file(f"{self._root}/{name}/{MANIFEST}"))["state"]
        return penalty(state, self._policy)

    def _remove(self, name: str) -> None:
        manifest = f"{self._root}/{name}/{MANIFEST}"
        if self._store.exists(manifest):
            self._store.rm_file(manifest)  # first: the rest is no checkpoint any more
        self._store.rm(f"{self._root}/{name}", recursive=True)
