"""A live judging server, and models that say what a test wants."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eval.people.session import Session
from launch.chat.serve import listening, make_server, url
from launch.chat.served_model import ServedModel
from launch.judging.judging_server import JudgingApi, make_judging_app
from tests.parts.chat_model import ScriptedPlayer, tiny_served


@contextmanager
def judging(session: Session, directory: Path, key: str | None = None, hosts: Sequence[str] = ()) -> Iterator[str]:
    """A server on a free port, in a thread; gives its address."""
    with listening("127.0.0.1", 0) as bound:
        server = make_server(make_judging_app(JudgingApi(session, directory), hosts, key))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name="judging")
        thread.start()
        try:
            yield url(*bound.getsockname()[:2])
        finally:
            server.should_exit = True
            thread.join()


class Saying(ServedModel):
    """A model with a voice of its own."""

    def player(self) -> Any:
        return ScriptedPlayer(lambda text: f"{self.name} says that this is about {text} and nothing else")


def saying(name: str, base: bool = False) -> ServedModel:
    served = tiny_served(base, name=name, context_length=400)
    return Saying(**{field: getattr(served, field) for field in ServedModel.__dataclass_fields__})
