"""The server as an ASGI application: its paths, what it refuses, and clients that go away.

    POST /draw          JSON of `Asked`; a PNG, NPZ or JSON file, or server-sent events
    GET  /models        what there is to draw with
    GET  /health        200 while it takes requests, else 503
    GET  /metrics       numbers for Prometheus
    GET  /openapi.json  all of this, for machines
    GET  /              a page that draws

Errors are JSON, {"error": text}: 4xx says what to change, 429 and 503 when to ask again.
"""

import asyncio
import contextlib
import importlib.resources
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio.to_thread
import fastapi
import numpy as np
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ddim_jax import experiment
from ddim_jax.export import row
from ddim_jax.serve import answers
from ddim_jax.serve.asked import Asked, Desk, Limits, parse
from ddim_jax.serve.engine import Engine, Job, Refused
from ddim_jax.serve.gate import Gate, refusal
from ddim_jax.solvers import SOLVERS
from ddim_jax.strides import STRIDES

READS = 10.0
"""Seconds within which a body must be there."""
POLICY = (
    "default-src 'none'; img-src data:; connect-src 'self'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def make_app(engine: Engine, limits: Limits = Limits(), token: str = "") -> fastapi.FastAPI:  # noqa: B008
    """The application of an engine that has been started.

    Args:
        engine: draws; whoever made it stops it.
        limits: of a request.
        token: that clients send as `Authorization: Bearer TOKEN`; "" for none.
    """
    app = fastapi.FastAPI(
        title="ddim_jax", version=experiment.version(), docs_url=None, redoc_url=None,
        redirect_slashes=False, description=__doc__,
    )  # fmt: skip
    desk, page = Desk(engine.models, limits), _page()
    app.add_middleware(Gate, metrics=engine.metrics, token=token)
    for kind in (ValueError, Refused, HTTPException):
        app.add_exception_handler(kind, _refused)
    app.add_exception_handler(Exception, _failed)

    @app.post("/draw", summary="Draw pictures", **_described())
    async def draw(request: fastapi.Request) -> Any:
        began = time.perf_counter()
        asked = parse(await _read(request, limits.body))
        format = answers.format_of(asked.format, request.headers.get("accept", ""))
        drawing = _Drawing(engine, desk, request, asked)
        if format == "events":
            job = await drawing.begin(drawing.estimated)
            content = drawing.events(job)
        else:
            content = await drawing.answer(format)
        engine.metrics.took(time.perf_counter() - began)
        if isinstance(content, bytes):
            return fastapi.Response(content, media_type=answers.TYPES[format])
        return StreamingResponse(content, media_type=answers.TYPES[format])

    @app.get("/models", summary="What there is to draw with")
    async def models() -> dict[str, Any]:
        return {
            "models": {name: _about(model) for name, model in engine.models.items()},
            "solvers": list(SOLVERS),
            "strides": list(STRIDES),
            "limits": limits._asdict(),
        }

    @app.get("/health", summary="Whether it takes requests")
    async def health() -> Any:
        if engine.draining or not engine.alive:
            return JSONResponse({"status": "stopping"}, 503)
        return {"status": "ok", "models": list(engine.models)}

    @app.get("/metrics", summary="Numbers for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Any:
        gauges = {
            "ddim_jax_waiting_pictures": engine.waiting,
            "ddim_jax_live_pictures": engine.live,
        }
        text = engine.metrics.text(gauges)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def index() -> Any:
        return HTMLResponse(page, headers={"content-security-policy": POLICY})

    return app


class _Drawing:
    """One request to draw, from its fields to its answer."""

    def __init__(self, engine: Engine, desk: Desk, request: fastapi.Request, asked: Asked):
        self._engine, self._desk, self._request, self._asked = engine, desk, request, asked
        self._loop = asyncio.get_running_loop()
        self._seen: dict[int, tuple[int, np.ndarray]] = {}
        self._news = asyncio.Event()

    async def begin(self, on_estimate: Any = None) -> Job:
        """Checks the request and puts it into the queue."""
        job = await anyio.to_thread.run_sync(self._desk.job, self._asked, on_estimate)
        self._engine.submit(job)
        return job

    async def answer(self, format: str) -> bytes:
        """The whole answer; b"" if the client has gone."""
        job = await self.begin()
        left = asyncio.ensure_future(_left(self._request))
        pictures = asyncio.wrap_future(job.future)
        try:
            seconds = self._desk.deadline(self._asked)
            await asyncio.wait({left, pictures}, timeout=seconds, return_when="FIRST_COMPLETED")
            if pictures.done():
                return await anyio.to_thread.run_sync(self._body, format, pictures.result(), job)
            if left.done():
                self._engine.metrics.count("ddim_jax_disconnects_total")
                return b""
            raise self._late()
        finally:
            left.cancel()
            self._engine.cancel(job)

    async def events(self, job: Job) -> AsyncIterator[bytes]:
        """The estimates, as many as the client is quick enough for, then the pictures."""
        until = self._loop.time() + self._desk.deadline(self._asked)
        left = asyncio.ensure_future(_left(self._request))
        pictures = asyncio.wrap_future(job.future)
        for task in (left, pictures):
            task.add_done_callback(lambda _: self._news.set())
        ended = False
        try:
            while not (pictures.done() or left.done()):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(until):
                        await self._news.wait()
                late = self._loop.time() >= until and not pictures.done()
                if late or not self._news.is_set():  # news may come faster than it is told
                    ended = True
                    yield answers.event("error", {"error": str(self._late())})
                    return
                self._news.clear()
                seen, self._seen = self._seen, {}
                for place, (at, picture) in sorted(seen.items()):
                    png = await anyio.to_thread.run_sync(answers.text_png, picture)
                    yield answers.event("estimate", {
                        "picture": place, "evaluation": at, "of": len(job.rows), "png": png,
                    })  # fmt: skip
            ended = pictures.done()
            if not ended:
                return
            if pictures.exception():
                yield answers.event("error", {"error": str(pictures.exception())})
            else:
                whole = pictures.result()
                body = await anyio.to_thread.run_sync(self._body, "json", whole, job)
                yield answers.event("done", body)
        finally:
            if not ended:
                self._engine.metrics.count("ddim_jax_disconnects_total")
            left.cancel()
            self._engine.cancel(job)

    def estimated(self, place: int, at: int, picture: np.ndarray) -> None:
        """Takes an estimate from the engine's thread; of each picture the newest is kept."""

        def take() -> None:
            self._seen[place] = at, picture
            self._news.set()

        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(take)

    def _body(self, format: str, pictures: np.ndarray, job: Job) -> bytes:
        names = self._engine.models[job.model].inputs.class_names
        return answers.body(format, pictures, job, self._desk.about(self._asked, job), names)

    def _late(self) -> Refused:
        seconds = self._desk.deadline(self._asked)
        return Refused(
            f"the pictures were not done within the deadline of {seconds:g} s: ask again later, "
            "for fewer steps or pictures",
            503,
            5,
        )


async def _read(request: fastapi.Request, most: int) -> bytes:
    """The body of a request.

    Raises:
        HTTPException: it is no JSON, too long, or does not come.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        given = repr(kind[:100]) if kind else "none"
        raise HTTPException(415, f"content-type must be application/json, got {given}")
    told = request.headers.get("content-length", "")
    size = int(told) if told.isdecimal() and len(told) < 20 else 0
    parts, got = [], 0
    try:
        async with asyncio.timeout(READS):
            async for part in request.stream():
                parts.append(part)
                got += len(part)
                if max(size, got) > most:
                    raise HTTPException(
                        413, f"a body has at most {most} bytes, got {max(size, got)}: ask for less"
                    )
    except TimeoutError:
        raise HTTPException(408, f"the body did not come within {READS:g} s") from None
    except ClientDisconnect:
        raise HTTPException(400, "the body ended early") from None
    return b"".join(parts)


async def _left(request: fastapi.Request) -> None:
    """Returns when the client has gone; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refused(request: fastapi.Request, error: Exception) -> JSONResponse:
    """The answer to an error that the client can do something about."""
    if isinstance(error, Refused):
        return refusal(str(error), error.status, {"retry-after": str(error.retry_after)})
    if isinstance(error, HTTPException):
        said = error.detail if error.status_code not in (404, 405) else _paths(request, error)
        return refusal(said, error.status_code, error.headers)
    return refusal(str(error), 422)


async def _failed(request: fastapi.Request, error: Exception) -> JSONResponse:
    """The answer to an error of ours, which is also written to the log."""
    return refusal(f"the server failed: {type(error).__name__}; its log says where", 500)


def _paths(request: fastapi.Request, error: HTTPException) -> str:
    what = f"{request.method} {request.url.path[:100]}"
    return f"{what}: {error.detail.lower()}; GET /openapi.json lists the paths and their methods"


def _described() -> dict[str, Any]:
    """What OpenAPI says of /draw."""
    error = {"application/json": {"schema": {
        "type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"],
    }}}  # fmt: skip
    said = {
        401: "no token, or a wrong one", 408: "the body did not come", 413: "the body is too long",
        415: "the body is no JSON", 422: "what was asked for cannot be drawn",
        429: "the queue is full", 503: "it stops, or the deadline has passed",
    }  # fmt: skip
    kinds = {kind: {"schema": {"type": "string"}} for kind in answers.TYPES.values()}
    schema = Asked.model_json_schema()
    return {
        "openapi_extra": {
            "requestBody": {"content": {"application/json": {"schema": schema}}, "required": True}
        },
        "response_class": fastapi.Response,
        "responses": {200: {"description": "the pictures", "content": kinds}}
        | {code: {"description": text, "content": error} for code, text in said.items()},
    }


def _about(model: Any) -> dict[str, Any]:
    """A model, for pages and programs that choose among them."""
    classes, recipe = model.inputs.num_classes, model.recipe
    return {
        "picture": list(model.codec.picture_shape),
        "classes": list(model.inputs.class_names) or [str(n) for n in range(classes)],
        "texts": model.inputs.takes("text"),
        "guidance": _range(model),
        "solver": recipe.solver,
        "steps": len(recipe.times(model.schedule)) - 1,
        "guidance_scale": recipe.guidance_scale,
    }


def _range(model: Any) -> list[float]:
    """The least and the greatest guidance scale that make a difference and are usual."""
    if model.inputs.takes("guidance"):
        return [float(end) for end in model.config.loss.get("guidance") or (1.0, 1.0)]
    return [0.0, 10.0] if row.is_guidable(model) else [1.0, 1.0]


def _page() -> str:
    return (importlib.resources.files("ddim_jax.serve") / "page.html").read_text("utf-8")
