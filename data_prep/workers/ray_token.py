"""Protects the token of Ray's daemons: whoever can read it can run code through them."""

from __future__ import annotations

import os
import secrets
import uuid
from pathlib import Path


def token_file() -> Path:
    """File in which Ray looks for the token unless `RAY_AUTH_TOKEN` or `RAY_AUTH_TOKEN_PATH` is set."""
    return Path.home() / ".ray" / "auth_token"


def private_token(make: bool) -> None:
    """Sees to it that the token can be read by its owner alone (mode 0600); Ray leaves that to the umask.

    Args:
        make: whether to make one where there is none, as Ray does for a new cluster.
    """
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    file = token_file()
    try:
        if make and os.environ.get("RAY_AUTH_MODE", "token") == "token" and not file.exists():
            _make(file)
        if file.stat().st_mode & 0o077 and file.stat().st_uid == os.getuid():
            file.chmod(0o600)
    except OSError:
        return  # a home that cannot be written to, or none: then Ray says what it needs


def _make(file: Path) -> None:
    """Whole or not at all, and never in the place of one that another process makes at the same moment."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{uuid.uuid4().hex}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, secrets.token_hex(32).encode())  # as `ray get-auth-token --generate`
        os.link(temporary, file)
    except FileExistsError:
        pass
    finally:
        os.close(descriptor)
        temporary.unlink()
