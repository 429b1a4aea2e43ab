"""The UNet: published sizes, conditioning, options, and its layers against plain definitions."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import codecs, predictions, schedules
from ddim_jax.inputs import Input, Inputs
from ddim_jax.model import Model
from ddim_jax.networks import NETWORKS, UNet, layers, winograd
from ddim_jax.networks.blocks import AttentionBlock
from ddim_jax.recipe import Recipe

ADM_IMAGENET_64 = dict(
    channels=192,
    channel_mults=(1, 2, 3, 4),
    num_blocks=3,
    attention_resolutions=(32, 16, 8),
    head_channels=64,
    num_classes=1000,
    null_label=False,
    scale_shift=True,
    resample_blocks=True,
    time_embedding="adm",
    norm_eps=1e-5,
)
DIGITS = dict(
    out_channels=1, channels=48, channel_mults=(1, 2), attention_resolutions=(7,), patch_size=2
)
TINY = dict(channels=8, channel_mults=(1, 2), num_blocks=1, attention_resolutions=())
SMALLEST = TINY | {"channel_mults": (1,), "num_blocks": 0}
B, SIZE = 3, 8

# These networks run once and take longer to compile than to run.
jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


def arguments(net, size=SIZE, batch=B, seed=0):
    """Returns (x, t, inputs) for net; inputs are exactly those that it declares."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, size, size, 3)).astype(np.float32)
    t = rng.uniform(0, 999, size=batch).astype(np.float32)
    inputs = {}
    if net.num_classes:
        inputs["label"] = rng.integers(net.num_classes, size=batch, dtype=np.int32)
    inputs |= {name: rng.uniform(size=batch).astype(np.float32) for name in net.scalars}
    return x, t, inputs


def row_keys(seed, batch=B):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(batch))


def traced(**options):
    """Returns the program of the network of these options, as text."""
    net = UNet(**(TINY | options))
    args = arguments(net)
    return str(jax.make_jaxpr(net.apply)({"params": shapes(net, *args)}, *args))


def shapes(net, *args):
    return jax.eval_shape(lambda: net.init(jax.random.key(0), *args))["params"]


def count(net, size, channels=3):
    x, *rest = arguments(net, size, 1)
    return sum(p.size for p in jax.tree.leaves(shapes(net, x[..., :channels], *rest)))


@functools.cache
def perturbed(**options):
    """Returns (net, params) with every parameter moved, so that nothing is zero by design."""
    net = UNet(**(TINY | options))
    tree = shapes(net, *arguments(net))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        unit = jax.tree_util.keystr(path).endswith("['scale']")
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 10.0
        return np.float32(unit + rng.normal(size=leaf.shape) / np.sqrt(fan_in))

    return net, jax.tree_util.tree_map_with_path(draw, tree)


@functools.cache
def forward(**options):
    """Returns a jitted f(params, x, t, inputs) for the perturbed network of these options."""
    net, _ = perturbed(**options)
    return jit(lambda params, *args: net.apply({"params": params}, *args))


def run(options, *args):
    return np.asarray(forward(**options)(perturbed(**options)[1], *args))


SLOW = pytest.mark.slow


# The first two totals are those of the converted checkpoints of Ho et al.; the third counts the
# layers of openai/guided-diffusion with the flags of its ImageNet-64 model and learn_sigma=False.
@pytest.mark.parametrize(
    ("options", "size", "published"),
    [
        ({}, 32, 35_746_307),
        pytest.param({"channel_mults": (1, 1, 2, 2, 4, 4)}, 256, 113_673_219, marks=SLOW),
        pytest.param(ADM_IMAGENET_64, 64, 295_899_267, marks=SLOW),
        pytest.param(ADM_IMAGENET_64 | {"out_channels": 6}, 64, 295_904_454, marks=SLOW),
        (ADM_IMAGENET_64 | {"null_label": True}, 64, 295_899_267 + 4 * 192),
    ],
    ids=["ddpm-cifar10", "ddpm-lsun", "adm-64", "adm-64-learned-variance", "adm-64-null-label"],
)
def test_parameter_counts(options, size, published):
    assert count(UNet(**options), size) == published


def test_digits_network_has_attention_at_7_only():
    net = UNet(**DIGITS)
    x = jnp.zeros((2, 28, 28, 1))
    params = shapes(net, x, jnp.zeros(2))
    attention = {name for name in params if name.endswith("attention")}
    down, up = {f"down_1_{i}" for i in range(2)}, {f"up_1_{i}" for i in range(3)}
    assert attention == {f"{name}_attention" for name in down | up | {"mid"}}
    assert params["conv_in"]["kernel"].shape == (3, 3, 4, 48)
    out = jax.eval_shape(net.apply, {"params": params}, x, jnp.zeros(2))
    assert out.shape == x.shape and out.dtype == jnp.float32


def test_zero_at_init_and_ddpm_scale_of_other_weights():
    net = UNet(**SMALLEST)
    x, t, _ = arguments(net, size=4)
    params = jit(net.init)(jax.random.key(0, impl="rbg"), x, t)["params"]
    np.testing.assert_array_equal(jit(net.apply)({"params": params}, x, t), 0.0)
    for block, last in (("mid_0", "conv_1"), ("mid_attention", "out")):
        np.testing.assert_array_equal(params[block][last]["kernel"], 0.0)
    # Uniform on +-sqrt(6 / (fan_in + fan_out)); each third of qkv has fans 8 and 8.
    for kernel, fans in (
        (params["time_1"]["kernel"], 64),
        (params["mid_0"]["conv_0"]["kernel"], 9 * 16),
        (params["mid_attention"]["qkv"]["kernel"], 16),
    ):
        limit = np.sqrt(6 / fans)
        assert 0.97 * limit < np.abs(kernel).max() <= limit


def test_time_and_label_reach_the_output():
    options = dict(num_classes=4)
    x, t, told = arguments(perturbed(**options)[0])
    base = run(options, x, t, told)
    changes = {
        "time": (x, t + np.float32(100), told),
        "null label": (x, t, told | {"label": np.full(B, 4, np.int32)}),
    }
    for name, args in changes.items():
        moved = np.abs(run(options, *args) - base).max(axis=(1, 2, 3))
        assert (moved > 1e-3).all(), name


def test_the_network_declares_its_inputs():
    assert UNet().inputs == {}
    net = UNet(num_classes=4, scalars=("guidance",))
    assert net.inputs == {"label": Input((), "int32", 4), "guidance": Input()}
    assert NETWORKS["unet"] is UNet


def test_label_indexes_the_embedding_with_the_null_label_last():
    options = dict(num_classes=4)
    net, params = perturbed(**options)
    assert params["label"]["embedding"].shape == (5, 4 * TINY["channels"])
    x, t, told = arguments(net)
    null = told | {"label": np.full(B, 4, np.int32)}
    rows = params["label"]["embedding"].copy()
    rows[4] = 0.0
    zeroed = params | {"label": {"embedding": rows}}
    f = forward(**options)
    assert np.abs(f(zeroed, x, t, null) - f(params, x, t, null)).max() > 1e-3
    np.testing.assert_array_equal(f(zeroed, x, t, told), f(params, x, t, told))


@pytest.mark.parametrize("options", [{}, {"scale_shift": True, "resample_blocks": True}])
def test_samples_do_not_see_each_other(options):
    x, t, _ = arguments(perturbed(**options)[0])
    base = run(options, x, t)
    x[1:], t[1:] = -3 * x[1:], t[1:] + 50
    other = run(options, x, t)
    np.testing.assert_allclose(other[0], base[0], atol=1e-6)
    assert np.abs(other[1:] - base[1:]).max() > 1e-2


def test_scale_shift_of_zero_is_the_plain_normalised_block():
    net, params = perturbed(scale_shift=True)
    assert params["mid_0"]["emb"]["kernel"].shape == (32, 2 * 16)

    def silence(path, leaf):
        return leaf * 0 if "'emb'" in jax.tree_util.keystr(path) else leaf

    silent = jax.tree_util.tree_map_with_path(silence, params)
    plain = jax.tree_util.tree_map_with_path(
        lambda p, leaf: leaf[..., : leaf.shape[-1] // 2] if "'emb'" in str(p) else leaf, silent
    )
    x, t, _ = arguments(net)
    expected = forward()(plain, x, t)
    np.testing.assert_allclose(forward(scale_shift=True)(silent, x, t), expected, atol=1e-5)


def test_resample_blocks_have_parameters_of_residual_blocks():
    _, conv = perturbed()
    _, blocks = perturbed(scale_shift=True, resample_blocks=True)
    assert set(conv["down_0_resample"]) == {"kernel", "bias"}
    for name in ("down_0_resample", "up_1_resample"):
        assert set(blocks[name]) == {"norm_0", "conv_0", "emb", "norm_1", "conv_1"}


@pytest.mark.parametrize("remat", ["convolutions", "products", "blocks"])
@pytest.mark.slow
def test_remat_changes_neither_output_nor_gradients(remat):
    x, t, _ = arguments(UNet(), size=4)
    rng = np.random.default_rng(0)
    tree = shapes(UNet(**SMALLEST), x, t)
    params = jax.tree.map(lambda p: np.float32(rng.normal(size=p.shape) * 0.2), tree)

    def loss(p, remat):
        net = UNet(**SMALLEST, dropout=0.2, remat=remat)
        return jnp.square(net.apply({"params": p}, x, t, {}, row_keys(3))).mean()

    plain, saved = (functools.partial(loss, remat=remat) for remat in ("none", remat))
    blocks = 4  # three in the middle, one up
    assert str(jax.make_jaxpr(saved)(params)).count("prevent_cse") == blocks
    texts = [str(jax.make_jaxpr(jax.grad(f))(params)) for f in (plain, saved)]
    again = texts[1].count("conv_general_dilated[") - texts[0].count("conv_general_dilated[")
    assert again == (3 if remat == "blocks" else 0)  # the first of each residual block
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        *(jit(jax.value_and_grad(f))(params) for f in (plain, saved)),
    )


def test_bfloat16_stays_close_and_keeps_float32_outside():
    net, _ = perturbed(dtype="bfloat16")
    x, t, _ = arguments(net)
    tree = shapes(net, x, t)
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype("float32")}
    low, full = run({"dtype": "bfloat16"}, x, t), run({}, x, t)
    assert low.dtype == jnp.float32
    error = np.sqrt(np.square(low - full).mean() / np.square(full).mean())
    assert 0 < error < 0.03


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_traces_under_strict_promotion(dtype):
    net = UNet(**TINY, dtype=dtype, num_classes=4, dropout=0.1, scale_shift=True)
    args = *arguments(net), row_keys(0)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        shapes(net, *args)


def test_dropout_needs_keys():
    net = UNet(**SMALLEST, dropout=0.5)
    _, params = perturbed(**SMALLEST)
    x, t, _ = arguments(net)
    f = jit(lambda keys: net.apply({"params": params}, x, t, {}, keys))
    np.testing.assert_array_equal(f(row_keys(0)), f(row_keys(0)))
    assert np.abs(f(row_keys(0)) - f(row_keys(1))).max() > 1e-2
    assert traced(dropout=0.5) == traced()
    x, t, _ = arguments(UNet())
    args = {"params": perturbed()[1]}, x, t, {}, row_keys(0)
    program = str(jax.make_jaxpr(UNet(**TINY).apply)(*args))
    assert "random" not in program  # without a rate nothing is drawn


def test_dropout_of_a_row_depends_on_its_key_alone():
    net = UNet(**SMALLEST, dropout=0.5)
    _, params = perturbed(**SMALLEST)
    x, t, _ = arguments(net)
    x, t = np.repeat(x[:1], B, 0), np.repeat(t[:1], B, 0)
    f = jit(lambda x, t, keys: net.apply({"params": params}, x, t, {}, keys))
    together = f(x, t, row_keys(0))
    for i in range(B):
        alone = f(x[i : i + 1], t[i : i + 1], row_keys(0)[i : i + 1])
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5)
        assert i == 0 or np.abs(together[i] - together[0]).max() > 1e-2


def test_every_dropout_layer_has_masks_of_its_own():
    class Two(nn.Module):
        def setup(self):
            self.first, self.second = layers.Dropout(0.25), layers.Dropout(0.25)

        def __call__(self, x, keys):
            return self.first(x, keys), self.second(x, keys)

    masks = Two().apply({}, jnp.ones((B, 500)), row_keys(0))
    for mask in masks:
        np.testing.assert_allclose(np.unique(mask), [0, 4 / 3], rtol=1e-6)
        assert abs((mask == 0).mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / mask.size)
    both = (np.asarray(masks) == 0).all(0).mean()
    assert abs(both - 1 / 16) < 5 * np.sqrt(1 / 16 / masks[0].size)  # independent
    # crc32 of "first", so that masks are the same in every session
    key = jax.random.fold_in(row_keys(0)[0], np.uint32(0x9271EE57))
    np.testing.assert_array_equal(masks[0][0] > 0, jax.random.bernoulli(key, 0.75, (500,)))


def test_patches_round_trip_and_order():
    x = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
    patches = layers.space_to_depth(x, 2)
    assert patches.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(patches[1, 1, 2], x[1, 2:4, 4:6].reshape(-1))
    np.testing.assert_array_equal(layers.depth_to_space(patches, 2), x)


def test_any_rectangle_of_the_right_multiple():
    net, params = perturbed(patch_size=2)
    out = jax.eval_shape(net.apply, {"params": params}, jnp.zeros((2, 8, 20, 3)), jnp.zeros(2))
    assert out.shape == (2, 8, 20, 3)


@pytest.mark.parametrize("channels", [8, 48, 144])
def test_group_norm_equals_flax(channels):
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 2.0, (2, 6, 5, channels)) * np.linspace(0.1, 4.0, channels)
    x, (gain, bias) = x.astype(np.float32), rng.normal(size=(2, channels)).astype(np.float32)
    params = {"params": {"scale": gain, "bias": bias}}
    groups = {8: 2, 48: 12, 144: 24}[channels]
    theirs = nn.GroupNorm(num_groups=groups, epsilon=1e-6)
    ours = layers.GroupNorm()
    weights = np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape)

    @functools.partial(jit, static_argnums=0)
    def value_and_gradient(module, x):
        value, pull = jax.vjp(lambda x: module.apply(params, x), x)
        return value, pull(weights)[0]

    (y, dx), (expected, gradient) = (value_and_gradient(module, x) for module in (ours, theirs))
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(dx, gradient, atol=1e-4, rtol=1e-4)


def test_groups_are_32_from_128_channels_on():
    for channels in (128, 192, 256, 384, 1024):
        assert layers.group_count(channels) == 32
    assert [layers.group_count(c) for c in (3, 48, 64, 96, 144)] == [1, 12, 16, 24, 24]
    assert layers.group_count(64, 2) == 32


def test_group_norm_survives_a_large_mean():
    x = 1000.0 + np.random.default_rng(0).normal(size=(1, 16, 16, 4))
    x = np.asarray(x, np.float32).astype(np.float64)
    params = {"params": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}}
    expected = (x - x.mean()) / x.std()
    result = layers.GroupNorm().apply(params, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(result, expected, atol=1e-3)


def test_heads_split_the_channels():
    # All attention of this network is 16 wide.
    assert traced(num_heads=4) == traced(head_channels=4) != traced()
    params = perturbed()[1]["mid_attention"]
    qkv = params["qkv"]["kernel"].reshape(16, 3, 2, 8)
    swapped = params | {"qkv": params["qkv"] | {"kernel": qkv[:, :, ::-1].reshape(16, 48)}}
    swapped["qkv"]["bias"] = params["qkv"]["bias"].reshape(3, 2, 8)[:, ::-1].reshape(48)
    out = params["out"]["kernel"].reshape(2, 8, 16)[::-1].reshape(16, 16)
    swapped["out"] = params["out"] | {"kernel": out}
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 16)).astype(np.float32)
    block = jit(AttentionBlock(num_heads=2).apply)
    same, expected = block({"params": swapped}, x), block({"params": params}, x)
    np.testing.assert_allclose(same, expected, atol=1e-5)
    alone = jit(AttentionBlock(num_heads=1).apply)({"params": params}, x)
    assert np.abs(alone - expected).max() > 1e-3


def test_resampling_layers():
    x = np.random.default_rng(0).normal(size=(2, 6, 4, 3)).astype(np.float32)
    np.testing.assert_array_equal(layers.upsample(x), x.repeat(2, axis=1).repeat(2, axis=2))
    means = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    np.testing.assert_allclose(layers.average_pool(x), means, atol=1e-6)


@pytest.mark.parametrize(("padding", "before"), [("same", 0), ("symmetric", 1)])
def test_strided_convolution_padding(padding, before):
    x = np.random.default_rng(0).normal(size=(1, 6, 4, 2)).astype(np.float32)
    kernel = np.random.default_rng(1).normal(size=(3, 3, 2, 5)).astype(np.float32)
    pad = (before, 1)
    padded = np.pad(x, ((0, 0), pad, pad, (0, 0)))
    expected = np.zeros((1, 3, 2, 5))
    for i in range(3):
        for j in range(2):
            window = padded[0, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            expected[0, i, j] = np.tensordot(window, kernel, 3) + np.arange(5)
    conv = layers.Conv3x3(5, stride=2, padding=padding)
    params = {"params": {"kernel": kernel, "bias": jnp.arange(5.0)}}
    np.testing.assert_allclose(conv.apply(params, x), expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 8, 6, 5, 7), (1, 2, 2, 3, 4)])
def test_winograd_equals_the_plain_convolution(shape):
    *image, features = shape
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], image)
    kernel = jax.random.normal(keys[1], (3, 3, image[-1], features))
    plain = layers.conv3x3(x, kernel)
    ours = winograd.convolve(x, winograd.transform(kernel))
    np.testing.assert_allclose(ours, plain, atol=2e-6 * float(jnp.abs(plain).max()))


def test_a_wide_network_is_prepared_once_and_says_the_same():
    wide = dict(channels=128, channel_mults=(1, 1), num_blocks=1, num_classes=2)
    net, params = perturbed(**wide)
    model = Model(
        network=net,
        params=params,
        schedule=schedules.ddpm_linear(),
        parameterization=predictions.eps,
        inputs=Inputs(net.inputs),
        codec=codecs.pixels((6, 6, 3)),
        recipe=Recipe(),
        config=None,
    )
    prepared = model.prepared(params)
    kernels = prepared[winograd.COLLECTION]
    assert {leaf.shape for leaf in jax.tree.leaves(kernels)} == {(16, 128, 128), (16, 256, 128)}
    assert not {"mid_0", "down_1_resample", "conv_out"} & set(kernels)  # 3 x 3; stride 2; narrow
    args = arguments(net, size=6)
    plain, ours = (jit(model.apply)(tree, *args) for tree in (params, prepared))
    assert 0 < np.abs(plain - ours).max() < 1e-5 * np.abs(plain).max()
    halved = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    half = model.replace(network=net.clone(dtype="bfloat16"), params=halved)
    assert half.prepared(halved) is halved  # such convolutions stay what they are


def test_a_narrow_network_is_left_as_it_is():
    params = {"narrow": np.zeros((3, 3, 64, 128)), "square": np.zeros((3, 3))}
    assert not winograd.any_suits(params)
    assert winograd.any_suits(params | {"wide": np.zeros((3, 3, 256, 128))})


def test_time_scale_is_of_times_and_scalars():
    slow, params = perturbed(time_scale=0.25, scalars=("interval",))
    x, t, told = arguments(slow)
    quarter = {"interval": told["interval"] / 4}
    fast = run(dict(scalars=("interval",)), x, t / 4, quarter)
    np.testing.assert_allclose(jit(slow.apply)({"params": params}, x, t, told), fast, atol=1e-5)
    assert np.abs(run(dict(scalars=("interval",)), x, t, told) - fast).max() > 1e-2


def test_time_embeddings_follow_the_published_layouts():
    t = jnp.asarray([0.0, 3.0, 999.0])
    ddpm = np.asarray(layers.time_embedding(t, 8))
    frequencies = 10000.0 ** -(np.arange(4) / 3)
    angles = np.asarray(t)[:, None] * frequencies
    np.testing.assert_allclose(ddpm, np.hstack([np.sin(angles), np.cos(angles)]), atol=1e-4)
    adm = np.asarray(layers.time_embedding(t, 8, "adm"))
    dit = layers.time_embedding(t, 8, "dit")
    np.testing.assert_allclose(dit, np.hstack([np.cos(angles), np.sin(angles)]), atol=1e-4)
    angles = np.asarray(t)[:, None] * 10000.0 ** -(np.arange(4) / 4)
    np.testing.assert_allclose(adm, np.hstack([np.cos(angles), np.sin(angles)]), atol=1e-4)


LABELLED = dict(num_classes=4)
GOOD_LABEL = {"label": jnp.zeros(B, jnp.int32)}


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({}, {"x": jnp.zeros((B, 7, 8, 3))}, r"divisible by 2 = patch_size 1 .* got 7 x 8"),
        ({"patch_size": 2}, {"x": jnp.zeros((B, 8, 6, 3))}, r"divisible by 4 = patch_size 2"),
        ({}, {"x": jnp.zeros((8, 8, 3))}, r"x must be \[B, H, W, C\]"),
        ({}, {"t": jnp.zeros(())}, r"t must have shape \(3,\), one model time per sample"),
        ({}, {"inputs": GOOD_LABEL}, r"keys \[\] \(num_classes=0, .*got \['label'\]"),
        (LABELLED, {"inputs": {}}, r"keys \['label'\] \(num_classes=4, .*got \[\]"),
        (
            LABELLED,
            {"inputs": {"label": jnp.zeros((B, 1), int)}},
            r"'label'\] must have shape \(3,\)",
        ),
        (LABELLED, {"inputs": {"label": jnp.zeros(B)}}, r"must be integers, got float32"),
        (
            {"scalars": ("interval",)},
            {"inputs": {"interval": jnp.zeros((B, 4))}},
            r"'interval'\] must have shape \(3,\).*\(3, 4\)",
        ),
        ({}, {"dropout_keys": row_keys(0, 2)}, r"dropout_keys must be \[3\], one key per sample"),
        ({"dropout": 1.0}, {}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"num_heads": 3}, {}, r"attention at width 16 needs .*num_heads=3"),
        ({"dtype": "float17"}, {}, r"dtype must be one of .*bfloat16.*'float17'"),
        ({"remat": "all"}, {}, r"remat must be one of"),
        ({"time_embedding": "edm"}, {}, r"time_embedding must be one of"),
        ({"down_padding": "valid"}, {}, r"down_padding must be one of"),
        ({"channels": 7}, {}, r"channels must be even"),
    ],
)
def test_errors_name_the_rule(options, change, message):
    net = UNet(**(TINY | options))
    args = {"x": jnp.zeros((B, SIZE, SIZE, 3)), "t": jnp.zeros(B), "inputs": {}} | change
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: net.init(jax.random.key(0), **args))


def test_configurations_hash_and_accept_lists_turned_tuples():
    assert hash(UNet(**ADM_IMAGENET_64)) == hash(UNet(**ADM_IMAGENET_64))
    assert UNet(**DIGITS) == UNet(**DIGITS) != UNet()
