"""A headless Chromium driven over a pipe, by the DevTools protocol; nothing to be installed for it.

    with served("page") as address, Browser.start() as browser:
        page = browser.open(address, width=390, height=844)
        page.evaluate("document.title")

Benchmarks and tests of pages use it.
"""

import base64
import contextlib
import functools
import http.server
import itertools
import json
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--remote-debugging-pipe", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio"),
)


def find():
    """The path of a Chromium: that of the variable CHROMIUM, or one that is installed; or None."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


READY = "window.page?.ready"
"""What is true when the page of `ddim_jax.export` can draw."""


@contextlib.contextmanager
def served(folder: str | os.PathLike) -> Iterator[str]:
    """The address at which the files of a folder are served meanwhile, without special headers."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


class Browser:
    """A running browser; `start` begins one."""

    def __init__(self, process, commands, answers):
        self._process, self._commands, self._answers = process, commands, answers
        self._numbers, self._buffer, self.events = itertools.count(1), b"", []

    @classmethod
    @contextlib.contextmanager
    def start(cls, *flags):
        """One that ends with the `with`; flags are of Chromium."""
        read_commands, commands = os.pipe()
        answers, write_answers = os.pipe()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            words = [find(), *FLAGS, *flags, f"--user-data-dir={profile}", "about:blank"]
            line = f"exec {shlex.join(words)} 3<&{read_commands} 4>&{write_answers}"
            process = subprocess.Popen(
                ["bash", "-c", line], pass_fds=(read_commands, write_answers),
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            os.close(read_commands)
            os.close(write_answers)
            try:
                yield cls(process, commands, answers)
            finally:
                process.kill()
                process.wait()
                os.close(commands)
                os.close(answers)

    def call(self, method, session=None, **params):
        """Sends a command and returns what it answers; events on the way are kept."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        message |= {} if session is None else {"sessionId": session}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def _next(self):
        while b"\0" not in self._buffer:
            more = os.read(self._answers, 2**20)
            if not more:
                raise RuntimeError("the browser has ended")
            self._buffer += more
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, url, width=1024, height=768, scale=1, dark=False):
        """A page of this size in a tab of its own."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Network"):
            page.call(f"{domain}.enable")
        size = dict(width=width, height=height, deviceScaleFactor=scale, mobile=width < 600)
        page.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        page.call("Page.navigate", url=url)
        return page


class Page:
    """A page in a tab."""

    def __init__(self, browser, session):
        self._browser, self._session = browser, session

    def call(self, method, **params):
        """As of `Browser`, to this tab."""
        return self._browser.call(method, self._session, **params)

    def evaluate(self, expression):
        """The value of an expression of JavaScript, of a promise when it is there."""
        options = dict(returnByValue=True, awaitPromise=True, userGesture=True)
        answer = self.call("Runtime.evaluate", expression=expression, **options)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:2000])
        return answer["result"].get("value")

    def wait(self, expression, seconds=60):
        """Waits until an expression is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(RuntimeError):  # as of a page that is loading
                if self.evaluate(expression):
                    return
            time.sleep(0.02)
        raise TimeoutError(f"{expression} is not true after {seconds} s; {self.problems()}")

    def key(self, name, text=""):
        """Presses a key."""
        for kind in ("keyDown", "keyUp"):
            code = {"Tab": 9, "Enter": 13, " ": 32, "ArrowDown": 40}.get(name, 0)
            extra = {"text": text} if text and kind == "keyDown" else {}
            options = dict(key=name, windowsVirtualKeyCode=code)
            self.call("Input.dispatchKeyEvent", type=kind, **options, **extra)

    def problems(self):
        """What the page wrote as errors, and exceptions that nothing caught."""
        found = []
        for event in self._browser.events:
            params = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(json.dumps(params["exceptionDetails"])[:500])
            elif event.get("method") == "Runtime.consoleAPICalled" and params["type"] == "error":
                found.append(json.dumps(params["args"])[:500])
        return found

    def screenshot(self, path):
        """The whole page as PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(shot["data"]))
