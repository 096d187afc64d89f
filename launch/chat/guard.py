"""Lets only those requests through that may reach the model: by host name, origin and key."""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Collection, Mapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from launch.chat.protocol import ApiError

_HOST = re.compile(r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>[\w.-]+))(?::\d+)?", re.ASCII)
# Paths that say nothing about the model, and so need no key.
OPEN_PATHS = ("/", "/health")
_ALWAYS: Mapping[str, str] = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """Wraps an application. What it refuses gets an error in OpenAI's shape, before anything of the body is read.

    A page of another site that a user has open can send requests to this machine. So the `Host` must be an address or a
    known name (a foreign name that was pointed at this machine is how such a page would read the answers, "DNS
    rebinding"), an `Origin` must be this server itself, and bodies must be declared as JSON, which browsers do not send
    to another site without asking it first.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] = (), key: str | None = None) -> None:
        """`hosts`: names of the server, beside localhost and all addresses; `key`: what clients have to give."""
        self._app, self._key = app, key
        self._hosts = {"localhost", *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _ALWAYS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self.check(scope["method"], scope["path"], Headers(scope=scope))
        except ApiError as error:
            await refusal(error)(scope, receive, send_safely)
            return
        await self._app(scope, receive, send_safely)

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Looks at the head of a request.

        Raises:
            ApiError: 401 without the key; 403 for a foreign host or origin; 415 for a body that is not JSON.
        """
        host = headers.get("host", "")
        if not self._is_ours(host):
            raise ApiError(
                403,
                f"The host {_shown(host)} is not this server's. Use its address, or start it with `--allow-host NAME`.",
                code="host_not_allowed",
            )
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            raise ApiError(403, f"Requests from pages of {_shown(origin)} are refused.", code="origin_not_allowed")
        if method == "POST" and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "Send JSON, with the header `Content-Type: application/json`.")
        if self._key is not None and path not in OPEN_PATHS:
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._key.encode()):
                raise ApiError(
                    401,
                    "Incorrect or missing API key. Send the server's key in the header `Authorization: Bearer KEY`.",
                    code="invalid_api_key",
                )

    def _is_ours(self, host: str) -> bool:
        parts = _HOST.fullmatch(host)
        name = (parts["name"] or parts["address"]).lower() if parts else ""
        return name in self._hosts or _is_address(name)


def refusal(error: ApiError) -> JSONResponse:
    """Returns the response of an error."""
    headers = {401: {"www-authenticate": "Bearer"}, 429: {"retry-after": "1"}}.get(error.status)
    return JSONResponse(error.body(), error.status, headers)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _shown(text: Any) -> str:
    return repr(str(text)[:100])
