"""Two replicas on Ray Serve draw the same pictures as the model itself."""

import importlib.util
import io
import os

import numpy as np
import pytest
from PIL import Image

from ddim_jax import checkpoints
from tests.processes import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="pip install 'ddim_jax[ray]'"),
]


@pytest.fixture
def base(monkeypatch):
    """The address of two replicas."""
    import ray
    from ray import serve

    from ddim_jax.serve import ray_app

    environment = {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": environment})
    serve.start(http_options={"host": "127.0.0.1", "port": 8123})
    arguments = ray_app.Arguments(sizes="1,4", min_replicas=2, max_replicas=2)
    serve.run(ray_app.build(arguments))
    yield "http://127.0.0.1:8123"
    serve.shutdown()
    ray.shutdown()


def test_two_replicas_draw_what_the_model_draws(base):
    import httpx

    model, drawn = checkpoints.load("digits_4step"), {}
    with httpx.Client(base_url=base, timeout=120) as client:
        for seed in range(12):
            body = {"label": seed % 10, "seed": seed, "solver": ["ddim", "unipc_2"][seed % 2]}
            answer = client.post("/draw", json=body)
            assert answer.status_code == 200, answer.text
            found = np.asarray(Image.open(io.BytesIO(answer.content)))[None, ..., None]
            wanted = model.draw(**body)
            assert np.abs(found.astype(int) - wanted).max() <= 1
        bad = client.post("/draw", json={"solver": "dimm"})
        assert bad.status_code == 422 and "did you mean 'ddim'" in bad.json()["error"]
        for _ in range(40):
            lines = [line.split() for line in client.get("/metrics").text.splitlines()]
            found = {line[0].partition("{")[0]: float(line[1]) for line in lines if len(line) == 2}
            drawn[found["process_start_time_seconds"]] = found.get("ddim_jax_pictures_total", 0)
            assert found["ddim_jax_compilations_after_start_total"] == 0
        assert client.get("/health").json()["status"] == "ok"
    assert len(drawn) == 2 and sum(drawn.values()) == 12 and min(drawn.values()) > 0
