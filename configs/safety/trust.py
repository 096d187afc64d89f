"""Code that a recipe or a run directory brings along: it runs only when it is named on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_TRUSTED: ContextVar[tuple[Path, ...]] = ContextVar("trusted", default=())


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Adds `--trust DIR`, which may stand several times."""
    what = "let code in this directory run: lm-eval tasks, and readers, rules and objectives (docs/security.md)"
    parser.add_argument("--trust", action="append", default=[], metavar="DIR", help=what)


@contextmanager
def trusting(directories: Iterable[str | Path]) -> Iterator[None]:
    """Lets the code below these directories run inside of the body; what `--trust DIR` of the command line does."""
    token = _TRUSTED.set((*_TRUSTED.get(), *(Path(directory).resolve() for directory in directories)))
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def trust_options() -> list[str]:
    """`--trust DIR` for each directory that was named: for the command line of processes that this one starts."""
    return [word for directory in _TRUSTED.get() for word in ("--trust", str(directory))]


def check_trusted(directory: str | Path, setting: str, what: str = "lm-eval tasks may run code of their own") -> None:
    """Refuses a directory that nobody has named.

    Args:
        directory: whose code would run.
        setting: of the recipe, named in the message.
        what: would happen, for the message.

    Raises:
        ValueError: saying how to name it.
    """
    place = Path(directory).resolve()
    if not any(place.is_relative_to(named) for named in _TRUSTED.get()):
        raise ValueError(
            f"{setting}: {what} (docs/security.md), and {place} is not part of "
            f"Replica; read it, and when you trust it, name it on the command line: --trust {place}"
        )
