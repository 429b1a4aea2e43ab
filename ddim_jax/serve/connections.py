"""Connections around their requests: how many, how long a head takes, clients that do not read."""

import asyncio
from http import HTTPStatus

from uvicorn.protocols.http.h11_impl import H11Protocol

from ddim_jax.serve.gate import WRITES, refusal

HEADS = 10.0
"""Seconds within which the head of a request must be there, the first and each later one."""
HEAD_BYTES = 2**16
"""The longest head, and the longest line between the pieces of a body."""
LINGERS = 1.0
"""Seconds for which a connection is kept after an error, so that it is read."""


def limited(most: int) -> type[asyncio.Protocol]:
    """uvicorn's protocol of HTTP, with limits and with errors in JSON.

    It is the one of h11: that of httptools sets no limit to a head, and loses the body of a request
    with the header Upgrade.

    Args:
        most: connections at a time; more are told 503.
    """

    class Limited(H11Protocol):
        """Ends connections that only take room; says errors as all paths do."""

        _head: asyncio.TimerHandle | None = None
        _reading: asyncio.TimerHandle | None = None
        _unread = 0
        _over = _ended = False

        def connection_made(self, transport: asyncio.Transport) -> None:
            """Begins to wait for the first head, and to look whether the client reads."""
            super().connection_made(transport)
            self._over = len(self.connections) > most
            self._expect_head()
            self._look()

        def data_received(self, data: bytes) -> None:
            """Reads on; a head that is there ends the wait, a further one in pieces begins it."""
            if self._ended:
                return
            if self._over:
                self._refuse(503, f"there are {most} connections already: ask again later", 5)
                return
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                self._expect_head()
            else:
                self._cancel_head()

        def connection_lost(self, exc: Exception | None) -> None:
            """Waits no more."""
            self._cancel_head()
            self._reading.cancel()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            """Of what is no HTTP."""
            self._refuse(400, f"no request of HTTP/1.1 with a head of at most {HEAD_BYTES} bytes")

        def _expect_head(self) -> None:
            self._head = self._head or self.loop.call_later(HEADS, self._late)

        def _cancel_head(self) -> None:
            if self._head:
                self._head.cancel()
            self._head = None

        def _late(self) -> None:
            if not (self._ended or self.transport.is_closing()):
                self._refuse(408, f"the head of the request did not come within {HEADS:g} s")

        def _look(self) -> None:
            """Ends the connection if nothing was read since the last look, also a closing one."""
            waits = self.transport.get_write_buffer_size()
            if waits and waits == self._unread:
                self.transport.abort()
            self._unread = waits
            self._reading = self.loop.call_later(WRITES, self._look)

        def _refuse(self, status: int, text: str, retry_after: int = 0) -> None:
            """Says an error, and closes when the client has had time to read it.

            What it sends until then is dropped: closed at once, with something unread, the
            connection would be reset, and the error lost.
            """
            self._ended = True
            self.connections.discard(self)
            if self.cycle and not self.cycle.response_complete:  # rubbish in its body
                self.cycle.disconnected = True
                self.cycle.message_event.set()
                if self.cycle.response_started:
                    self.transport.close()
                    return
            self.transport.write(_response(status, text, retry_after))
            self.transport.write_eof()
            self.loop.call_later(LINGERS, self.transport.close)

    return Limited


def _response(status: int, text: str, retry_after: int) -> bytes:
    """An error as all paths say it, whole; `retry_after` in seconds, 0: it does not say."""
    later = {"retry-after": str(retry_after)} if retry_after else {}
    said = refusal(text, status, {"connection": "close"} | later)
    head = [b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode())]
    head += [b"%s: %s" % header for header in said.raw_headers]
    return b"\r\n".join([*head, b"", said.body])
