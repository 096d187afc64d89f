"""Lets code of a recipe or run directory run only when `--trust DIR` names its directory."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_TRUSTED: ContextVar[tuple[Path, ...]] = ContextVar("trusted", default=())


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Adds `--trust DIR`, which can be given several times."""
    what = "let code in this directory run: lm-eval tasks, and readers, rules and objectives (docs/security.md)"
    parser.add_argument("--trust", action="append", default=[], metavar="DIR", help=what)


@contextmanager
def trusting(directories: Iterable[str | Path]) -> Iterator[None]:
    """Lets code below these directories run within the body, like `--trust DIR` on the command line."""
    token = _TRUSTED.set((*_TRUSTED.get(), *(Path(directory).resolve() for directory in directories)))
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def trust_options() -> list[str]:
    """Returns `--trust DIR` for each trusted directory, for the command lines of child processes."""
    return [word for directory in _TRUSTED.get() for word in ("--trust", str(directory))]


def check_trusted(directory: str | Path, setting: str, what: str = "lm-eval tasks may run code of their own") -> None:
    """Refuses a directory that no `--trust` names.

    Args:
        directory: the directory with the code.
        setting: the setting of the recipe, for the message.
        what: the action that is refused, for the message.

    Raises:
        ValueError: with the option that allows it.
    """
    place = Path(directory).resolve()
    if not any(place.is_relative_to(named) for named in _TRUSTED.get()):
        raise ValueError(
            f"{setting}: {what} (docs/security.md), and {place} is not part of "
            f"Replica; read it, and when you trust it, name it on the command line: --trust {place}"
        )
