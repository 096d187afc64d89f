"""What all pages and servers here share: bodies with bounds, pages that load nothing else, errors in one shape."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from launch.chat.guard import Guard, refusal
from launch.chat.page_policy import page_policy
from launch.chat.protocol import ApiError

BODY_SECONDS = 30.0  # a body that has not arrived by then is given up
_FRAMES = "; frame-ancestors 'none'"


def page_response(page: str) -> Response:
    """Returns a page, which may load and run nothing but itself."""
    return HTMLResponse(
        page, headers={"content-security-policy": page_policy(page) + _FRAMES, "x-frame-options": "DENY"}
    )


async def read_body(request: Request, limit: int) -> bytes:
    """Reads a body, and no more than `limit` bytes of it.

    Raises:
        ApiError: 413 for a longer one; 408 for one that does not arrive.
    """
    too_long = ApiError(413, f"The body is longer than {limit:,} bytes.", code="body_too_long")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > limit:
                    raise too_long
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {BODY_SECONDS:g} seconds.") from None
    return bytes(body)


def guarded(
    routes: Sequence[Route],
    known: str,
    hosts: Collection[str],
    key: str | None,
    explain: Callable[[Exception], ApiError | None] = lambda _: None,
    expected: Collection[type[Exception]] = (),
) -> Starlette:
    """Returns the ASGI application of these routes, behind the guard.

    Args:
        routes: what it serves.
        known: their paths, for whoever asks for another one.
        hosts: names by which clients call the server, beside localhost and addresses.
        key: what clients have to send; None: nothing.
        explain: turns an error of the handlers into one for the client; None: it is none of its own.
        expected: the errors that `explain` knows.
    """

    async def refused(request: Request, error: Exception) -> Response:
        answer = refusal(explain(error) or _explained(request, error, known))
        if isinstance(error, HTTPException):  # with the methods that the path has
            answer.headers.update(error.headers or {})
        return answer

    # What `Exception` answers is logged with a traceback as well, so what is no fault of the server has names.
    handlers: dict[Any, Any] = dict.fromkeys((ApiError, HTTPException, ClientDisconnect, *expected, Exception), refused)
    return Starlette(
        routes=list(routes), middleware=[Middleware(Guard, hosts=hosts, key=key)], exception_handlers=handlers
    )


def _explained(request: Request, error: Exception, known: str) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ClientDisconnect):
        return ApiError(400, "The client left.")
    if isinstance(error, HTTPException):
        wrong = f"{request.method} {request.url.path[:200]}"
        return ApiError(error.status_code, f"{error.detail}: {wrong}. This server has {known}.")
    return ApiError(500, f"The server failed: {type(error).__name__}. Its log says more.")
