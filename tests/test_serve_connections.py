"""Connections that send no request, or no HTTP, or are too many: they leave room for the others."""

import contextlib
import json
import socket
import threading
import time

import pytest

pytest.importorskip("fastapi", reason="pip install 'ddim_jax[serve]'")
import uvicorn  # noqa: E402
from starlette.requests import Request  # noqa: E402
from starlette.responses import Response  # noqa: E402

from ddim_jax import command_line  # noqa: E402
from ddim_jax.serve import connections  # noqa: E402

LENGTH = 2**16
HEAD = b"GET / HTTP/1.1\r\nhost: here\r\n"


async def app(scope, receive, send):
    """Answers with the body, or where there is none at length."""
    body = await Request(scope, receive).body()
    await Response(body or b"drawn" * LENGTH)(scope, receive, send)


@pytest.fixture
def address(monkeypatch):
    """Of a server that takes three connections and waits half a second for anything."""
    monkeypatch.setattr(connections, "HEADS", 0.5)
    monkeypatch.setattr(connections, "WRITES", 0.5)
    place = command_line.bound("127.0.0.1", 0)
    place.listen()
    options = dict(log_config=None, log_level="critical", lifespan="off", ws="none")
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
        assert answer(client)[::2] == (200, b"drawn" * LENGTH)


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


CHUNKED = b"POST / HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("parts", [(CHUNKED + b"x\r\n",), (CHUNKED, b"4\r\nthis\r\n", b"x\r\n")])
def test_rubbish_in_a_body_is_said_once(address, parts, caplog):
    with connected(address, *parts) as client:
        status, _, body = answer(client)
    assert status == 400 and json.loads(body)["error"].startswith("no request")
    time.sleep(1.2)
    assert not caplog.records


@pytest.mark.parametrize("upgrade", ["h2c", "websocket"])
def test_a_request_that_proposes_another_protocol_keeps_its_body(address, upgrade):
    head = f"POST / HTTP/1.1\r\nhost: here\r\nconnection: upgrade\r\nupgrade: {upgrade}\r\n"
    with connected(address, f"{head}content-length: 4\r\n\r\nthis".encode()) as client:
        time.sleep(0.2)
        assert client.recv(4096).endswith(b"this")


@pytest.mark.parametrize("head", [b"a: " + 2**17 * b"b", 2**14 * b"a: b\r\n"])
def test_a_head_has_a_most_length(address, head):
    with connected(address, HEAD, head) as client:
        status, _, body = answer(client)
    assert status == 400 and "at most 65536 bytes" in json.loads(body)["error"]


def test_a_client_that_does_not_read_is_let_go(address):
    with contextlib.ExitStack() as stuck:
        for _ in range(3):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            client.connect(address)
            client.sendall(100 * (HEAD + b"\r\n"))
            stuck.enter_context(client)
        until = time.perf_counter() + 20
        while time.perf_counter() < until:
            time.sleep(0.3)
            with connected(address, CLOSING) as other:
                if answer(other)[0] == 200:
                    return
    raise AssertionError("they kept their connections")


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
            assert answer(client)[::2] == (200, b"drawn" * LENGTH)
