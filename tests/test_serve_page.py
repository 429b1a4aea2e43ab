"""The server's page in a real browser: it draws, says errors, and is usable on a phone by keys."""

import json
import re
import threading
from pathlib import Path

import pytest

from benchmarks import browser

pytest.importorskip("fastapi", reason="pip install 'ddim_jax[serve]'")

from ddim_jax import command_line  # noqa: E402
from ddim_jax.serve import app  # noqa: E402
from ddim_jax.serve.asked import Asked  # noqa: E402
from ddim_jax.serve.engine import Engine  # noqa: E402
from tests.tiny_pipeline import tiny_digits  # noqa: E402

PAGE = Path(app.__file__).with_name("page.html").read_text()
in_browser = pytest.mark.skipif(browser.find() is None, reason="no Chromium is installed")


def test_the_script_finds_its_fields_and_asks_for_what_there_is():
    """Without a browser: of its fields `asked` posts those in `fields`, by their names."""
    ids = set(re.findall(r'\bid="(\w+)"', PAGE))
    (names,) = re.findall(r"const fields = (\[.*\]);", PAGE)
    looked_up = set(re.findall(r'\bat\("(\w+)"\)', PAGE))
    assert "status" in looked_up and looked_up | {*json.loads(names)} <= ids
    assert {*json.loads(names)} <= set(Asked.model_fields)


@pytest.fixture(scope="module")
def serving():
    """`(token) -> address` of the page over one engine."""
    import uvicorn

    engine, servers = Engine({"tiny": tiny_digits()}, sizes=(4,)).start(), []

    def start(token=""):
        place = command_line.bound("127.0.0.1", 0)
        place.listen()
        options = dict(log_config=None, log_level="error", lifespan="off")
        server = uvicorn.Server(uvicorn.Config(app.make_app(engine, token=token), **options))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{place.getsockname()[1]}/"

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join(30)
    engine.stop(30)


SAID = "document.getElementById('status').textContent"


def fill(page, **fields):
    for name, value in fields.items():
        page.evaluate(f"document.getElementById('{name}').value = {value!r}")


@in_browser
def test_the_page_draws_on_a_phone_by_keys(serving, tmp_path):
    with browser.Browser.start() as chromium:
        page = chromium.open(serving(), width=390, height=844)
        page.wait(f"{SAID} === 'Ready.'")
        assert page.evaluate("document.getElementById('label').options.length") == 11
        fill(page, label="3", num="2", steps="3")
        page.evaluate("document.getElementById('num').focus()")
        page.key("Tab")
        page.key("Enter", "\r")
        page.wait(f"{SAID}.startsWith('2 drawn by ddim in 3 evaluations')")
        shown = "[...document.querySelectorAll('#pictures img')]"
        assert page.evaluate(f"{shown}.map(i => i.alt)") == ["Picture 1 of 3", "Picture 2 of 3"]
        assert page.evaluate(f"{shown}.map(i => i.naturalWidth)") == [8, 8]
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        fields = "[...document.querySelectorAll('input, select')]"
        assert page.evaluate(f"{fields}.every(field => field.labels.length)")
        page.evaluate(
            "document.getElementById('solver').append(new Option('x', 'dimm', true, true))"
        )
        page.evaluate("document.getElementById('draw').click()")
        page.wait(f"{SAID}.includes(\"unknown solver 'dimm'\")")
        assert not page.problems()
        page.screenshot(tmp_path / "phone.png")


@in_browser
def test_the_page_asks_for_the_token(serving):
    with browser.Browser.start() as chromium:
        page = chromium.open(serving("s3cret"))
        page.wait(f"{SAID} === 'Give the token of this server.'")
        page.evaluate("token.value = 's3cret', token.dispatchEvent(new Event('change'))")
        page.wait(f"{SAID} === 'Ready.'")
        page.evaluate("document.getElementById('draw').click()")
        page.wait(f"{SAID}.startsWith('1 drawn by')")
