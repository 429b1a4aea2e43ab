"""Connections before they are requests: how many there are, and how long a request's head takes."""

import asyncio
import json

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEADS = 10.0
"""Seconds within which the head of a request must be there, the first and each later one."""


def limited(most: int) -> type[asyncio.Protocol]:
    """uvicorn's protocol of HTTP, with limits and with errors in JSON.

    Args:
        most: connections at a time; more are told 503.
    """

    class Limited(AutoHTTPProtocol):
        """Closes a connection whose request does not come; says errors as all paths do."""

        _timer: asyncio.TimerHandle | None = None
        _over = False

        def connection_made(self, transport: asyncio.Transport) -> None:
            """Starts to wait for the first head."""
            super().connection_made(transport)
            self._over = len(self.connections) > most
            self._wait()

        def data_received(self, data: bytes) -> None:
            """Reads on; a head that is there ends the wait, a further one in pieces begins it."""
            if self._over:
                self._refuse(503, f"there are {most} connections already: ask again later", 5)
                return
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                self._wait()
            else:
                self._rest()

        def connection_lost(self, exc: Exception | None) -> None:
            """Waits no more."""
            self._rest()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            """Of what is no HTTP."""
            self._refuse(400, "this is no request of HTTP/1.1: GET /openapi.json lists what is")

        def _wait(self) -> None:
            self._timer = self._timer or self.loop.call_later(HEADS, self._late)

        def _rest(self) -> None:
            if self._timer:
                self._timer.cancel()
            self._timer = None

        def _late(self) -> None:
            if not self.transport.is_closing():
                self._refuse(408, f"the head of the request did not come within {HEADS:g} s")

        def _refuse(self, status: int, text: str, retry_after: int = 0) -> None:
            self.transport.write(refusal(status, text, retry_after))
            self.transport.close()

    return Limited


def refusal(status: int, text: str, retry_after: int = 0) -> bytes:
    """An error as all paths say it, for a connection that is then closed.

    Args:
        status: of HTTP.
        text: what to do.
        retry_after: seconds; 0: it does not say.
    """
    phrases = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}
    body = json.dumps({"error": text}).encode()
    lines = [
        f"HTTP/1.1 {status} {phrases[status]}", "content-type: application/json",
        f"content-length: {len(body)}", "connection: close",
    ]  # fmt: skip
    if retry_after:
        lines.append(f"retry-after: {retry_after}")
    return "\r\n".join([*lines, "", ""]).encode() + body
