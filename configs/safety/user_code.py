"""Reads custom code that a recipe names as `FILE.py:NAME`: a reader, a quality rule or an objective.

The main process reads the file once. The fingerprint covers this text, and Ray workers receive and run exactly this
text on every machine. So a `UserCode` pickles as text, and a function as its file and name.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from configs.safety.trust import check_trusted

_MODULE = "replica_user_code_"  # and the digest of the text: another text is another module


@dataclass(frozen=True)
class UserCode:
    """Refers to a function or class in a file of the user.

    Attributes:
        file: the absolute path, for messages and tracebacks.
        name: of the function or class in it.
        text: of the whole file.
        options: keyword arguments that the recipe gives it.
        trusted: whether it may run; see `allowed`.
    """

    file: str
    name: str
    text: str = field(repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)
    trusted: bool = False

    @staticmethod
    def read(reference: str, options: Mapping[str, Any] | None = None) -> UserCode:
        """Reads the file of `FILE.py:NAME`, without running it.

        Raises:
            ValueError: when there is no such file, or it is not UTF-8 text.
        """
        path, _, name = reference.rpartition(":")
        file = Path(path).absolute()
        try:
            text = file.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise ValueError(f"{file}: no such file; correct `code: FILE.py:NAME` of the recipe") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8 text ({error}); save it as UTF-8") from error
        return UserCode(str(file), name, text, dict(options or {}))

    def allowed(self, setting: str) -> UserCode:
        """Returns a copy that is allowed to run.

        Args:
            setting: the setting of the recipe, for the message.

        Raises:
            ValueError: when nobody named the file's directory with `--trust`, see `configs.safety.trust`.
        """
        check_trusted(Path(self.file).parent, setting, "it runs Python code of yours")
        return replace(self, trusted=True)

    @property
    def identity(self) -> dict[str, Any]:
        """Returns the entries for a fingerprint: name, options and a digest of the text, without the file's path."""
        digest = sha256(self.text.encode()).hexdigest()
        return {"name": self.name, "options": dict(self.options), "sha256": digest}

    def load(self) -> Any:
        """Returns the function or class. The file runs once in each process.

        Raises:
            ValueError: when the file cannot be run, or does not define the name.
            PermissionError: for code that was not allowed, a bug in the caller.
        """
        if not self.trusted:
            raise PermissionError(f"{self.file} was not allowed to run")
        name = _MODULE + sha256(f"{self.file}\n{self.text}".encode()).hexdigest()[:16]
        module = sys.modules.get(name) or self._run(name)
        try:
            return getattr(module, self.name)
        except AttributeError:
            known = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == name]
            raise ValueError(
                f"{self.file} has no `{self.name}`; it has {', '.join(known) or 'no functions or classes'}"
            ) from None

    def _run(self, name: str) -> ModuleType:
        spec = importlib.util.spec_from_loader(name, _Text(self.file, self.text), origin=self.file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        module.__file__ = self.file
        sys.modules[name] = module  # before it runs, as dataclasses and pickle look there
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise ValueError(f"{self.file} cannot be run: {type(error).__name__}: {error}") from error
        return module

    def check_call(self, *arguments: str) -> None:
        """Checks that the function or class accepts these arguments together with the recipe's options.

        Raises:
            ValueError: naming the arguments that do not fit.
        """
        function = self.load()
        try:
            inspect.signature(function).bind(*arguments, **self.options)
        except (TypeError, ValueError) as error:
            given = [*arguments, *(f"{key}={value!r}" for key, value in self.options.items())]
            raise ValueError(
                f"{self.file}:{self.name} is called with ({', '.join(given)}): {error}; correct its arguments, or "
                "`options` of the recipe"
            ) from error


class _Text(importlib.abc.InspectLoader):
    """Loads a text as a module. Tracebacks show its lines even on machines without the file."""

    def __init__(self, file: str, text: str) -> None:
        self._file, self._text = file, text

    def get_source(self, fullname: str) -> str:
        return self._text

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = self.source_to_code(self._text, self._file)
        return code
