"""Serves models over HTTP, loopback only unless asked otherwise.

    python -m ddim_jax.serve --checkpoint=digits_4step --port=8000
    python -m ddim_jax.serve --checkpoint=sd=FOLDER --checkpoint=comic=FOLDER,comic.safetensors:0.8
    curl -d '{"label": 3}' -H 'Content-Type: application/json' localhost:8000/draw > three.png

All requests share the evaluations of a model, whatever their solvers and steps; SIGTERM finishes
what has been taken and takes nothing more. docs/deploy.md has the paths and their errors.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddim_jax import command_line, files, interrupts
from ddim_jax.names import check_range, whole_number

TOKEN = "DDIM_JAX_TOKEN"
"""Variable of the environment that may hold the token."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Reads the flags."""
    parser = command_line.Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add, whole = parser.add_argument, {"type": int}
    add("--checkpoint", action="append", metavar="[NAME=]CHECKPOINT[,LORA[:SCALE]...]",
        help="may be given again; default digits_4step")  # fmt: skip
    add("--dtype", choices=("float32", "bfloat16"), help="of weights and computation")
    add("--size", help="HEIGHTxWIDTH like 512x768; default the checkpoint's")
    add("--host", default="127.0.0.1", help="0.0.0.0 for all networks: give a token too")
    add("--port", default=8000, **whole, help="0 for a free one")
    add("--sizes", default="1,4,16", help="pictures of an evaluation; the last is the most at once")
    add("--max_num", default=16, **whole, help="most pictures of a request")
    add("--max_steps", default=100, **whole, help="most steps of a request")
    add("--max_body", default=2**16, **whole, help="most bytes of a request")
    add("--queue", default=256, **whole, help="most pictures that wait")
    add("--deadline", default=60.0, type=float, help="most seconds that a request takes")
    add("--connections", default=512, **whole, help="most at a time")
    add("--token_file", help=f"holds the token that clients send; or the variable {TOKEN}")
    return parser.parse_args(argv)


def named(given: str) -> tuple[str | None, str, list[str]]:
    """Name, checkpoint and LoRA files of a flag like name=checkpoint,lora:0.8.

    Raises:
        ValueError: it names no checkpoint.
    """
    name, equals, rest = given.partition("=")
    checkpoint, *loras = (rest if equals else given).split(",")
    if not checkpoint or equals and not name:
        raise ValueError(f"--checkpoint must be CHECKPOINT or NAME=CHECKPOINT, got {given!r}")
    return (name if equals else None), checkpoint, loras


def load(checkpoints: Sequence[str], dtype: str | None = None, size: Any = None) -> dict[str, Any]:
    """The models of `--checkpoint`, by name.

    Raises:
        ValueError: two of one name; one that draws clips.
    """
    from ddim_jax import checkpoints as sources

    models = {}
    for given in checkpoints:
        name, checkpoint, loras = named(given)
        model = sources.load(checkpoint, dtype=dtype, lora=loras).sized(size)
        model.check_weights()
        if model.recipe.solver == "adaptive":
            raise ValueError(
                f"{model.name} is drawn by solver adaptive, which chooses its own steps, and the "
                "server shares evaluations by tables: train it with another config.sample.solver, "
                "or draw it by sample.py"
            )
        if model.codec.frames:
            raise ValueError(
                f"{model.name} draws clips, which are not served; draw them by sample.py "
                f"--checkpoint={checkpoint}"
            )
        name = name or model.name
        if name in models:
            raise ValueError(f"two models are called {name!r}: name them, as in other={checkpoint}")
        models[name] = model
    return models


def run(args: argparse.Namespace) -> None:
    """Checks the flags, loads, compiles, serves until it is told to stop."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{error}: pip install 'ddim_jax[serve]'") from None
    limits, sizes, token = check(args)
    from ddim_jax.serve.app import make_app
    from ddim_jax.serve.engine import Engine

    place = command_line.bound(args.host, args.port)
    began = time.perf_counter()
    models = load(args.checkpoint or ["digits_4step"], args.dtype, command_line.size(args.size))
    print(f"compiling {', '.join(models)} for {args.sizes} pictures at a time ...", flush=True)
    engine = Engine(models, sizes=sizes, queue=args.queue).start()
    place.listen(2048)
    host, port = place.getsockname()[:2]
    if not token and not host.startswith("127.") and host != "::1":
        print(f"note: anybody who reaches {host} may draw; give a token", file=sys.stderr)
    seconds = time.perf_counter() - began
    print(
        f"{command_line.address(host, port)} serves {', '.join(models)} after {seconds:.1f} s",
        flush=True,
    )
    app, finished = make_app(engine, limits, token), False
    try:
        finished = serve(app, place, args.connections, args.deadline, engine.drain)
    finally:
        engine.stop(args.deadline if finished else 0)
    drawn = engine.metrics.total("ddim_jax_pictures_total")
    print(f"stopped; {drawn:.0f} pictures drawn", flush=True)
    if not finished:
        sys.exit(128 + signal.SIGINT)


def check(args: argparse.Namespace) -> tuple[Any, tuple[int, ...], str]:
    """Limits, sizes and token of the flags.

    Raises:
        ValueError: a flag out of range; an empty file of the token.
    """
    check_range("--port", args.port, "[0, 65535]", whole=True)
    least = {"max_num": 1, "max_steps": 1, "max_body": 100, "queue": 1, "connections": 1}
    for name, low in least.items():
        check_range(f"--{name}", vars(args)[name], f"[{low}, 1e9]", whole=True)
    check_range("--deadline", args.deadline, "(0, 86400]")
    try:
        sizes = tuple(sorted({whole_number(size) for size in args.sizes.split(",")}))
    except ValueError:
        raise ValueError(f"--sizes must be like 1,4,16, got {args.sizes!r}") from None
    for size in sizes:
        check_range("--sizes", size, "[1, 4096]", whole=True)
    if args.queue < args.max_num:
        raise ValueError(
            f"--queue={args.queue} has no room for a request of --max_num={args.max_num} pictures: "
            "raise it, or lower that"
        )
    token = os.environ.get(TOKEN, "").strip()
    if args.token_file:
        try:
            token = files.read_text(Path(args.token_file).expanduser()).strip()
        except OSError as error:
            raise ValueError(
                f"--token_file={args.token_file} cannot be read ({error.strerror}); give a file "
                f"with the token in it, or the variable {TOKEN}"
            ) from None
        if not token:
            raise ValueError(f"--token_file={args.token_file} is empty; write a token into it")
    from ddim_jax.serve.asked import Limits

    return Limits(args.max_num, args.max_steps, args.max_body, args.deadline), sizes, token


def serve(app: Any, place: socket.socket, connections: int, grace: float, drain: Any) -> bool:
    """Answers until SIGTERM or Ctrl-C, then finishes what has been taken.

    Args:
        app: of ASGI.
        place: bound.
        connections: most at a time; more are told 503.
        grace: seconds that what has been taken may take.
        drain: called at once when it is told to stop.

    Returns:
        Whether it waited for what had been taken; a second Ctrl-C stops at once.
    """
    import uvicorn

    from ddim_jax.serve.connections import HEAD_BYTES, limited

    class Server(uvicorn.Server):
        """Leaves signals as it found them, and says at once that it takes nothing more."""

        @contextlib.contextmanager
        def capture_signals(self):
            if threading.current_thread() is not threading.main_thread():
                yield
                return

            def stop(number: int, frame: Any) -> None:
                if not self.should_exit:
                    os.write(2, b"finishing what has been taken; Ctrl-C again stops at once\n")
                self.handle_exit(number, frame)
                drain()

            old = {number: signal.signal(number, stop) for number in interrupts.NAMES}
            try:
                yield
            finally:
                for number, handler in old.items():
                    signal.signal(number, handler)

    options = dict(
        log_level="error", log_config=None, access_log=False, lifespan="off", server_header=False,
        http=limited(connections), ws="none", h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_graceful_shutdown=int(grace) + 1,
    )  # fmt: skip
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    server = Server(uvicorn.Config(app, **options))
    server.run(sockets=[place])
    return not server.force_exit


def _is_news(record: logging.LogRecord) -> bool:
    """Whether uvicorn's log says more than that it ends requests, as it was told to."""
    ended = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not ended and not re.match("Cancel .* running task|.*without completing", record.msg)


def main(argv: list[str] | None = None) -> None:
    """Serves from the command line."""
    args = parse(argv)
    command_line.run("serve", lambda: run(args))


if __name__ == "__main__":
    main()
