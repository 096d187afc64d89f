"""Serves a judging session: the page at `/`, what it shows at `/session`, and the votes at `/votes`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from configs.safety.parsing import parse_json
from eval.people.session import VOTES, Session
from eval.people.votes import Vote, VotesFile, append_lines, parse_vote, read_votes
from launch.chat.protocol import ApiError
from launch.chat.web import guarded, page_response, read_body
from launch.judging.judging_page import shown_by, template

LARGEST_BODY = 4 << 20
_KNOWN = "/, /health, /session, /votes"


class JudgingApi:
    """The handlers of one session.

    Attributes:
        session: what is judged.
        path: the file of votes.
    """

    def __init__(self, session: Session, directory: Path) -> None:
        self.session, self.path = session, directory / VOTES
        self._lock = threading.Lock()
        self._file, self._size = VotesFile(), -1

    async def page(self, _request: Request) -> Response:
        """The page without what it shows, so that it needs no key."""
        return page_response(self._page)

    async def health(self, _request: Request) -> Response:
        """Tells that the server runs."""
        return JSONResponse({"status": "ok"})

    async def shown(self, _request: Request) -> Response:
        """What raters see."""
        return JSONResponse(self._shown)

    async def votes(self, request: Request) -> Response:
        """GET: what this rater's browser has said, and another one under the same name. POST: appends votes."""
        if request.method == "POST":
            raw = await read_body(request, LARGEST_BODY)
            return JSONResponse({"saved": await asyncio.to_thread(self.save, raw)})
        rater, key = (request.query_params.get(name, "") for name in ("rater", "key"))
        return JSONResponse(await asyncio.to_thread(self.known, " ".join(rater.split()), key))

    def save(self, body: bytes) -> int:
        """Appends the votes of a request that are not there yet, all or none; returns their number.

        Raises:
            ApiError: 400 for what is no vote on this page.
        """
        try:
            raw = parse_json(body)
            lines = raw["votes"] if isinstance(raw, dict) and isinstance(raw.get("votes"), list) else None
            if lines is None:
                raise ValueError("the body must be an object with a list of `votes`")
            votes = [parse_vote(line, self.session) for line in lines]
        except ValueError as error:
            raise ApiError(400, f"This is no vote on this page: {error}.") from None
        with self._lock:
            there = {(vote.key, vote.slot, vote.at) for vote in self._read().lines}
            new = [vote for vote in votes if (vote.key, vote.slot, vote.at) not in there]
            if new:
                append_lines(self.path, [vote.as_json(self.session.page) for vote in new])
                self._file.lines += new
                self._size = self.path.stat().st_size
        return len(new)

    def known(self, rater: str, key: str) -> dict[str, Any]:
        """Returns the lines of a rater's browser, and those of the busiest other browser under the same name."""
        with self._lock:
            named = [vote for vote in self._read().lines if vote.rater == rater]
        own = [vote for vote in named if vote.key == key]
        others: dict[str, list[Vote]] = {}
        for vote in named:
            if vote.key != key:
                others.setdefault(vote.key, []).append(vote)
        busiest = max(others, key=lambda other: len(others[other]), default=None)
        other = None if busiest is None else {"key": busiest, "votes": self._lines(others[busiest])}
        return {"key": key, "votes": self._lines(own), "other": other}

    def _lines(self, votes: Sequence[Vote]) -> list[dict[str, Any]]:
        return [vote.as_json(self.session.page) for vote in votes]

    def _read(self) -> VotesFile:
        """The file's lines; read again when another process has changed it, such as an import."""
        size = self.path.stat().st_size if self.path.is_file() else 0
        if size != self._size:
            self._file, self._size = read_votes(self.path, self.session), size
        return self._file

    @cached_property
    def _page(self) -> str:
        return template()

    @cached_property
    def _shown(self) -> dict[str, Any]:
        return shown_by(self.session)


def make_judging_app(api: JudgingApi, hosts: Sequence[str] = (), key: str | None = None) -> Starlette:
    """Returns the ASGI application; `hosts` and `key` as `launch.chat.web.guarded` has them."""
    routes = [
        Route("/", api.page),
        Route("/health", api.health),
        Route("/session", api.shown),
        Route("/votes", api.votes, methods=["GET", "POST"]),
    ]
    return guarded(routes, _KNOWN, hosts, key)
