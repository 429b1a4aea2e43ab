"""Autoencoders are trained: the loss against its formula in numpy, the scale of latents."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

import ddim_jax
from ddim_jax import data, experiment, losses
from ddim_jax.losses.autoencoder import divergence
from ddim_jax.training import around, loop, method
from ddim_jax.training.sample_grid import Reconstructions
from tests.test_configs import get
from tests.tiny import tiny


@pytest.fixture(scope="module")
def config():
    return tiny(get("digits_vae"))


@pytest.fixture(scope="module")
def model(config):
    made = experiment.build(config)
    return made.replace(params=jax.jit(made.init)(jax.random.key(1)), name="vae")


@pytest.fixture(scope="module")
def pictures():
    source = data.load("digits", image_size=8, channels=3)
    return np.stack([source[i]["image"] for i in range(4)])


def test_the_divergence_is_that_of_two_gaussians():
    """By numerical integration of p log(p / q)."""
    mean, std = np.float64([[0.3, -1.2], [0.0, 0.0]]), np.float64([[0.5, 1.7], [1.0, 1.0]])
    z, wanted = np.linspace(-20, 20, 400_001), []
    for m, s in zip(mean.ravel(), std.ravel(), strict=True):
        log_p = -(((z - m) / s) ** 2) / 2 - np.log(s) - np.log(2 * np.pi) / 2
        log_q = -(z**2) / 2 - np.log(2 * np.pi) / 2
        wanted.append(np.sum(np.exp(log_p) * (log_p - log_q)) * (z[1] - z[0]))
    found = divergence(jnp.float32(mean), jnp.float32(std))
    np.testing.assert_allclose(found, np.reshape(wanted, mean.shape).sum(1), atol=1e-5)


@pytest.mark.parametrize(
    "error, distance", [("l1", None), ("l2", lambda a, b: (a - b)[:, 0, 0, 0])]
)
def test_the_loss_is_the_formula(model, pictures, error, distance):
    keys = jax.random.split(jax.random.key(7), len(pictures))
    options = dict(error=error, kl=0.2, distance=distance, distance_weight=3.0)
    loss = losses.LOSSES["autoencoder"](method.net(model), **options)
    x = np.float32(pictures) / 127.5 - 1
    batch = {"image": x, "label": np.zeros(len(x), np.int32)}
    value, metrics = jax.jit(loss.compute)(model.params, None, batch, keys, 0)

    net, bound = model.network.clone(scale=1.0), {"params": model.params}
    mean, std = net.apply(bound, x, method="encode")
    noise = np.stack([jax.random.normal(key, mean.shape[1:]) for key in keys])
    back = np.asarray(net.apply(bound, mean + std * noise, method="decode"), np.float64)
    mean, std = np.float64(mean), np.float64(std)
    nats = (mean**2 + std**2 - 1 - 2 * np.log(std)).sum((1, 2, 3)).mean() / 2
    off = back - x
    kept = np.abs(off).mean() if error == "l1" else (off**2).mean()
    wanted = kept + 0.2 * nats / x[0].size
    wanted += 0 if distance is None else 3.0 * off[:, 0, 0, 0].mean()
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    np.testing.assert_allclose(metrics["kl"], nats, rtol=1e-5)
    np.testing.assert_allclose(metrics["mse"], (off**2).mean(), rtol=1e-5)


def test_published_scales_do_not_change_the_loss(model, pictures):
    x = np.float32(pictures) / 127.5 - 1
    scaled = model.network.clone(scale=0.18215, shift=0.3)
    for name, one in model.network.apply({"params": model.params}, x)._asdict().items():
        other = getattr(scaled.apply({"params": model.params}, x), name)
        np.testing.assert_allclose(one, other, rtol=1e-5, err_msg=name)


def test_latents_have_unit_variance_at_the_scale_that_is_measured(model):
    source = data.load("digits", image_size=8, channels=3)
    scale = around.measure_scale(model, source, 200)
    x = np.stack([source[i]["image"] for i in np.linspace(0, 4999, 200).astype(int)])
    net = model.network.clone(scale=scale)
    moments = net.apply({"params": model.params}, np.float32(x) / 127.5 - 1, method="encode")
    noise = np.random.default_rng(0).normal(size=moments.mean.shape)
    assert np.std(moments.mean + moments.std * noise) == pytest.approx(1, abs=0.02)


def test_pictures_lie_above_what_comes_back(model, tmp_path, monkeypatch):
    """In rows of ten; the second pair, of three, is filled up with white."""
    config = model.config.copy_and_resolve_references()
    config.sample.num_samples = 13
    source = data.load("digits", image_size=8, channels=3)
    sheets, save = [], data.save_grid

    def kept(path, sheet, **options):
        sheets.append((sheet, options["columns"]))
        save(path, sheet, **options)

    monkeypatch.setattr(data, "save_grid", kept)
    path = Reconstructions(model.replace(config=config), source, tmp_path)(model.params, 3)
    assert path.name == "step_0000003.png" and path.stat().st_size > 100
    ((sheet, columns),) = sheets
    given = np.stack([source[i]["image"] for i in np.linspace(0, 4999, 13).astype(int)])
    x = np.float32(given) / 127.5 - 1
    back = data.to_uint8(model.network.apply({"params": model.params}, x).pictures)
    assert columns == 10 and sheet.shape == (40, *given.shape[1:])
    np.testing.assert_array_equal(sheet[:10], given[:10])
    np.testing.assert_array_equal(sheet[20:23], given[10:])
    for found, wanted in ((sheet[10:20], back[:10]), (sheet[30:33], back[10:])):
        np.testing.assert_allclose(np.float32(found), np.float32(wanted), atol=1)
    assert np.all(sheet[23:30] == 255) and np.all(sheet[33:] == 255)


def test_an_autoencoder_draws_nothing(model):
    with pytest.raises(ValueError, match="vae is an autoencoder and draws nothing; config.codec"):
        model.draw(1)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(error="l3"), "unknown error 'l3'.*it is one of l1, l2"),
        (dict(kl=-1.0), "config.loss.kl must be at least 0, got -1.0; 1e-6 is usual"),
        (dict(distance="huber"), "config.loss.distance must be lpips:FILE, got 'huber'; leave"),
    ],
)
def test_bad_options_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        losses.LOSSES["autoencoder"](method.net(model), **options)


@pytest.mark.parametrize("name, loss", [("digits", "autoencoder"), ("digits_vae", "diffusion")])
def test_another_network_or_loss_is_refused(name, loss):
    config = tiny(get(name), levels=1)
    config.loss = ml_collections.ConfigDict(dict(name=loss))
    with pytest.raises(ValueError, match="and config.model.name='autoencoder_kl' go together, got"):
        method.check(config, experiment.build(config), 1)


@pytest.mark.slow
def test_a_latent_model_of_texts_trains_and_draws_alone(config, tmp_path):
    """On an autoencoder that was trained here, which is gone when it is loaded."""
    loop.train(config, tmp_path / "vae")
    latent = tiny(get("digits_text"))
    latent.codec.start_from = str(tmp_path / "vae")
    latent.data.cache = False
    state = loop.train(latent, tmp_path / "text")
    assert int(state.step) == 2
    vae = ddim_jax.load(tmp_path / "vae")
    (tmp_path / "vae").rename(tmp_path / "gone")
    model = ddim_jax.load(tmp_path / "text")
    for one, other in zip(
        jax.tree.leaves(vae.params), jax.tree.leaves(model.codec.params), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert model.config.codec.scale != 1 and model.recipe.guidance_scale == 3
    pictures = model.draw(prompt=["a bold seven", "a thin one"], steps=2)
    assert pictures.shape == (2, 16, 16, 3)
    latent.train.steps = 3
    resumed = loop.train(latent, tmp_path / "text")
    latent.codec.start_from = str(tmp_path / "gone")
    for mode in ("jit", "fsdp", "pmap"):
        latent.parallel = mode
        whole = loop.train(latent, tmp_path / mode)
        for one, other in zip(*map(jax.tree.leaves, (resumed.params, whole.params)), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=0 if mode == "jit" else 1e-4)
