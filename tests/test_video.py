"""Networks of clips: the identity at first, frames cut apart, causal ones and what they keep."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.networks import DiT, UNet, VideoDiT, VideoUNet
from ddim_jax.networks.frames import CACHE, is_added

B, T, SIZE = 2, 5, 8
UNET = dict(
    out_channels=3, channels=8, channel_mults=(1, 2), num_blocks=1, attention_resolutions=(),
    num_classes=3,
)  # fmt: skip
OVER_TIME = dict(time_heads=2, joint_attention=(4,), time_convolution=(4, 8))
DIT = dict(out_channels=3, width=16, depth=2, heads=2, num_classes=3)
NETWORKS = {
    "unet": (UNet(**UNET), VideoUNet(**UNET, **OVER_TIME)),
    "dit": (DiT(**DIT), VideoDiT(**DIT)),
}
jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)  # networks run once and take longer to compile than to run


@functools.cache
def programs(name, causal=False, **changes):
    """(apply of the network of pictures, network of clips, its apply)."""
    picture, clip = NETWORKS[name]
    clip = clip.clone(causal=causal, **changes)
    return jit(picture.apply), clip, jit(clip.apply)


@functools.cache
def clips():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(B, T, SIZE, SIZE, 3)), jnp.float32)
    t = jnp.asarray(rng.uniform(0, 999, (B, T)), jnp.float32)
    return x, t, {"label": jnp.array([0, 2])}


@functools.cache
def fresh(name):
    x, t, told = clips()
    net = NETWORKS[name][1]
    return jit(lambda key: net.init(key, x, t, told)["params"])(jax.random.key(0))


@functools.cache
def shaken(name):
    """Parameters none of which are zeros, as after training."""
    leaves, tree = jax.tree.flatten(fresh(name))
    rng = np.random.default_rng(1)
    return tree.unflatten([p + 0.1 * rng.normal(size=p.shape).astype(np.float32) for p in leaves])


def image_part(params):
    return {
        name: image_part(value) if isinstance(value, dict) else value
        for name, value in params.items()
        if not is_added(name)
    }


def only_images_shaken(name):
    """As taken over from a trained network of pictures: layers over frames are fresh."""

    def chosen(path, new, old):
        return old if is_added("/".join(k.key for k in path)) else new

    return jax.tree_util.tree_map_with_path(chosen, shaken(name), fresh(name))


@pytest.mark.parametrize("name", NETWORKS)
def test_starts_as_the_network_of_pictures_on_every_frame(name):
    picture, _, apply = programs(name)
    x, t, told = clips()
    params = only_images_shaken(name)
    found = apply({"params": params}, x, t, told)
    frames = {"label": jnp.repeat(told["label"], T)}
    wanted = picture(
        {"params": image_part(params)}, x.reshape(-1, SIZE, SIZE, 3), t.reshape(-1), frames
    )
    np.testing.assert_allclose(found.reshape(wanted.shape), wanted, atol=2e-6)
    assert np.abs(wanted).max() > 0.1


@pytest.mark.parametrize("name", NETWORKS)
def test_one_level_for_a_clip_is_the_same_level_for_each_frame(name):
    _, _, apply = programs(name)
    x, t, told = clips()
    one, each = (
        apply({"params": shaken(name)}, x, level, told)
        for level in (t[:, 0], jnp.broadcast_to(t[:, :1], t.shape))
    )
    np.testing.assert_array_equal(one, each)
