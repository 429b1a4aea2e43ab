"""What stands before every path: the token, and clients that do not read."""

import asyncio
import hmac
from collections.abc import Iterator
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ddim_jax.serve.metrics import Metrics

OPEN = ("/", "/health")
"""Paths that need no token."""
WRITES = 30.0
"""Seconds within which a client must take a piece of an answer."""
PIECE = 2**16
"""Bytes of an answer that are written at a time: what a client that stops reading keeps."""


class Gate:
    """What stands before every path: the token, and clients that do not read; it counts answers."""

    def __init__(self, app: ASGIApp, metrics: Metrics, token: str):
        self._app, self._metrics, self._token = app, metrics, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # the server leaves out the body
            scope = scope | {"method": "GET"}

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.count("ddim_jax_requests_total", status=message["status"])
            for piece in _pieces(message):
                async with asyncio.timeout(WRITES):
                    await send(piece)

        try:
            if self._token and scope["path"] not in OPEN and not self._knows(scope):
                await refusal(
                    "this server needs a token: send Authorization: Bearer TOKEN", 401,
                    {"www-authenticate": "Bearer"},
                )(scope, receive, sent)  # fmt: skip
            else:
                await self._app(scope, receive, sent)
        except TimeoutError:
            self._metrics.count("ddim_jax_disconnects_total")

    def _knows(self, scope: Scope) -> bool:
        """Whether a request has the token, in a time that does not depend on how wrong it is."""
        given = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given, b"Bearer " + self._token)


def _pieces(message: Message) -> Iterator[Message]:
    """A message of ASGI, a long body in pieces."""
    body = message.get("body", b"")
    if message["type"] != "http.response.body" or len(body) <= PIECE:
        yield message
        return
    for first in range(0, len(body), PIECE):
        more = first + PIECE < len(body) or message.get("more_body", False)
        yield message | {"body": body[first : first + PIECE], "more_body": more}


def refusal(text: str, status: int, headers: Any = None) -> JSONResponse:
    """An error, as all paths say it."""
    return JSONResponse({"error": text}, status, headers)
