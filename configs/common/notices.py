"""Prints messages for the user on stderr: plain, `note: …` or `warning: …`.

All messages go through the logger `replica`, so that a program that uses Replica as a library can silence or redirect
them: `logging.getLogger("replica").setLevel(logging.WARNING)`. Of a message that all ranks have, rank 0 alone prints
    it.
"""

from __future__ import annotations

import logging
import sys

_LOGGER = logging.getLogger("replica")
_NOTE = 25  # between INFO and WARNING
_PREFIXES = {_NOTE: "note: ", logging.WARNING: "warning: "}


class _ToStderr(logging.Handler):
    """Writes to the current `sys.stderr`, which tests and progress bars replace."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one message and flushes it, so that log files show it at once."""
        try:
            print(_PREFIXES.get(record.levelno, "") + record.getMessage(), file=sys.stderr, flush=True)
        except Exception:  # as every handler of `logging` does
            self.handleError(record)


_LOGGER.addHandler(_ToStderr())
_LOGGER.setLevel(logging.INFO)
_LOGGER.propagate = False


def say(text: str) -> None:
    """Prints a message without a prefix: the program's current work, or a finding."""
    _LOGGER.info("%s", text)


def note(text: str) -> None:
    """Prints `note: …`: a fact that the user may want to know or to change."""
    _LOGGER.log(_NOTE, "%s", text)


def warn(text: str) -> None:
    """Prints `warning: …`: a failure that does not end the run."""
    _LOGGER.warning("%s", text)
