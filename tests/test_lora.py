"""LoRA files: every style of names merged as diffusers does, and what is refused."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

from ddim_jax import checkpoints
from ddim_jax.checkpoints import lora
from ddim_jax.checkpoints.tensors import to_ours, to_theirs
from ddim_jax.networks.low_rank import LowRank
from tests.errors import rejects
from tests.latent_networks import CASES
from tests.lora_files import (
    FILES,
    GOLDEN,
    METADATA,
    NETWORKS,
    OPTIONS,
    PLACES,
    kept,
    kohya_file,
    pair,
    peft_file,
    theirs,
    write,
)
from tests.selection import slow_but


@functools.cache
def networks(pipeline):
    """(parameters, network) of a network and its text encoders."""
    return [(CASES[case].params(), CASES[case].net) for case in NETWORKS[pipeline]]


def applied(tmp_path, pipeline, loras):
    """The parameters of a pipeline after some files."""
    made = networks(pipeline)
    for number, (file, metadata, scale) in enumerate(loras):
        path = write(tmp_path / f"{number}.safetensors", file, metadata)
        net, *text = made
        params, text_params = lora.apply(path, scale, *net, text=text)
        params = [params, *text_params]
        made = [(new, net) for new, (_, net) in zip(params, made, strict=True)]
    return [params for params, _ in made]


def tensors(pipeline, params):
    """Tensors by place and name, as transformers 5 names those of a text encoder."""
    found = {}
    for place, case, its in zip(PLACES, NETWORKS[pipeline], params, strict=False):
        its = to_theirs(CASES[case].names(CASES[case].net), its)
        if case == "clip":
            its = {name.removeprefix("text_model."): value for name, value in its.items()}
        found |= {f"{place}/{name}": value for name, value in its.items()}
    return found


@pytest.mark.parametrize("name", FILES)
def test_every_style_is_merged_as_diffusers_does(name, tmp_path):
    """diffusers 0.42.1, peft 0.21: the same tensors change, to the same numbers."""
    pipeline, make = FILES[name]
    loras = make()
    before = tensors(pipeline, [params for params, _ in networks(pipeline)])
    after = tensors(pipeline, applied(tmp_path, pipeline, loras))
    changed = sorted(key for key in after if not np.array_equal(before[key], after[key]))
    with np.load(GOLDEN) as golden:
        assert changed == list(golden[f"{name}/names"])
        found = np.concatenate([kept(after[key]) for key in changed])
        np.testing.assert_allclose(found, golden[f"{name}/values"], rtol=0, atol=1e-6)


def test_diffusers_gives_what_is_stored(tmp_path):
    for module in ("torch", "diffusers", "transformers", "peft"):
        pytest.importorskip(module, reason=f"needs {module}")
    for name in FILES:
        found = theirs(name, tmp_path)
        with np.load(GOLDEN) as golden:
            assert sorted(found) == list(golden[f"{name}/names"])
            values = np.concatenate([found[key] for key in sorted(found)])
            np.testing.assert_allclose(values, golden[f"{name}/values"], rtol=0, atol=1e-6)


def test_each_layer_has_its_own_alpha(tmp_path):
    """Also where diffusers loses them."""
    file = kohya_file("sd1")
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_k"
    other = key.replace("to_k", "to_q")
    file |= {f"{key}.alpha": np.float32([6])}
    del file[f"{other}.alpha"]
    after = tensors("sd1", applied(tmp_path, "sd1", [(file, {}, 0.5)]))
    before = tensors("sd1", [params for params, _ in networks("sd1")])
    for layer, scale in ((key, 2), (other, 1)):
        down, up = file[f"{layer}.lora_down.weight"], file[f"{layer}.lora_up.weight"]
        x = "unet/mid_block.attentions.0.transformer_blocks.0.attn1.to_" + layer[-1] + ".weight"
        np.testing.assert_allclose(after[x] - before[x], 0.5 * scale * up @ down, atol=1e-6)


def small_dit():
    case = CASES["dit"]
    return case, case.params(), case.tensors()


def test_stacked_and_shared_layers_of_a_transformer(tmp_path):
    case, params, before = small_dit()
    layers = [name for name, value in before.items() if value.ndim in (2, 4)]
    layers = [name for name in layers if "embedding_table" not in name]
    file, wanted = {}, dict(before)
    for name in layers:
        shape, place = before[name].shape, f"transformer.{name.removesuffix('.weight')}"
        same = place if ".emb." not in place else place[place.index(".emb.") :]
        down, up = pair(same, shape, 2)
        file |= {f"{place}.lora_A.weight": down, f"{place}.lora_B.weight": up}
        change = (up.reshape(-1, 2) @ down.reshape(2, -1)).reshape(shape)
        wanted[name] = before[name] + np.float32(0.3) * change
    found, _ = lora.apply(write(tmp_path / "dit.safetensors", file), 0.3, params, case.net)
    wanted = flatten_dict(to_ours(case.names(case.net), wanted))
    for key, value in flatten_dict(found).items():
        np.testing.assert_allclose(value, wanted[key], rtol=0, atol=1e-7)


def test_peft_folders_are_read_with_their_options(tmp_path):
    """base_model.model. before names, alpha in adapter_config.json."""
    file = {key: value for key, value in peft_file().items() if key.startswith("unet.")}
    renamed = {f"base_model.model.{key.removeprefix('unet.')}": one for key, one in file.items()}
    write(tmp_path / "adapter_model.safetensors", renamed)
    own = {key.removeprefix("unet."): value for key, value in OPTIONS.items()}
    (tmp_path / "adapter_config.json").write_text(json.dumps(own))
    params, net = networks("sd1")[0]
    found = lora.apply(tmp_path, 1.0, params, net)[0]
    path = write(tmp_path / "pytorch_lora_weights.safetensors", file, METADATA)
    same = lora.apply(path, 1.0, params, net)[0]
    assert jax.tree.all(jax.tree.map(np.array_equal, found, same))
    assert not jax.tree.all(jax.tree.map(np.array_equal, found, params))


@pytest.mark.parametrize(
    "more, scale",
    [({}, 4), ({"use_rslora": True}, 32 / 8**0.5), ({"alpha_pattern": {"q_proj": 16}}, 2)],
)
def test_options_beside_an_adapter_are_of_all_its_layers(more, scale, tmp_path):
    """Of a text encoder too, whose names begin with text_model."""
    layer = "text_model.encoder.layers.0.self_attn.q_proj"
    down, up = pair("a", (32, 32), 8)
    file = {f"base_model.model.{layer}.lora_{x}.weight": v for x, v in (("A", down), ("B", up))}
    write(tmp_path / "adapter_model.safetensors", file)
    options = {"r": 8, "lora_alpha": 32} | more
    (tmp_path / "adapter_config.json").write_text(json.dumps(options))
    assert lora.read(tmp_path)[layer].scale == scale


def test_dtypes_and_devices_stay(tmp_path):
    path = write(tmp_path / "a.safetensors", half(peft_file()))
    (params, net), *text = networks("sd1")
    low = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params)
    found, _ = lora.apply(path, 1.0, low, net, text=text)
    whole, _ = lora.apply(path, 1.0, params, net, text=text)
    for leaf, exact in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        assert isinstance(leaf, jax.Array) and leaf.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(leaf), exact, rtol=0.02, atol=0.02)


def test_shapes_stay_shapes(tmp_path):
    """Of a model that is planned with."""
    path = write(tmp_path / "a.safetensors", half(peft_file()))
    (params, net), *text = networks("sd1")
    shapes = lambda tree: jax.tree.map(  # noqa: E731
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree
    )
    text = [(shapes(its), network) for its, network in text]
    assert lora.apply(path, 1.0, shapes(params), net, text=text)[0] == shapes(params)


def half(file):
    return {key: value.astype(np.float16) for key, value in file.items()}


def test_scale_zero_changes_nothing(tmp_path):
    found = applied(tmp_path, "sd1", [(kohya_file("sd1"), {}, 0.0)])
    for new, (old, _) in zip(found, networks("sd1"), strict=True):
        assert jax.tree.all(jax.tree.map(np.array_equal, new, old))


# --- written factors ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", slow_but(["sd1", "sdxl", "dit"], ["sd1", "dit"]))
@pytest.mark.parametrize("targets", [("attention",), ("dense", "convolutions")])
def test_written_factors_are_read_back(case, targets, tmp_path):
    targets = targets[:1] if case == "dit" else targets
    net, params = CASES[case].net, CASES[case].params()
    low_rank = LowRank(3, 6, targets)
    factors = moved(low_rank.init(jax.random.key(0), params))
    lora.save(tmp_path / "a.safetensors", factors, net, low_rank)
    found, _ = lora.apply(tmp_path / "a.safetensors", 1.0, params, net)
    wanted = flatten_dict(low_rank.merge(params, factors), sep="/")
    for path, value in flatten_dict(found, sep="/").items():
        np.testing.assert_allclose(value, wanted[path], rtol=0, atol=1e-6, err_msg=path)


def moved(factors):
    """Factors of which none is zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: np.float32(0.3 * rng.normal(size=leaf.shape)), factors)


@pytest.mark.parametrize("linear", [False, True, None])
def test_written_names_are_those_of_peft(linear, tmp_path):
    net, params = CASES["sd1"].net, CASES["sd1"].params()
    low_rank = LowRank(2, targets=("attention", "*/in/kernel"))
    factors = low_rank.init(jax.random.key(0), params)
    options = {"dtype": "float16", "linear": linear}
    lora.save(tmp_path / "a.safetensors", factors, net, low_rank, **options)
    file = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    block = "unet.mid_block.attentions.0.transformer_blocks.0"
    assert file[f"{block}.attn1.to_q.lora_A.weight"].shape == (2, 64)
    assert file[f"{block}.attn2.to_k.lora_A.weight"].shape == (2, 24)
    assert file[f"{block}.attn2.to_out.0.lora_B.weight"].shape == (64, 2)
    place = "unet.down_blocks.0.attentions.0.proj_in"
    more = (1, 1) if linear is False else ()  # where it is not said, context_dim=24 is not 768
    assert file[f"{place}.lora_A.weight"].shape == (2, 32, *more)
    assert file[f"{place}.lora_B.weight"].shape == (32, 2, *more)
    assert {value.dtype for value in file.values()} == {np.dtype("float16")}
    assert all(key.startswith("unet.") and ".lora_" in key for key in file)


@pytest.mark.parametrize(
    "name, target, other",
    [
        ("emoji", "blocks/attention/qkv/kernel", "blocks/attention/kv/kernel"),
        ("emoji_video_4step", "blocks/feed/*/kernel", "modulation/kernel"),
        ("moving_4step", "mid_attention/qkv/kernel", "down_0_0_time_attention/*/kernel"),
    ],
)
def test_networks_of_captions_and_clips_have_the_names_of_those_of_pictures(
    name, target, other, tmp_path
):
    """Their own layers have none."""
    model = checkpoints.load(name)
    low_rank, path = LowRank(2, 4, (target,)), tmp_path / "a.safetensors"
    factors = moved(low_rank.init(jax.random.key(0), model.params))
    lora.save(path, factors, model.network, low_rank)
    found = flatten_dict(checkpoints.load(name, lora=path).params, sep="/")
    wanted = flatten_dict(low_rank.merge(model.params, factors), sep="/")
    for key, value in found.items():
        np.testing.assert_allclose(value, wanted[key], rtol=0, atol=1e-6, err_msg=key)
    low_rank = LowRank(2, 4, (target, other))
    factors = low_rank.init(jax.random.key(0), model.params)
    with rejects(ValueError, "no layer", "no name for it; export the whole network: leave out"):
        lora.save(tmp_path / "b.safetensors", factors, model.network, low_rank)
    assert [*tmp_path.iterdir()] == [path]


# --- text and errors ------------------------------------------------------------------------------


def test_networks_without_names_are_refused(tmp_path):
    path = write(tmp_path / "a.safetensors", kohya_file("sd1"))
    case = CASES["autoencoder"]
    with rejects(ValueError, "no names for the layers of AutoencoderKL: keep the whole network"):
        lora.apply(path, 1.0, case.params(), case.net)
    with rejects(ValueError, "no names for the layers of AutoencoderKL"):
        lora.save(tmp_path / "b.safetensors", {}, case.net, LowRank())


def test_file_and_scale_of_text(tmp_path):
    assert [*map(str, lora.parse("a/b.safetensors"))] == ["a/b.safetensors", "1.0"]
    assert [*map(str, lora.parse("a/b.safetensors:0.8"))] == ["a/b.safetensors", "0.8"]
    assert lora.parse("b.safetensors:-1")[1] == -1
    named = tmp_path / "odd:name"
    named.write_bytes(b"")
    assert lora.parse(str(named)) == (named, 1.0)
    with rejects(ValueError, "FILE:scale", "a.safetensors:much"):
        lora.parse("a.safetensors:much")
    with rejects(ValueError, "scale of a", "finite"):
        lora.parse("a:inf")


def test_layers_that_the_network_lacks_are_named(tmp_path):
    (params, net), *text = networks("sd1")
    path = write(tmp_path / "a.safetensors", kohya_file("sd1"))
    with rejects(ValueError, "another network", "107 layers", "lacks 24", "lora_te_text_model"):
        lora.apply(path, 1.0, params, net)  # without the text encoder
    other = CASES["dit"]
    with rejects(ValueError, "of the 107 layers", "lacks 107: lora_", "..."):
        lora.apply(path, 1.0, other.params(), other.net)
    with rejects(ValueError, "lacks 1: unet.nowhere"):
        lora.merge(params, CASES["sd1"].names(net), {"unet.nowhere": None})


def test_a_lora_of_wider_layers_is_refused(tmp_path):
    (params, net), *_ = networks("sd1")
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    down, up = pair(name, (64, 32), 2)
    file = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    with rejects(ValueError, name, "32 inputs to 64 outputs", "has 24 and 64"):
        lora.apply(write(tmp_path / "a.safetensors", file), 1.0, params, net)


LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
REFUSED = {
    "LoHa": ({f"{LAYER}.hada_w1_a": (4, 4)}, "hada_w1_a, of LoHa"),
    "LoKr": ({f"{LAYER}.lokr_w1": (4, 4)}, "lokr_w1, of LoKr"),
    "DoRA, kohya": ({f"{LAYER}.dora_scale": (4, 1)}, "dora_scale, of DoRA"),
    "DoRA, peft": ({"unet.x.to_q.lora_magnitude_vector": (4,)}, "of DoRA"),
    "Tucker": ({f"{LAYER}.lora_mid.weight": (4, 4, 3, 3)}, "Tucker"),
    "bias": ({"unet.x.lora_B.bias": (4,)}, "lora_B.bias, of no LoRA"),
    "a whole network": ({"conv_in.weight": (4, 4, 3, 3)}, "conv_in.weight, of no LoRA"),
    "no up": ({f"{LAYER}.lora_down.weight": (2, 4)}, f"{LAYER} has no up"),
    "ranks": (
        {f"{LAYER}.lora_down.weight": (2, 4), f"{LAYER}.lora_up.weight": (4, 3)},
        "down (2, 4) and up (4, 3)",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_kinds_are_refused_by_name(kind, tmp_path):
    shapes, message = REFUSED[kind]
    file = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    with rejects(ValueError, message, "a.safetensors"):
        lora.read(write(tmp_path / "a.safetensors", file))


def test_missing_and_damaged_files(tmp_path):
    with rejects(FileNotFoundError, "no LoRA", "b.safetensors"):
        lora.read(tmp_path / "b.safetensors")
    with rejects(FileNotFoundError, "no LoRA", "it is a folder"):
        lora.read(tmp_path)
    (tmp_path / "c.safetensors").write_bytes(b"nothing")
    with rejects(ValueError, "not a readable safetensors file"):
        lora.read(tmp_path / "c.safetensors")


def test_a_file_that_changes_nothing_and_values_that_cannot_be_are_refused(tmp_path):
    def refused(message, *file):
        path = write(tmp_path / "a.safetensors", *file)
        with rejects(ValueError, "a.safetensors", message):
            lora.read(path)

    layer = "unet.x.to_q"
    factors = {f"{layer}.lora_A.weight": (2, 4), f"{layer}.lora_B.weight": (4, 2)}
    file = {name: np.ones(shape, np.float32) for name, shape in factors.items()}
    refused("changes nothing", {})
    refused(f"alpha of {layer} must be", file | {f"{layer}.alpha": np.ones(2, np.float32)})
    refused("must be finite, got nan", file | {f"{layer}.alpha": np.float32([np.nan])})
    for text in ("no json", "[1]"):
        refused(f"in JSON, got {text!r}", file, {"lora_adapter_metadata": text})
    text = json.dumps({"unet.lora_alpha": "four"})
    refused("must be a number, got 'four'", file, {"lora_adapter_metadata": text})


def test_weights_that_are_not_finite_are_of_the_lora(tmp_path):
    (params, net), *_ = networks("sd1")
    factors = lora.Factors(*pair("a", (64, 64), 2), 1.0)
    with rejects(ValueError, "at scale 1e+39", LAYER, "not finite", "a lower scale"):
        lora.merge(params, CASES["sd1"].names(net), {LAYER: factors}, 1e39)


@pytest.mark.parametrize("given", [{"a.safetensors": 0.5}, [("a.safetensors", 0.5)]])
def test_files_are_given_as_text(given):
    with rejects(ValueError, "lora must be FILE, FILE:scale or a list of these, got", "a.safe"):
        checkpoints.load("digits", lora=given)


def test_a_layer_under_two_names_is_refused(tmp_path):
    (params, net), *_ = networks("sd1")
    factors = lora.Factors(*pair("a", (64, 64), 2), 1.0)
    twice = {LAYER: factors, "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q": factors}
    with rejects(ValueError, "one layer twice", LAYER):
        lora.merge(params, CASES["sd1"].names(net), twice)
