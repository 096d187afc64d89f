"""Tells the user something on stderr, each kind of message in one form.

All go through the logger `replica`, so that a program that uses Replica as a library can silence or redirect them:
`logging.getLogger("replica").setLevel(logging.WARNING)`. Ranks other than the main one call nothing of this for what
all ranks know.
"""

from __future__ import annotations

import logging
import sys

_LOGGER = logging.getLogger("replica")
_NOTE = 25  # between INFO and WARNING
_PREFIXES = {_NOTE: "note: ", logging.WARNING: "warning: "}


class _ToStderr(logging.Handler):
    """Writes to the stderr of the moment, which tests and progress bars exchange."""

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
    """What the program does now or has found: no prefix."""
    _LOGGER.info("%s", text)


def note(text: str) -> None:
    """What the user may want to know or to change: `note: …`."""
    _LOGGER.log(_NOTE, "%s", text)


def warn(text: str) -> None:
    """What went wrong without ending the run: `warning: …`."""
    _LOGGER.warning("%s", text)
