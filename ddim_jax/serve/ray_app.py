"""The server on Ray Serve: replicas on one machine or many, as many as the load asks for.

    serve run ddim_jax.serve.ray_app:build checkpoint=digits_4step max_replicas=4
    serve run ddim_jax.serve.ray_app:build checkpoint=FOLDER num_gpus=1 max_replicas=8

Each replica has an engine of its own, whose requests share evaluations; Ray's proxy sends each
request to one of them, and asks for more replicas where these have many. The same request is the
same picture from every replica. A token is read from the environment, as of the command, where
`build` runs; else where a replica does.
"""

import os
from typing import Any

import pydantic
from ray import serve

from ddim_jax import command_line, parallel
from ddim_jax.serve import __main__ as command
from ddim_jax.serve.app import make_app
from ddim_jax.serve.asked import Limits
from ddim_jax.serve.engine import Engine


class Arguments(pydantic.BaseModel, extra="forbid"):
    """What `build` takes, most of it as the command of the same name does.

    Attributes:
        checkpoint: of the models, apart by spaces.
        dtype: of weights and computation.
        size: HEIGHTxWIDTH.
        sizes: pictures of an evaluation.
        max_num: most pictures of a request.
        max_steps: most steps of a request.
        queue: most pictures that wait in a replica.
        deadline: most seconds of a request.
        min_replicas: that are there without load.
        max_replicas: that are there with any.
        target: requests at a time for which a replica is made.
        num_cpus: of a replica.
        num_gpus: of a replica.
    """

    checkpoint: str = "digits_4step"
    dtype: str | None = None
    size: str | None = None
    sizes: str = "1,4,16"
    max_num: int = 16
    max_steps: int = 100
    queue: int = 256
    deadline: float = 60.0
    min_replicas: int = 1
    max_replicas: int = 1
    target: int = 16
    num_cpus: float = 1
    num_gpus: float = 0


@serve.deployment
@serve.ingress()
class Replica:
    """An engine and its application."""

    def __init__(self, arguments: Arguments, token: str = ""):
        parallel.use_cpu_cores()
        parallel.use_compilation_cache()
        given = arguments
        models = command.load(given.checkpoint.split(), given.dtype, command_line.size(given.size))
        sizes = tuple(int(size) for size in given.sizes.split(","))
        self._limits = Limits(num=given.max_num, steps=given.max_steps, deadline=given.deadline)
        self._token = token or _token()
        self._engine = Engine(models, sizes=sizes, queue=given.queue).start()

    def __serve_build_asgi_app__(self) -> Any:
        return make_app(self._engine, self._limits, self._token)

    def check_health(self) -> None:
        """Raises RuntimeError where nothing is drawn any more: Ray then starts another replica."""
        if not self._engine.alive:
            raise RuntimeError("the engine has stopped")

    def __del__(self):
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.stop(self._limits.deadline)


def build(arguments: Arguments) -> serve.Application:
    """The application, for `serve run` and `serve.run`."""
    low, high = arguments.min_replicas, max(arguments.min_replicas, arguments.max_replicas)
    return Replica.options(
        autoscaling_config={
            "min_replicas": low,
            "max_replicas": high,
            "target_ongoing_requests": arguments.target,
        },
        max_ongoing_requests=4 * arguments.target,
        max_queued_requests=arguments.queue,
        graceful_shutdown_timeout_s=arguments.deadline,
        ray_actor_options={"num_cpus": arguments.num_cpus, "num_gpus": arguments.num_gpus},
    ).bind(arguments, _token())


def _token() -> str:
    return os.environ.get(command.TOKEN, "").strip()
