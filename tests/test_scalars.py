"""Scalars that networks are told, whatever the units of their times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.networks import DiT, TextUNet, UNet
from ddim_jax.networks.options import scalar
from ddim_jax.networks.video import VideoDiT, VideoUNet

SIZES = dict(out_channels=1, num_classes=0)
UNETS = dict(channels=8, channel_mults=(1,), num_blocks=1, attention_resolutions=())
CLIPS = dict(frame_rate=True, scalars=("guidance",))
NETWORKS = {
    "unet": (UNet, SIZES | UNETS | dict(scalars=("guidance",))),
    "dit": (DiT, SIZES | dict(width=16, depth=1, heads=2, scalars=("guidance",))),
    "text_unet": (
        TextUNet,
        dict(
            out_channels=1, widths=(8,), num_blocks=1, depths=(1,), heads=(2,), groups=4,
            text_length=3, context_dim=5, scalars=("guidance",),
        ),
    ),
    "video_unet": (VideoUNet, SIZES | UNETS | CLIPS | dict(time_heads=2, joint_attention=())),
    "video_dit": (VideoDiT, SIZES | CLIPS | dict(width=16, depth=1, heads=2)),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_times_in_0_to_1_and_in_0_to_1000_are_told_the_same_scalars(name):
    kind, options = NETWORKS[name]
    rng = np.random.default_rng(0)
    shape = (2, 3, 8, 8, 1) if name.startswith("video") else (2, 8, 8, 1)
    x = rng.normal(size=shape).astype(np.float32)
    told = {"guidance": np.float32([1.25, 3.0])}
    if name.startswith("video"):
        told["frame_rate"] = np.float32([8, 12])
    if name == "text_unet":
        told["text"] = np.ones((2, 3, 5), np.float32)
    thousand, one = kind(**options, time_scale=1.0), kind(**options, time_scale=1000.0)
    shapes = jax.eval_shape(thousand.init, jax.random.key(0), x, jnp.ones(2), told)
    params = jax.tree.map(lambda leaf: np.float32(0.1 * rng.normal(size=leaf.shape)), shapes)
    expected = jax.jit(thousand.apply)(params, x, jnp.float32([250, 500]), told)
    found = jax.jit(one.apply)(params, x, jnp.float32([0.25, 0.5]), told)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    changed = jax.jit(one.apply)(
        params, x, jnp.float32([0.25, 0.5]), told | {"guidance": np.float32([1.3, 3.0])}
    )
    assert np.abs(changed - expected)[0].max() > 1e-4 > np.abs(changed - expected)[1].max()


def test_a_slow_network_is_told_slow_scalars():
    slow, own = UNet(1, time_scale=0.02), UNet(1, time_scale=0.5, interval_scale=0.02)
    assert 0.02 * scalar(slow, "guidance", 2.0) == pytest.approx(40)
    assert 0.5 * scalar(own, "interval", 2.0) == pytest.approx(40)
    assert 0.5 * scalar(own, "guidance", 2.0) == pytest.approx(1000)
