"""LPIPS against the authors' package on the same random weights, and its numbers from that run."""

import numpy as np
import pytest
import safetensors.numpy

from configs import imagenet64_cd
from ddim_jax import experiment
from ddim_jax.losses import lpips
from ddim_jax.training import method, stages

GOLDEN = (0.10912267118692398, 0.10311201214790344)
AVERAGE = (0.11209499835968018, 0.10567726939916611)
"""With torch's avg_pool2d in place of its max_pool2d."""


def random_file(folder):
    """Weights of sensible size, alike wherever numpy is."""
    rng = np.random.default_rng(7)
    tensors = {}
    for name, shape in lpips.shapes().items():
        scale = (2 / np.prod(shape[1:])) ** 0.5 if len(shape) == 4 else 0.1
        tensors[name] = (rng.standard_normal(shape) * scale).astype(np.float32)
        if name.startswith("lin"):
            tensors[name] = abs(tensors[name])
    path = folder / "lpips.safetensors"
    safetensors.numpy.save_file(tensors, path)
    return path, tensors


def images():
    rng = np.random.default_rng(8)
    first = rng.uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    return first, (0.5 * first + rng.uniform(-0.5, 0.5, first.shape)).astype(np.float32)


@pytest.mark.slow
def test_distances_are_those_of_the_authors_package(tmp_path):
    a, b = images()
    found = lpips.load(random_file(tmp_path)[0])(a, b)
    np.testing.assert_allclose(found, GOLDEN, rtol=1e-4)


@pytest.mark.slow
def test_average_pooling(tmp_path):
    a, b = images()
    path, _ = random_file(tmp_path)
    np.testing.assert_allclose(lpips.load(path, "average")(a, b), AVERAGE, rtol=1e-4)
    with pytest.raises(ValueError, match="pooling must be 'max' or 'average', got 'mean'"):
        lpips.load(path, "mean")


def test_configs_name_the_pooling(tmp_path):
    path, _ = random_file(tmp_path)
    config = imagenet64_cd.get_config()
    _, (_, stage) = stages.split(config, tmp_path)
    stage.loss.distance = f"lpips_average:{path}"
    model = experiment.build(stage)
    assert method.build_loss(stage, model, model).needs_teacher
    stage.loss.distance = "lpips_mean:" + str(path)
    with pytest.raises(ValueError, match="must be one of l2, huber, lpips:FILE or lpips_average"):
        method.build_loss(stage, model, model)


def test_parity_with_the_authors_package(tmp_path):
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("lpips")
    path, tensors = random_file(tmp_path)
    net = package.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False).eval()
    state = {name: torch.tensor(value) for name, value in tensors.items()}
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert not unexpected and all("lins" in name or "scaling" in name for name in missing)
    a, b = images()
    up = [
        torch.nn.functional.interpolate(
            torch.tensor(x).permute(0, 3, 1, 2), (224, 224), mode="bilinear"
        )
        for x in (a, b)
    ]
    with torch.no_grad():
        expected = net(*up).numpy().ravel()
    np.testing.assert_allclose(lpips.load(path)(a, b), expected, rtol=1e-4)
    np.testing.assert_allclose(GOLDEN, expected, rtol=1e-4)


@pytest.mark.slow
def test_grey_images_are_shown_as_three_equal_channels(tmp_path):
    a, b = (x[:1, :, :, :1] for x in images())
    distance = lpips.load(random_file(tmp_path)[0])
    np.testing.assert_allclose(
        distance(a, b), distance(*(np.repeat(x, 3, -1) for x in (a, b))), rtol=1e-6
    )


def test_files_that_cannot_be(tmp_path):
    with pytest.raises(FileNotFoundError, match="no LPIPS weights at .*, or none, needs none"):
        lpips.load(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        lpips.load(tmp_path / "bad.safetensors")
    safetensors.numpy.save_file({"x": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(
        ValueError, match=r"net.slice1.0.weight must be \(64, 3, 3, 3\), is missing"
    ):
        lpips.load(tmp_path / "other.safetensors")
