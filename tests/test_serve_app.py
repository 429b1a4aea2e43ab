"""The server over HTTP: answers, errors, tokens, limits, clients that go away; a real process."""

import asyncio
import base64
import io
import json
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from ddim_jax import command_line, provenance

pytest.importorskip("fastapi", reason="pip install 'ddim_jax[serve]'")
httpx = pytest.importorskip("httpx", reason="pip install 'ddim_jax[test]'")

from ddim_jax.serve import __main__ as command  # noqa: E402
from ddim_jax.serve import answers, app, gate  # noqa: E402
from ddim_jax.serve import engine as engines  # noqa: E402
from ddim_jax.serve.asked import Limits  # noqa: E402
from ddim_jax.serve.engine import Engine  # noqa: E402
from tests.errors import rejects  # noqa: E402
from tests.processes import ROOT  # noqa: E402
from tests.test_serve import Stub, assert_equal  # noqa: E402
from tests.tiny_pipeline import tiny_digits  # noqa: E402


@pytest.fixture(scope="module")
def engine():
    engine = Engine({"tiny": tiny_digits()}, sizes=(1, 4), queue=16).start()
    yield engine
    engine.stop(30)


def asked(engine, *requests, token="", most=2**16, num=16):
    """The answers to (method, path, options) each, all at once."""
    made = app.make_app(engine, Limits(num=num, body=most), token)

    async def ask():
        transport = httpx.ASGITransport(made)
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
            calls = [client.request(method, path, **options) for method, path, options in requests]
            return await asyncio.gather(*calls)

    return asyncio.run(ask())


def draw(engine, body=None, **options):
    """The answer to one request to draw."""
    limits = {name: options.pop(name) for name in ("num", "most", "token") if name in options}
    given = {"json": {} if body is None else body} if "content" not in options else {}
    (answer,) = asked(engine, ("POST", "/draw", given | options), **limits)
    return answer


def picture(file):
    found = np.asarray(Image.open(io.BytesIO(file)))
    return found.reshape(*found.shape[:2], -1)


def test_answers_in_every_format(engine, tmp_path):
    body = {"label": [3, 4], "seed": 5, "solver": "unipc_2", "steps": 6}
    wanted = engine.models["tiny"].draw(**body)
    one = draw(engine, body | {"label": 3})
    assert one.status_code == 200 and one.headers["content-type"] == "image/png"
    assert_equal(picture(one.content)[None], wanted[:1])
    (tmp_path / "one.png").write_bytes(one.content)
    about = provenance.read(tmp_path / "one.png")  # what `sample.py --like` reads
    assert about.seed == 5 and about.recipe.solver == "unipc_2" and about.labels.tolist() == [3]
    sheet = draw(engine, body, headers={"accept": "text/html, image/*;q=0.5"})
    assert sheet.headers["content-type"] == "image/png" and picture(sheet.content).shape[1] > 100
    held = draw(engine, body, headers={"accept": "application/x-npz"})
    arrays = np.load(io.BytesIO(held.content))
    assert_equal(arrays["images"], wanted)
    assert arrays["labels"].tolist() == [3, 4]
    said = draw(engine, body | {"format": "json"}, headers={"accept": "image/png"}).json()
    files = [base64.b64decode(file) for file in said["pictures"]]
    assert_equal(np.stack([picture(file) for file in files]), wanted)
    (tmp_path / "second.png").write_bytes(files[1])
    about = provenance.read(tmp_path / "second.png")  # of that one, not of all
    assert (about.index.tolist(), about.labels.tolist(), about.alone) == ([1], [4], True)
    assert said["labels"] == [3, 4] and said["seed"] == 5 and said["evaluations"] == 6
    refused = draw(engine, body, headers={"accept": "text/html"})
    assert refused.status_code == 422 and "image/png" in refused.json()["error"]


def test_what_is_drawn_is_counted(monkeypatch):
    """Of three pictures in four slots: their evaluations, those of programs, and the request."""
    monkeypatch.setattr(engines, "Evaluation", Stub)
    engine = Engine({"tiny": tiny_digits()}, sizes=(1, 4)).start()
    runs = engine._evaluations["tiny"].runs
    answer = draw(engine, {"num": 3, "solver": "heun", "steps": 4, "format": "json"})
    evaluations = answer.json()["evaluations"]
    engine.stop(30)
    lines = asked(engine, ("GET", "/metrics", {}))[0].text.splitlines()
    assert evaluations > 4 and engine._evaluations["tiny"].runs - runs == evaluations
    for name, number in (("evaluations", 3 * evaluations), ("runs", evaluations), ("pictures", 3)):
        assert f'ddim_jax_{name}_total{{model="tiny"}} {number}' in lines
    assert "ddim_jax_request_seconds_count 1" in lines


def test_events_are_the_way_and_the_pictures(engine):
    body = {"label": 3, "steps": 5, "format": "events"}
    answer = draw(engine, body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [event.split("\n") for event in answer.text.split("\n\n") if event]
    names = [name.removeprefix("event: ") for name, _ in events]
    data = [json.loads(line.removeprefix("data: ")) for _, line in events]
    assert set(names[:-1]) <= {"estimate"} and names[-1] == "done"
    assert all(one["of"] == 5 for one in data[:-1])
    (file,) = data[-1]["pictures"]
    wanted = engine.models["tiny"].draw(label=3, steps=5)
    assert_equal(picture(base64.b64decode(file))[None], wanted)


REFUSED = [
    (dict(content=b"{}", headers={"content-type": "text/plain"}), 415, "got 'text/plain'"),
    (dict(content=b"{}"), 415, "content-type must be application/json, got none"),
    (dict(json={"prompt": "a" * 3000}, most=1000), 413, "at most 1000 bytes, got 30"),
    (dict(json={"solver": "dimm"}), 422, "did you mean 'ddim'"),
    (dict(content=b"{", headers={"content-type": "application/json"}), 422, "JSON object"),
    (dict(json={"num": 3}, num=2), 422, "num must be in [1, 2], got 3"),
    (dict(json={"label": 3}, token="x"), 401, "Authorization: Bearer TOKEN"),
    (dict(json={}, token="x", headers={"authorization": "Bearer y"}), 401, "needs a token"),
    (dict(json={}, token="x", headers={"authorization": b"Bearer \xff"}), 401, "needs a token"),
]


@pytest.mark.parametrize("options, status, text", REFUSED)
def test_refusals_are_json(engine, options, status, text):
    answer = draw(engine, options.pop("json", None), **dict(options))
    assert answer.status_code == status and text in answer.json()["error"], answer.text


def test_an_error_of_ours_is_json_too(engine, monkeypatch):
    monkeypatch.setattr(app.Desk, "job", lambda *_: {}["x"])
    made = app.make_app(engine)

    async def ask():
        transport = httpx.ASGITransport(made, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
            return await client.post("/draw", json={})

    answer = asyncio.run(ask())
    assert answer.status_code == 500 and "the server failed: KeyError" in answer.json()["error"]


def test_a_body_that_does_not_say_its_length_is_cut_off(engine):
    async def endless():
        for _ in range(1000):
            yield b" " * 100

    answer = draw(engine, content=endless(), headers={"content-type": "application/json"}, most=500)
    assert answer.status_code == 413 and "got 600" in answer.json()["error"]


def test_the_other_paths(engine):
    token = {"headers": {"authorization": "Bearer s3cret"}}
    paths = ["/", "/health", "/models", "/metrics", "/openapi.json", "/nothing", "/draw"]
    page, health, models, metrics, described, nothing, wrong = asked(
        engine, *[("GET", path, token) for path in paths], token="s3cret"
    )
    assert page.status_code == 200 and "<form" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert health.json() == {"status": "ok", "models": ["tiny"]}
    tiny = models.json()["models"]["tiny"]
    assert tiny["classes"] == list("0123456789") and tiny["steps"] == 4 and not tiny["texts"]
    assert "ddim_jax_compilations_after_start_total" in metrics.text
    schema = described.json()["paths"]["/draw"]["post"]
    fields = schema["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert {"solver", "steps", "seed", "prompt", "format"} <= set(fields)
    assert {"200", "401", "413", "415", "422", "429", "503"} <= set(schema["responses"])
    assert nothing.status_code == 404 and "/nothing" in nothing.json()["error"]
    assert wrong.status_code == 405 and "openapi.json" in wrong.json()["error"]
    slash, *heads = asked(
        engine, ("GET", "/health/", {}), *[("HEAD", path, {}) for path in ("/", "/health")]
    )
    assert slash.status_code == 404 and "error" in slash.json()
    assert [answer.status_code for answer in heads] == [200, 200]
    shut = asked(engine, *[("GET", path, {}) for path in paths], token="s3cret")
    assert [answer.status_code for answer in shut] == [200, 200, 401, 401, 401, 401, 401]


def test_a_full_queue_and_a_deadline(engine, monkeypatch):
    step = engine._evaluations["tiny"].step
    monkeypatch.setattr(engine._evaluations["tiny"], "step", lambda *a: time.sleep(0.1) or step(*a))
    body = {"num": 4, "steps": 8, "deadline": 0.5}
    answers = asked(engine, *[("POST", "/draw", {"json": body})] * 8)
    codes = [answer.status_code for answer in answers]
    assert 429 in codes and 503 in codes and set(codes) <= {200, 429, 503}
    for answer in answers:
        if answer.status_code != 200:
            assert int(answer.headers["retry-after"]) >= 1
    late = next(answer for answer in answers if answer.status_code == 503)
    assert "deadline of 0.5 s" in late.json()["error"]
    events = draw(engine, body | {"steps": 30, "format": "events"})
    assert events.text.split("\n\n")[-2].startswith("event: error\ndata: {")
    until = time.monotonic() + 10
    while engine.live + engine.waiting and time.monotonic() < until:
        time.sleep(0.01)
    assert engine.live + engine.waiting == 0


@pytest.mark.parametrize("format", ["png", "events"])
def test_a_client_that_leaves_frees_its_places(engine, monkeypatch, format):
    step = engine._evaluations["tiny"].step
    monkeypatch.setattr(
        engine._evaluations["tiny"], "step", lambda *a: time.sleep(0.05) or step(*a)
    )
    before = engine.metrics.total("ddim_jax_disconnects_total")
    made, sent = app.make_app(engine), []

    async def ask():
        body = json.dumps({"num": 8, "steps": 50, "format": format}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            await asyncio.sleep(0.4)
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        headers = [(b"content-type", b"application/json")]
        scope = dict(
            type="http", method="POST", path="/draw", raw_path=b"/draw", query_string=b"",
            headers=headers, http_version="1.1", scheme="http", server=("t", 80), asgi={},
            client=("t", 1), root_path="",
        )  # fmt: skip
        await made(scope, receive, send)

    began = time.monotonic()
    asyncio.run(ask())
    assert time.monotonic() - began < 2
    until = time.monotonic() + 5
    while engine.live + engine.waiting and time.monotonic() < until:
        time.sleep(0.01)
    assert engine.live + engine.waiting == 0
    assert engine.metrics.total("ddim_jax_disconnects_total") == before + 1


def test_long_answers_go_in_pieces_and_a_client_that_does_not_read_is_left(engine, monkeypatch):
    """Of what it does not take no more than a piece is kept for it."""
    monkeypatch.setattr(gate, "WRITES", 0.2)
    taken = []

    async def large(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(3 * gate.PIECE + 1)})

    async def stops(message):
        taken.append(message)
        await asyncio.sleep(10 if len(taken) == 3 else 0)

    before = gate.Gate(large, engine.metrics, "")
    asyncio.run(before({"type": "http", "method": "GET", "path": "/", "headers": []}, None, stops))
    assert [len(message.get("body", b"")) for message in taken] == [0, gate.PIECE, gate.PIECE]
    taken.clear()

    async def reads(message):
        taken.append(message)

    asyncio.run(before({"type": "http", "method": "GET", "path": "/", "headers": []}, None, reads))
    assert [message.get("more_body") for message in taken[1:]] == [True, True, True, False]
    assert sum(len(message.get("body", b"")) for message in taken) == 3 * gate.PIECE + 1


def test_formats_by_the_header():
    for accept, name in (
        ("", "png"), ("*/*", "png"), ("application/json", "json"), ("image/png;q=1", "png"),
        ("text/html, application/octet-stream", "npz"), ("text/event-stream", "events"),
        ("image/png;q=0.1, application/json", "json"),
        ("application/json; q=0, image/png; q=0.5, application/x-npz; q=0.7", "npz"),
    ):  # fmt: skip
        assert answers.format_of(None, accept) == name
        assert answers.format_of("json", accept) == "json"
    with rejects(ValueError, "application/json;q=0", "it is one of"):
        answers.format_of(None, "application/json;q=0")


STALLED = b"content-type: application/json\r\ncontent-length: 9\r\n\r\n"


# --- the command ----------------------------------------------------------------------------------


def test_checkpoints_have_names_and_loras():
    assert command.named("digits") == (None, "digits", [])
    assert command.named("a=runs/b,c.safetensors:0.5,d") == (
        "a",
        "runs/b",
        ["c.safetensors:0.5", "d"],
    )
    for bad in ("", "=x", "a=", ",x"):
        with rejects(ValueError, "--checkpoint must be", repr(bad)):
            command.named(bad)
    with rejects(ValueError, "two models are called 'digits'", "other=digits"):
        command.load(["digits", "digits=digits"])
    with rejects(ValueError, "moving_4step draws clips, which are not served", "sample.py"):
        command.load(["digits", "moving_4step"])


@pytest.mark.parametrize(
    "flag, parts",
    {
        "--port=70000": ["--port must be in [0, 65535], got 70000"],
        "--sizes=1,x": ["--sizes must be like 1,4,16, got '1,x'"],
        "--sizes=0": ["--sizes must be in [1, 4096], got 0"],
        "--deadline=nan": ["--deadline must be"],
        "--max_num=0": ["--max_num must be"],
        "--queue=3": ["--queue=3 has no room", "--max_num=16"],
    }.items(),
)
def test_flags_that_cannot_be(flag, parts):
    with rejects(ValueError, *parts):
        command.check(command.parse([flag]))


def test_the_token_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    assert command.check(command.parse([]))[2] == ""
    monkeypatch.setenv(command.TOKEN, "a")
    assert command.check(command.parse([]))[2] == "a"
    (tmp_path / "token").write_text("b\n")
    assert command.check(command.parse([f"--token_file={tmp_path / 'token'}"]))[2] == "b"
    (tmp_path / "token").write_text("\n")
    with rejects(ValueError, "is empty; write a token"):
        command.check(command.parse([f"--token_file={tmp_path / 'token'}"]))
    with rejects(ValueError, "--token_file=none cannot be read", command.TOKEN):
        command.check(command.parse(["--token_file=none"]))


def test_without_its_extra_the_command_says_which(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with rejects(ValueError, "fastapi", "pip install 'ddim_jax[serve]'"):
        command.run(command.parse([]))


def test_a_taken_port_is_said_before_anything_is_loaded():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with rejects(ValueError, f"--port={port} cannot be had", "take another --port"):
            command_line.bound("127.0.0.1", port)
    with rejects(ValueError, "--host=no.such.host.invalid", "take another --host"):
        command_line.bound("no.such.host.invalid", 0)


def serving(*flags):
    """A process that serves the bundled network, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ddim_jax.serve", "--port=0", "--sizes=1", *flags],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    compiling, ready = process.stdout.readline(), process.stdout.readline()
    assert "compiling digits_4step" in compiling and "serves digits_4step" in ready, ready
    return process, ready.split()[0]


@pytest.mark.slow
def test_a_second_interrupt_stops_at_once():
    process, base = serving()
    try:
        with httpx.Client(base_url=base, timeout=60) as client:
            body = {"num": 16, "steps": 100, "format": "events"}
            with client.stream("POST", "/draw", json=body) as answer:
                lines = answer.iter_lines()
                assert next(lines) == "event: estimate"
                for _ in range(2):
                    process.send_signal(signal.SIGINT)
                    time.sleep(0.3)
                out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in err, err


@pytest.mark.slow
def test_sigterm_finishes_what_has_been_taken_and_refuses_what_comes():
    """A real process, with the bundled network."""
    process, base = serving("--deadline=5")
    try:
        with httpx.Client(base_url=base, timeout=60) as client:
            assert client.get("/health").status_code == 200
            with client.stream(
                "POST", "/draw", json={"num": 2, "steps": 60, "format": "events"}
            ) as answer:
                lines = answer.iter_lines()
                assert next(lines) == "event: estimate"
                stalled = socket.create_connection(("127.0.0.1", httpx.URL(base).port))
                stalled.sendall(b"POST /draw HTTP/1.1\r\nhost: here\r\n" + STALLED)
                time.sleep(0.2)
                process.send_signal(signal.SIGTERM)
                rest = list(lines)
            assert "event: done" in rest and "event: error" not in rest
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{base}/health")
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and "stopped; 2 pictures drawn" in out
    assert "finishing what has been taken" in err and "Traceback" not in err, err
