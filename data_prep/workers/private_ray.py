"""Starts a private Ray with no more processes than hand out work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Of Ray's node: what asks a cloud for machines, what passes the workers' output on, and what serves the dashboard. Each
# starts a Python of its own, a second of CPU time, and has nothing to do here.
_IDLE = ("start_monitor", "start_log_monitor")
_SERVER = "start_api_server"


@contextmanager
def few_processes() -> Iterator[None]:
    """Leaves those processes out of a Ray that is started while open; a Ray with other names for them starts them."""
    try:
        from ray._private.node import Node
    except ImportError:  # private to Ray: another version may have it elsewhere
        yield
        return

    def without_address(node: Any, **_: Any) -> None:
        node._webui_url = ""

    stand_ins = {**dict.fromkeys(_IDLE, lambda node: None), _SERVER: without_address}
    real = {name: getattr(Node, name) for name in stand_ins if hasattr(Node, name)}
    for name in real:
        setattr(Node, name, stand_ins[name])
    try:
        yield
    finally:
        for name, method in real.items():
            setattr(Node, name, method)
