"""Networks of clips: the identity at first, frames cut apart, causal ones and what they keep."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.dropping import ALONE
from ddim_jax.inputs import FRAME_RATE
from ddim_jax.networks import DiT, UNet, VideoDiT, VideoUNet
from ddim_jax.networks.frames import CACHE, Clips, FrameAttention, is_added
from tests.selection import slow_but

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


@pytest.mark.parametrize("name", slow_but(NETWORKS, ["unet"]))
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


@pytest.mark.parametrize("name", slow_but(NETWORKS, ["dit"]))
def test_frames_cut_apart_are_clips_of_one_frame(name):
    _, _, apply = programs(name)
    x, t, told = clips()
    params = {"params": shaken(name)}
    apart = apply(params, x, t, told | {ALONE: jnp.array([True, False])})
    single = apply(
        params, x[0][:, None], t[0][:, None], {"label": jnp.repeat(told["label"][:1], T)}
    )
    np.testing.assert_allclose(apart[0], single[:, 0], atol=2e-5)
    together = apply(params, x, t, told)
    np.testing.assert_allclose(apart[1], together[1], atol=2e-5)
    assert np.abs(apart[0] - together[0]).max() > 1e-2


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("causal", [True, False])
def test_a_causal_frame_sees_none_that_is_later(name, causal):
    """By a derivative forwards, which must go through the attention."""
    _, net, _ = programs(name, causal)
    x, t, told = clips()
    at = 3
    moved = jnp.zeros_like(x).at[:, at].set(1.0)

    params = {"params": shaken(name)}

    def output(x):
        return net.apply(params, x, t, told)

    _, change = jit(lambda x, moved: jax.jvp(output, (x,), (moved,)))(x, moved)
    most = np.abs(change).max(axis=(0, 2, 3, 4))
    assert np.all(most[at:] > 1e-4)
    assert np.all(most[:at] == 0) if causal else np.all(most[:at] > 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_frames_behind_those_that_are_kept_are_those_of_the_whole_clip(name):
    _, net, apply = programs(name, causal=True)
    x, t, told = clips()
    params = shaken(name)
    whole = apply({"params": params}, x, t, told)

    @jit
    def some(cache, x, t):
        variables = {"params": params} | ({CACHE: cache} if cache else {})
        return net.apply(variables, x, t, told, mutable=[CACHE])

    shapes = jax.eval_shape(some, None, x, t)[1][CACHE]
    cache = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    found = []
    for part in (slice(0, 2), slice(2, 3), slice(3, 5)):
        out, kept = some(cache, x[:, part], t[:, part])
        again, _ = some(cache, x[:, part], t[:, part])  # what is not kept changes nothing
        np.testing.assert_array_equal(out, again)
        cache = kept[CACHE]
        found.append(out)
    np.testing.assert_allclose(np.concatenate(found, 1), whole, atol=1e-5)


def test_a_window_hides_what_is_further_back():
    _, net, _ = programs("dit", causal=True, window=2, depth=1)
    x, t, told = clips()
    params = jax.tree.map(lambda p: p, shaken("dit"))
    params["blocks"] = jax.tree.map(lambda p: p[:1], params["blocks"])
    output = lambda x: net.apply({"params": params}, x, t, told)  # noqa: E731
    moved = jnp.zeros_like(x).at[:, 1].set(1.0)
    _, change = jit(lambda x, moved: jax.jvp(output, (x,), (moved,)))(x, moved)
    seen = np.abs(change).max(axis=(0, 2, 3, 4)) > 0
    np.testing.assert_array_equal(seen, [False, True, True, False, False])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_clip_does_not_depend_on_its_batch(name):
    _, _, apply = programs(name)
    x, t, told = clips()
    params = {"params": shaken(name)}
    both = apply(params, x, t, told)
    one = apply(params, x[1:], t[1:], {"label": told["label"][1:]})
    np.testing.assert_allclose(one[0], both[1], atol=1e-5)


def test_a_frame_rate_has_no_effect_at_first():
    net = VideoDiT(**DIT | {"depth": 1}, frame_rate=True)
    x, t, told = clips()
    rates = [told | {FRAME_RATE: jnp.full(B, rate)} for rate in (0.0, 8.0)]
    params = jit(lambda key: net.init(key, x, t, rates[0])["params"])(jax.random.key(0))
    params["out"]["kernel"] += 0.1
    params["modulation_out"]["kernel"] += 0.1
    apply = jit(net.apply)
    unknown, eight = (apply({"params": params}, x, t, one) for one in rates)
    np.testing.assert_array_equal(unknown, eight)
    params["frame_rate_1"]["kernel"] += 0.1
    unknown, eight = (apply({"params": params}, x, t, one) for one in rates)
    assert np.abs(unknown - eight).max() > 1e-4
    assert net.inputs[FRAME_RATE].null == 0.0


def test_memory_of_attention_over_time_is_linear_in_frames():
    def memory(frames):
        layer, told = FrameAttention(2), Clips(frames)
        x = jax.ShapeDtypeStruct((frames, 8, 8, 8), jnp.float32)
        params = jax.eval_shape(lambda: layer.init(jax.random.key(0), jnp.zeros(x.shape), told))
        loss = lambda params, x: jnp.sum(layer.apply(params, x, told) ** 2)  # noqa: E731
        return jit(jax.grad(loss, (0, 1))).lower(params, x).compile().memory_analysis()

    short, long = (memory(frames).temp_size_in_bytes / frames for frames in (64, 256))
    assert long < 1.2 * short


def test_a_text_is_told_once_for_all_frames():
    text = dict(text_length=4, vocabulary=9, text_features=8, num_classes=0, depth=1)
    picture, net = DiT(**DIT | text), VideoDiT(**DIT | text)
    x, t, _ = clips()
    told = {"text": jnp.arange(4)[None] + jnp.arange(B)[:, None]}
    params = jit(lambda key: net.init(key, x, t, told)["params"])(jax.random.key(0))
    params["out"]["kernel"] += 0.1
    params["blocks"]["modulation"]["kernel"] += 0.1
    found = jit(net.apply)({"params": params}, x, t, told)
    frames = {"text": jnp.repeat(told["text"], T, axis=0)}
    flat = x.reshape(-1, *x.shape[2:]), t.reshape(-1)
    wanted = jit(picture.apply)({"params": image_part(params)}, *flat, frames)
    np.testing.assert_allclose(found.reshape(wanted.shape), wanted, atol=1e-5)


def test_what_is_no_clip_is_refused():
    net = VideoUNet(**UNET, **OVER_TIME)
    x, t, told = clips()
    for changed, message in (
        (dict(x=x[:, 0]), r"x must be clips \[B, T, H, W, C\].*a picture is a clip of 1 frame"),
        (dict(t=t[:, :2]), r"t must be \[2\].*or \[2, 5\], one per frame, got \(2, 2\)"),
    ):
        given = dict(x=x, t=t, inputs=told) | changed
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda given=given: net.init(jax.random.key(0), **given))
    for options, message in (
        (dict(window=2), "config.model.window=2 is of networks whose frames see earlier ones only"),
        (dict(time_heads=3), "heads over frames, twice, must divide the width"),
        (dict(joint_attention=(0,)), "an entry of config.model.joint_attention"),
    ):
        odd = VideoUNet(**UNET, **OVER_TIME | options)
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda odd=odd: odd.init(jax.random.key(0), x, t, told))
