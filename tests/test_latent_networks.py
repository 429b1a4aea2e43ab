"""Networks of latent diffusion: those of torch in every configuration, sizes, options, errors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits_mean_flow
from ddim_jax import checkpoints
from ddim_jax.checkpoints.tensors import to_ours, to_theirs
from ddim_jax.networks import DiT, TextUNet
from ddim_jax.networks.attention import Attention
from ddim_jax.networks.autoencoder import AutoencoderKL
from ddim_jax.networks.clip import ClipText
from ddim_jax.networks.layers import Dropout
from ddim_jax.networks.tiny_autoencoder import AutoencoderTiny
from ddim_jax.networks.transformer import positions
from ddim_jax.training import loop
from tests.latent_networks import CASES, GOLDEN, TIMES, ours, random, theirs, told
from tests.selection import slow_but
from tests.tiny import tiny


def golden(name):
    """What torch gave for a case."""
    with np.load(GOLDEN) as file:
        keys = [key for key in file if key.startswith(f"{name}/")]
        return {key.removeprefix(f"{name}/"): file[key] for key in keys}


OFTEN = ("sd1", "sdxl", "dit", "dit, not square", "sit, not square", "autoencoder", "clip",
         "openclip", "tiny autoencoder")  # fmt: skip


@pytest.mark.parametrize("name", slow_but(CASES, OFTEN))
def test_outputs_are_those_that_torch_gave(name):
    """diffusers 0.42.1 and transformers 5.24 with torch 2.14, for the same weights."""
    check_close(ours(name), golden(name))


@pytest.mark.parametrize("name", CASES)
def test_torch_gives_what_is_stored(name):
    for module in ("torch", "diffusers", "transformers"):
        pytest.importorskip(module, reason=f"needs {module} (the extra parity)")
    check_close(theirs(name), golden(name))


def check_close(found, expected):
    """To 1e-4: of the largest value, or of a gradient as a whole."""
    assert set(found) == set(expected)
    for key, wanted in expected.items():
        assert found[key].shape == wanted.shape
        difference, size = found[key] - wanted, (np.linalg.norm if key == "gradient" else peak)
        assert size(difference) <= 1e-4 * size(wanted), key


def peak(values):
    return np.abs(values).max()


def test_golden_numbers_say_something():
    with np.load(GOLDEN) as file:
        for key in file:
            assert key == "tiny autoencoder/std" or file[key].std() > 1e-3, key


# --- sizes ----------------------------------------------------------------------------------------


def shapes(net, *args):
    return jax.eval_shape(lambda: net.init(jax.random.key(0), *args))["params"]


def zeros(net, channels=4, size=64):
    """Arguments of a network, zeros of batch 1."""
    inputs = {name: jnp.zeros((1, *put.shape), put.dtype) for name, put in net.inputs.items()}
    return jnp.zeros((1, size, size, channels)), jnp.zeros(1), inputs


SDXL = dict(
    widths=(320, 640, 1280), depths=(0, 2, 10), mid_depth=10, heads=(5, 10, 20), context_dim=2048,
    vector_dim=1280, sizes=6,
)  # fmt: skip
PICTURE, IDS = (jnp.zeros((1, 64, 64, 3)),), (jnp.zeros((1, 77), jnp.int32),)
H = dict(width=1024, layers=23, heads=16, hidden=4096, activation="gelu")
G = dict(width=1280, layers=32, heads=20, hidden=5120, activation="gelu", projection=1280)
COUNTS = {
    "sd1": (TextUNet(), (), 859_520_964),
    "sd1-inpainting": (TextUNet(), (9,), 859_535_364),
    "sd2": (TextUNet(heads=(5, 10, 20, 20), context_dim=1024), (), 865_910_724),
    "lcm": (TextUNet(guidance_dim=256), (), 859_602_884),
    "sdxl": (TextUNet(**SDXL), (), 2_567_463_684),
    "dit-xl-2": (DiT(unused_channels=4), (), 674_834_720),
    "autoencoder": (AutoencoderKL(), PICTURE, 83_653_863),
    "autoencoder-16": (AutoencoderKL(latent_channels=16, quant=False), PICTURE, 83_819_683),
    "taesd": (AutoencoderTiny(), PICTURE, 2_445_063),
    "clip-l": (ClipText(), IDS, 123_060_480),
    "openclip-h": (ClipText(**H), IDS, 340_387_840),
    "openclip-g": (ClipText(**G), IDS, 694_659_840),
}  # fmt: skip
"""Of classes with these arguments; the sizes of configs are `test_configs.PUBLISHED`."""
SMALL_COUNTS = ("sd1", "dit-xl-2", "autoencoder", "taesd", "clip-l")


@pytest.mark.parametrize("name", slow_but(COUNTS, SMALL_COUNTS))
def test_parameter_counts_of_published_networks(name):
    net, args, published = COUNTS[name]
    args = zeros(net, *args) if isinstance(net, (TextUNet, DiT)) else args
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(net, *args))) == published


# --- initialisation -------------------------------------------------------------------------------

SMALL_DIT = dict(width=16, depth=2, heads=2, num_classes=4)
SMALL_UNET = dict(
    widths=(8,), num_blocks=0, depths=(1,), heads=(2,), groups=4, text_length=3, context_dim=5
)  # fmt: skip
LEARNT = dict(text_length=3, vocabulary=11, text_features=8)
SMALL = {
    "dit": DiT(**SMALL_DIT),
    "dit of learnt tokens": DiT(**SMALL_DIT, **LEARNT, modulation="shared"),
    "dit of keys": DiT(**SMALL_DIT, **LEARNT, text_as="keys"),
    "dit of features": DiT(**SMALL_DIT, text_length=3, context_dim=5),
    "text_unet": TextUNet(**SMALL_UNET),
}


KEYS = jax.vmap(jax.random.key)(jnp.arange(2))


def arguments(net, size=8, batch=2):
    inputs = told(net)
    if "label" in inputs:
        inputs["label"] = inputs["label"] % net.num_classes
    x = random("x", 2, size, size, 4)
    return jax.tree.map(lambda a: a[:batch], (x, TIMES, inputs))


def moved(net, *args):
    """Parameters none of which is zero by design."""
    rng = np.random.default_rng(0)
    tree = shapes(net, *args)

    def draw(leaf):
        return np.float32(rng.normal(size=leaf.shape) / np.sqrt(max(1, np.prod(leaf.shape[-2:-1]))))

    return jax.tree.map(draw, tree)


@pytest.mark.parametrize("name", slow_but(SMALL, ("dit", "text_unet")))
def test_a_fresh_network_returns_zeros(name):
    net = SMALL[name]
    args = arguments(net)
    params = jax.jit(net.init)(jax.random.key(0), *args)["params"]
    np.testing.assert_array_equal(net.apply({"params": params}, *args), 0.0)


def test_initialisation_of_transformers():
    """Modulations at zero, labels and times normal, kernels uniform and apart in every block."""
    net = DiT(**SMALL_DIT | {"width": 64, "heads": 4})
    params = jax.jit(net.init)(jax.random.key(0), *arguments(net))["params"]
    blocks = params["blocks"]
    assert not blocks["modulation"]["kernel"].any() and not params["out"]["kernel"].any()
    for kernel in (params["label"]["embedding"], params["time_0"]["kernel"]):
        assert abs(kernel.std() - 0.02) < 0.002
    kernel = blocks["attention"]["qkv"]["kernel"]
    limit = np.sqrt(6 / (64 + 3 * 64))
    assert 0.95 * limit < np.abs(kernel).max() <= limit
    assert np.abs(kernel[0] - kernel[1]).max() > limit / 2


def test_initialisation_of_text_encoders():
    net = ClipText(99, 10, 32, 4, 2, 64)
    params = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 5), jnp.int32))["params"]
    spread = 32**-0.5
    layers = params["layers"]
    for kernel, expected in (
        (params["token"]["embedding"], 0.02),
        (params["place"], 0.01),
        (layers["qkv"]["kernel"], spread),
        (layers["out"]["kernel"], spread * 8**-0.5),
        (layers["dense_0"]["kernel"], 64**-0.5),
    ):
        assert abs(kernel.std() / expected - 1) < 0.1


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", slow_but(SMALL, ("dit of learnt tokens", "dit of keys", "text_unet"))
)
def test_samples_do_not_see_each_other_and_every_input_matters(name):
    net = SMALL[name].clone(scalars=("interval",))
    if name == "text_unet":
        net = net.clone(vector_dim=3, sizes=2, size_dim=4, guidance_dim=6, num_classes=4)
    x, t, inputs = arguments(net)
    inputs = {k: v[:, :2] if k == "sizes" else v for k, v in inputs.items()}
    params = moved(net, x, t, inputs)
    run = jax.jit(lambda *args: net.apply({"params": params}, *args))
    base = run(x, t, inputs)
    np.testing.assert_allclose(run(x, t, {k: v.copy() for k, v in inputs.items()})[0], base[0])
    other = run(x * np.array([1, -3], np.float32).reshape(2, 1, 1, 1), t, inputs)
    np.testing.assert_allclose(other[0], base[0], atol=1e-5)
    for key, value in inputs.items():
        change = (value + 1) % 4 if value.dtype.kind == "i" else value + 0.3
        change = np.concatenate([value[:1], change[1:].astype(value.dtype)])
        other = run(x, t, inputs | {key: change})
        np.testing.assert_allclose(other[0], base[0], atol=1e-5)
        assert np.abs(other[1] - base[1]).max() > 1e-4, key


def test_a_shared_modulation_is_one_layer_of_every_block_with_biases_of_their_own():
    shared, own = DiT(**SMALL_DIT, modulation="shared"), SMALL["dit"]
    args = arguments(shared, size=4)
    params = moved(shared, *args)
    layer, blocks = params["modulation"], dict(params["blocks"])
    kernel = np.repeat(layer["kernel"][None], 2, axis=0)
    blocks["modulation"] = dict(kernel=kernel, bias=layer["bias"] + blocks["modulation"])
    same = {k: v for k, v in params.items() if k != "modulation"} | {"blocks": blocks}
    ours, theirs = shared.apply({"params": params}, *args), own.apply({"params": same}, *args)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["dit of learnt tokens", "dit of keys", "text_unet of learnt tokens"]
)
def test_learnt_tokens_are_told_as_their_features_are(name):
    unet = TextUNet(**SMALL_UNET | LEARNT | dict(context_dim=0, num_classes=4))
    learnt = SMALL.get(name, unet)
    layers = learnt.text_tokens.clone(name=None)
    features = learnt.clone(vocabulary=0, context_dim=layers.width)
    x, t, inputs = arguments(learnt, size=4)
    params = moved(learnt, x, t, inputs)
    text = layers.apply({"params": params["text"]}, inputs["text"])
    as_is = dict(kernel=np.eye(layers.width, dtype=np.float32), bias=np.zeros(layers.width))
    as_is = params | {"text": as_is}
    if learnt is unet:
        del as_is["text"]
    told_features = features.apply({"params": as_is}, x, t, inputs | {"text": text})
    base = learnt.apply({"params": params}, x, t, inputs)
    np.testing.assert_allclose(base, told_features, atol=1e-5)
    turned = inputs | {"text": inputs["text"][:, ::-1]}
    assert np.abs(learnt.apply({"params": params}, x, t, turned) - base).max() > 1e-3


def test_tokens_beside_are_further_keys_of_attention():
    draw = np.random.default_rng(0).normal
    x, beside = (draw(size=(2, n, 8)).astype(np.float32) for n in (5, 3))
    layer = Attention(heads=2, bias=True)
    params = moved(layer, np.concatenate([x, beside], axis=1))
    whole = layer.apply({"params": params}, np.concatenate([x, beside], axis=1))
    kv = {name: leaf[..., 8:] for name, leaf in params["qkv"].items()}
    found = layer.apply({"params": params | {"kv": kv}}, x, beside=beside)
    np.testing.assert_allclose(found, whole[:, :5], atol=1e-5)


@pytest.mark.parametrize("remat", ["products", "blocks"])
@pytest.mark.slow
def test_remat_changes_neither_output_nor_gradients(remat):
    net = SMALL["dit"].clone(dropout=0.2)
    args = arguments(net, size=4)
    params = moved(net, *args)

    def loss(params, remat):
        y = net.clone(remat=remat).apply({"params": params}, *args, KEYS)
        return jnp.square(y).mean()

    run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    plain, saved = run(params, "none"), run(params, remat)
    for a, b in zip(*map(jax.tree.leaves, (plain, saved)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(a).max() + 1e-7)


@pytest.mark.parametrize("name", slow_but(SMALL, ("dit of learnt tokens", "text_unet")))
def test_remat_is_of_every_block(name):
    args = arguments(SMALL[name], size=4)
    params = shapes(SMALL[name], *args)
    for remat, count in (("none", 0), ("products", 5 if name == "text_unet" else 1)):
        net = SMALL[name].clone(remat=remat)  # three residual blocks, two transformers
        program = str(jax.make_jaxpr(net.apply)({"params": params}, *args))
        assert program.count("prevent_cse") == count


@pytest.mark.parametrize("name", slow_but(SMALL, ("dit of learnt tokens", "text_unet")))
def test_bfloat16_stays_close_and_keeps_float32_outside(name):
    net = SMALL[name]
    args = arguments(net)
    params = moved(net, *args)
    full, low = (
        jax.jit(net.clone(dtype=dtype).apply)({"params": params}, *args)
        for dtype in ("float32", "bfloat16")
    )
    assert low.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(net, *args))} == {jnp.dtype("float32")}
    error = np.sqrt(np.square(low - full).mean() / np.square(full).mean())
    assert 0 < error < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", ["autoencoder", "tiny autoencoder", "clip"])
def test_outputs_are_float32_whatever_the_dtype(name):
    case = CASES[name]
    net = case.net.clone(dtype="bfloat16")
    run = lambda params, *args: case.run(net, params, *args)  # noqa: E731
    with jax.numpy_dtype_promotion("strict"):
        outputs = jax.eval_shape(run, case.shapes(), *case.arguments)
    assert {leaf.dtype for leaf in outputs.values()} == {jnp.dtype("float32")}
    assert "bf16" in str(jax.make_jaxpr(run)(case.shapes(), *case.arguments))


@pytest.mark.parametrize("name", slow_but(SMALL, ("dit of learnt tokens", "text_unet")))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_traces_under_strict_promotion(name, dtype):
    net = SMALL[name].clone(dtype=dtype, dropout=0.1, scalars=("interval",))
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        shapes(net, *arguments(net), KEYS)


@pytest.mark.slow
def test_dropout_of_blocks_differs_and_depends_on_the_row_alone():
    """Blocks that are compiled once would share one mask, were the keys not apart."""
    net = DiT(**SMALL_DIT, dropout=0.5)
    x, t, inputs = arguments(net)
    params = moved(net, x, t, inputs)
    same = jax.tree.map(lambda a: np.repeat(a[:1], 2, 0), (x, t, inputs))
    keys = KEYS
    run = jax.jit(lambda params, args, keys: net.apply({"params": params}, *args, keys))
    both = run(params, same, keys)
    assert np.abs(both[0] - both[1]).max() > 1e-3
    alone = net.apply({"params": params}, *jax.tree.map(lambda a: a[1:], same), keys[1:])
    np.testing.assert_allclose(alone[0], both[1], atol=1e-4)
    np.testing.assert_array_equal(run(params, same, keys), both)
    seen = []

    def look(call, args, kwargs, context):
        if isinstance(context.module, Dropout):
            jax.debug.callback(lambda key: seen.append(key.tobytes()), jax.random.key_data(args[1]))
        return call(*args, **kwargs)

    with nn.intercept_methods(look):
        net.apply({"params": params}, *same, keys)
    jax.effects_barrier()
    assert len(set(seen)) == net.depth


def test_forward_derivatives_of_the_transformer():
    """What MeanFlow and sCM take: the slope along x and t, as finite differences have it."""
    net = DiT(**SMALL_DIT, time_scale=0.01)
    x, t, inputs = arguments(net)
    params = moved(net, x, t, inputs)
    direction = random("direction", *x.shape), np.ones_like(t)

    @jax.jit
    def slopes(x, t):
        run = lambda x, t: net.apply({"params": params}, x, t, inputs)  # noqa: E731
        _, slope = jax.jvp(run, (x, t), direction)
        h = 1e-2
        ahead, behind = (run(x + s * direction[0], t + s * direction[1]) for s in (h, -h))
        return slope, (ahead - behind) / (2 * h)

    slope, expected = slopes(x, t)
    np.testing.assert_allclose(slope, expected, atol=5e-3 * np.abs(expected).max())


@pytest.mark.slow
def test_a_transformer_trains_from_a_config(tmp_path):
    """By MeanFlow, whose loss differentiates forwards; and is loaded again."""
    config = tiny(digits_mean_flow.get_config())
    options = dict(width=16, depth=2, heads=2, num_classes=10, scalars=("interval",))
    with config.unlocked():
        del config["start_from"]
        config.model = dict(name="dit", out_channels=1, time_scale=0.02, dropout=0.1, **options)
    loop.train(config, tmp_path)
    model = checkpoints.load(tmp_path)
    assert isinstance(model.network, DiT) and model.inputs.num_classes == 10


# --- errors ---------------------------------------------------------------------------------------

X, T, LABEL = jnp.zeros((2, 8, 8, 4)), jnp.zeros(2), {"label": jnp.zeros(2, jnp.int32)}
TEXT = {"text": jnp.zeros((2, 3, 5))}


@pytest.mark.parametrize(
    "name, options, change, message",
    [
        (
            "dit",
            {},
            {"x": X[:, :7]},
            r"divisible by 2 = patch_size 2, got 7 x 8; resize the images",
        ),
        ("dit", {"heads": 3}, {}, r"heads must divide the width 16, got 3"),
        ("dit", {"width": 18, "heads": 2}, {}, r"width must be a multiple of 4 .* got 18"),
        (
            "dit",
            {},
            {"inputs": {}},
            r"keys \['label'\] \(num_classes=4, text_length=0, scalars=\(\)\), got \[\]",
        ),
        ("dit", {}, {"inputs": {"label": T}}, r"'label'\] must be integers, got float32"),
        ("dit", {"dropout": -0.1}, {}, r"dropout must be in \[0, 1\), got -0.1"),
        ("dit", {"remat": "all"}, {}, r"remat must be one of"),
        ("dit", {"time_embedding": "sit"}, {}, r"time_embedding must be one of .*'sit'"),
        ("text_unet", {}, {"inputs": {}}, r"keys \['text'\] \(text_length=3, .*got \[\]"),
        (
            "text_unet",
            {},
            {"inputs": {"text": jnp.zeros((2, 77, 5))}},
            r"'text'\] must have shape \(2, 3, 5\) \(text_length=3, .*got \(2, 77, 5\)",
        ),
        ("text_unet", {"heads": (2,)}, {}, r"heads must be 2 numbers, one per width, got \(2,\)"),
        ("text_unet", {"heads": (3, 2)}, {}, r"heads must divide the width 8, got 3"),
        ("text_unet", {"groups": 3}, {}, r"groups of a norm must divide the width 8, got 3"),
        ("text_unet", {"text_only": (True,)}, {}, r"text_only must be \(\) or 2 truths"),
        ("text_unet", {"sizes": 6}, {}, r"sizes=6 need a vector; give vector_dim"),
        (
            "text_unet",
            {"guidance_dim": 4, "scalars": ("guidance",)},
            {},
            r"by guidance_dim or as one of scalars, not both",
        ),
        ("text_unet", {"dtype": "float16"}, {}, r"dtype must be one of .*'float16'"),
        ("text_unet", {"down_padding": "valid"}, {}, r"down_padding must be one of"),
    ],
)
def test_errors_name_the_rule(name, options, change, message):
    levels = dict(widths=(8, 16), depths=(1, 0), heads=(2, 2)) if name == "text_unet" else {}
    net = SMALL[name].clone(**levels | options)
    args = {"x": X, "t": T, "inputs": LABEL if name == "dit" else TEXT} | change
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: net.init(jax.random.key(0), **args))


@pytest.mark.parametrize(
    "net, method, value, message",
    [
        (AutoencoderKL(), "encode", jnp.zeros((1, 12, 16, 3)), "divisible by 8, got 12 x 16; crop"),
        (AutoencoderKL(), "encode", jnp.zeros((1, 16, 16, 4)), r"images must be \[B, H, W, 3\]"),
        (AutoencoderKL(), "decode", jnp.zeros((1, 2, 2, 16)), r"latents must be \[B, h, w, 4\]"),
        (AutoencoderKL(dtype="float16"), "encode", jnp.zeros((1, 8, 8, 3)), "dtype must be one of"),
        (AutoencoderTiny(), "encode", jnp.zeros((1, 12, 16, 3)), "divisible by 8, got 12 x 16"),
        (AutoencoderTiny(), "decode", jnp.zeros((2, 2, 4)), r"latents must be \[B, h, w, 4\]"),
        (ClipText(), None, jnp.zeros((1, 78), int), r"at most 77 tokens, got \(1, 78\); the token"),
        (ClipText(), None, jnp.zeros((1, 7)), r"ids must be integers, got float32"),
        (ClipText(heads=7), None, jnp.zeros((1, 7), int), r"heads must divide the width 768"),
        (ClipText(activation="relu"), None, jnp.zeros((1, 7), int), r"activation must be one of"),
    ],
)
def test_errors_of_autoencoders_and_text_encoders(net, method, value, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: net.init(jax.random.key(0), value, method=method))


# --- names of tensors -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", slow_but(CASES, OFTEN))
def test_tensors_are_read_and_written_back(name):
    """Bit for bit, each exactly once."""
    case = CASES[name]
    tensors = case.tensors()
    params = to_ours(case.names(case.net, tensors), tensors)
    found = jax.tree.map(lambda leaf: leaf.shape, params)
    assert found == jax.tree.map(lambda leaf: leaf.shape, case.shapes())
    back = to_theirs(case.names(case.net), params)
    assert set(back) == set(tensors)
    for key, value in tensors.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)


def test_tensors_that_lack_or_are_left_over():
    case = CASES["dit"]
    names = list(case.names(case.net))
    whole = case.tensors()
    with pytest.raises(ValueError, match="holds extra.weight, for which the network has no place"):
        to_ours(names, whole | {"extra.weight": np.zeros(3)})
    label = "transformer_blocks.2.norm1.emb.class_embedder.embedding_table.weight"
    with pytest.raises(ValueError, match=f"lacks {label}"):
        to_ours(names, {k: v for k, v in whole.items() if k != label})
    with pytest.raises(ValueError, match="embedding_table.weight and its copies differ"):
        to_ours(names, whole | {label: whole[label] + 1})
    with pytest.raises(ValueError, match="no tensor for the parameter interval/kernel"):
        to_theirs(names, case.params() | {"interval": {"kernel": np.zeros(3)}})


def test_constants_in_files():
    """Positions, which files of older programs hold."""
    case = CASES["clip"]
    tensors = case.tensors() | {"text_model.embeddings.position_ids": np.arange(10)[None]}
    assert set(to_ours(case.names(case.net, tensors), tensors)) == set(case.params())
    case = CASES["sit, not square"]
    places = positions(5, 5, case.net.width)[None]
    tensors = case.tensors() | {"pos_embed": places}
    assert set(to_ours(case.names(case.net, tensors), tensors)) == set(case.params())
    tensors["pos_embed"] = places[:, ::-1]
    with pytest.raises(ValueError, match="pos_embed of 25 patches is not the sines and cosines"):
        to_ours(case.names(case.net, tensors), tensors)


def test_older_and_newer_names():
    """transformers 5 leaves out "text_model."; diffusers named attention otherwise before 0.15."""
    case = CASES["clip"]
    tensors = {key.removeprefix("text_model."): value for key, value in case.tensors().items()}
    found = to_ours(case.names(case.net, tensors), tensors)
    jax.tree.map(np.testing.assert_array_equal, found, case.params())
    case, tensors = CASES["autoencoder"], {}
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    for key, value in case.tensors().items():
        for new, name in old.items():
            key = key.replace(new, name)
        tensors[key] = value
    assert sum("proj_attn" in key for key in tensors) == 4
    found = to_ours(case.names(case.net, tensors), tensors)
    jax.tree.map(np.testing.assert_array_equal, found, case.params())


def test_parameters_in_another_dtype():
    case = CASES["openclip"]
    tensors = {key: value.astype(np.float16) for key, value in case.tensors().items()}
    entries = case.names(case.net, tensors)
    params = to_ours(entries, tensors, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
