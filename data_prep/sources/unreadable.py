"""Sorts errors into those of one document or file, and those that end the run.

Libraries raise what they like at a document that nobody has thought of, so that no list of exceptions is ever whole.
What is listed here is therefore the other side: faults of the machine, of the installation, and wishes of the user.
Everything else that reading, extracting or judging one document raises is counted with that document.
"""

from __future__ import annotations

import errno

# What the system says about a value or an offset, which come from the file; its other errors are its own.
_OF_VALUES = frozenset(
    {errno.EINVAL, errno.ERANGE, errno.EDOM, errno.EOVERFLOW, errno.EILSEQ, errno.EBADMSG, errno.ENAMETOOLONG}
)
_LINE_CHARACTERS = 300


def concerns_one(error: BaseException) -> bool:
    """Tells whether the error is that of the document or file at hand, so that the run goes on without it."""
    if not isinstance(error, Exception):
        return type(error).__name__ == "PanicException"  # of Rust code; Ctrl-C, exits and time limits are others
    if isinstance(error, OSError):
        return error.errno is None or error.errno in _OF_VALUES
    return not isinstance(error, MemoryError | ImportError | UnreadableFile)


def describe(error: BaseException) -> str:
    """The error in one line: its type and the first line of what it says."""
    said = next(iter(str(error).splitlines()), "")[:_LINE_CHARACTERS]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


class UnreadableFile(ValueError):
    """A file of which nothing more can be read, ever; the message names it and the fix."""
