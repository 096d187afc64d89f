"""Implements `replica serve`: binds the port, loads the model, and serves until a signal ends it."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.common.notices import note, say, warn
from launch.chat.batcher import Batcher

if TYPE_CHECKING:
    import uvicorn

KEY_VARIABLE = "REPLICA_API_KEY"
LOOPBACK = ("127.", "::1")


def serve(arguments: Namespace) -> None:
    """Serves the model of a run or a stage. The port is bound first, so that one in use is told at once.

    Raises:
        ValueError: for a port or host that cannot be used, a key file without a key, or a model that cannot be opened.
    """
    with server_packages("`replica chat` needs none"):
        from launch.chat.server import Api, Limits, make_app
    from configs.schema.recipe import load_run
    from launch.chat.served_model import open_served_model
    from pretrain.checkpoint.choice import Choice

    key = read_key(arguments.key_file)
    with listening(arguments.host, arguments.port) as bound:
        run = load_run(arguments.run).run_directory
        served = open_served_model(run, Choice(arguments.checkpoint_step, arguments.best))
        limits = Limits(tokens=arguments.max_tokens, rows=arguments.rows, waiting=arguments.waiting)
        batcher = Batcher(served.player(limits.rows if arguments.compile else None), limits.rows, limits.waiting)
        app = make_app(Api(served, batcher, limits), (arguments.host, socket.gethostname(), *arguments.allow_host), key)
        address, port = bound.getsockname()[:2]
        if not address.startswith(LOOPBACK) and key is None:
            warn(
                f"{address} is reached by other machines, and no key is asked for: whoever reaches it can use the "
                f"model; give --key-file FILE or set {KEY_VARIABLE}"
            )
        if served.template is None:
            note(f"{served.name} is a base model: it continues text, and was not taught to answer")
        say(f"serving {served.name}, step {served.step}: {url(address, port)} (page), {url(address, port)}v1 (API)")
        say("Ctrl-C ends it")
        try:
            make_server(app, batcher.close).run(sockets=[bound])
        finally:
            batcher.close()


@contextmanager
def server_packages(instead: str) -> Iterator[None]:
    """Imports what needs the server's packages; `instead`: what there is without them.

    Raises:
        ValueError: when one is not installed; says how to install it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("uvicorn", "starlette"):
            raise
        raise ValueError(
            f"the server needs the package {package}; install it with `pip install 'gpt-replica[chat]'` "
            f"(in a clone: `make setup`). {instead}"
        ) from None


def make_server(app: Any, close: Callable[[], None] = lambda: None) -> uvicorn.Server:
    """Returns a server that logs errors alone. When it is told to end, it calls `close` to end what is under way."""
    import uvicorn

    class Server(uvicorn.Server):
        """Closes first: uvicorn waits for the answers under way."""

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await asyncio.to_thread(close)
            await super().shutdown(sockets)

    settings = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    return Server(settings)


def listening(host: str, port: int) -> socket.socket:
    """Returns a socket that is bound to a port; 0 takes a free one.

    Raises:
        ValueError: when the port is in use or not allowed, or the host is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ValueError(
            f"--host {host}: {error.strerror}; give an address of this machine, such as 127.0.0.1"
        ) from None
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)  # with SO_REUSEADDR, it is here that Linux tells of another program that listens
    except OSError as error:
        bound.close()
        raise ValueError(_why(host, port, error)) from None
    return bound


def _why(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use; choose another one, such as --port {port + 1}, or 0 for any free one"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} needs special rights; choose one from 1024 on, such as --port 8000"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host} is no address of this machine; give one, such as 127.0.0.1"
    return f"--host {host} --port {port}: {error.strerror}"


def read_key(file: Path | None) -> str | None:
    """Returns the key that clients have to send: the text of a file, else of the environment variable, else None.

    Raises:
        ValueError: when there is one that is empty, or that no header can carry.
    """
    key = os.environ.get(KEY_VARIABLE) if file is None else file.read_text(encoding="utf-8")
    if key is None:
        return None
    key, where = key.strip(), KEY_VARIABLE if file is None else str(file)
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"{where}: expected one key of visible ASCII characters")
    return key


def url(address: str, port: int) -> str:
    """Returns the address of the page."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    return f"http://{f'[{name}]' if ':' in name else name}:{port}/"
