"""Connections that send no request, or no HTTP, or are too many: they leave room for the others."""

import contextlib
import json
import socket
import threading
import time

import pytest

pytest.importorskip("fastapi", reason="pip install 'ddim_jax[serve]'")
import uvicorn  # noqa: E402
from starlette.responses import PlainTextResponse  # noqa: E402

from ddim_jax import command_line  # noqa: E402
from ddim_jax.serve import connections  # noqa: E402

PROTOCOLS = ["h11", "httptools"]
HEAD = b"GET / HTTP/1.1\r\nhost: here\r\n"


async def app(scope, receive, send):
    """Reads nothing and answers."""
    await PlainTextResponse("drawn")(scope, receive, send)


@pytest.fixture(params=PROTOCOLS)
def address(request, monkeypatch):
    """Of a server that takes three connections and waits half a second for a head."""
    module = pytest.importorskip(f"uvicorn.protocols.http.{request.param}_impl")
    kind = {"h11": "H11Protocol", "httptools": "HttpToolsProtocol"}[request.param]
    monkeypatch.setattr(connections, "AutoHTTPProtocol", getattr(module, kind))
    monkeypatch.setattr(connections, "HEADS", 0.5)
    place = command_line.bound("127.0.0.1", 0)
    place.listen()
    options = dict(log_config=None, log_level="critical", lifespan="off")
    server = uvicorn.Server(uvicorn.Config(app, http=connections.limited(3), **options))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
    thread.start()
    yield place.getsockname()
    server.should_exit = True
    thread.join(30)


@contextlib.contextmanager
def connected(address, *parts):
    """A connection that has sent these parts, some time apart."""
    with socket.create_connection(address, timeout=10) as client:
        for part in parts:
            client.sendall(part)
            time.sleep(0.05)
        yield client


def told(client):
    """All that comes until the connection closes."""
    parts = []
    while part := client.recv(4096):
        parts.append(part)
    return b"".join(parts)


def answer(client):
    """Status, headers and body."""
    head, _, body = told(client).partition(b"\r\n\r\n")
    status, *headers = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.split(": ") for line in headers), body


CLOSING = HEAD + b"connection: close\r\n\r\n"


def test_a_head_in_time_is_answered(address):
    with connected(address, HEAD[:9], HEAD[9:], b"connection: close\r\n\r\n") as client:
        assert answer(client)[::2] == (200, b"drawn")


@pytest.mark.parametrize("parts", [(), (HEAD,), (HEAD, b"a: b\r\n", b"c: d\r\n")])
def test_a_head_that_does_not_come_ends_its_connection(address, parts):
    began = time.perf_counter()
    with connected(address, *parts) as client:
        status, headers, body = answer(client)
    assert status == 408 and 0.4 < time.perf_counter() - began < 3
    assert headers["content-type"] == "application/json" and "0.5 s" in json.loads(body)["error"]


def test_the_head_of_a_second_request_is_waited_for_as_long(address):
    with connected(address, HEAD + b"\r\n") as client:
        time.sleep(0.6)  # longer than a head may take: an idle connection is not a slow one
        client.sendall(HEAD)
        assert b"408 Request Timeout" in told(client)


def test_what_is_no_http_is_said_in_json(address):
    with connected(address, b"rubbish\r\n\r\n") as client:
        status, headers, body = answer(client)
    assert status == 400 and headers["content-type"] == "application/json"
    assert "HTTP/1.1" in json.loads(body)["error"]


def test_connections_that_stop_in_their_heads_leave_room_for_others(address):
    with contextlib.ExitStack() as stalled:
        for _ in range(3):
            stalled.enter_context(connected(address, HEAD))
        with connected(address, CLOSING) as client:
            status, headers, body = answer(client)
        assert status == 503 and headers["retry-after"] == "5"
        assert "3 connections" in json.loads(body)["error"]
        time.sleep(0.7)
        with connected(address, CLOSING) as client:
            assert answer(client)[::2] == (200, b"drawn")
