"""Tells by an error that another rank has ended."""

from __future__ import annotations

import re

import torch.distributed as dist

# gloo reports a peer that is gone or late as a plain RuntimeError, so its text must tell.
_LOST = re.compile(r"gloo|nccl|timed out|connection (closed|reset|refused)|broken pipe|process ?group", re.IGNORECASE)


def sign_of_a_lost_rank(error: Exception) -> str | None:
    """Tells by what an error is known as another rank's end: its type or some words; None: it is this rank's own.

    A RuntimeError of this rank may hold such words by chance; the log then names them.
    """
    if isinstance(error, dist.DistError):
        return f"its type, {type(error).__name__}"
    if isinstance(error, RuntimeError) and (match := _LOST.search(str(error))):
        return f"the words {match[0]!r} in its text"
    return None
