"""Whole published pipelines: read, written back, refused; outputs are those of diffusers."""

import functools
import json
import shutil
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

from ddim_jax import checkpoints
from ddim_jax.checkpoints import original_names, parts, pipelines, tensor_files, tensor_names
from ddim_jax.checkpoints.component_configs import KINDS
from ddim_jax.checkpoints.published_configs import CONFIGS, unasked
from ddim_jax.checkpoints.scheduler_options import Options
from ddim_jax.checkpoints.tensors import Entry, renamed, to_ours, to_theirs
from ddim_jax.networks import DiT
from tests import published_pipelines as published
from tests import whole_pipelines
from tests.errors import rejects
from tests.published_pipelines import CASES, recorded, samples, some
from tests.selection import slow_but
from tests.test_configs import get


@pytest.fixture(scope="module", params=slow_but(CASES, ("sd", "dit")))
def case(request, tmp_path_factory):
    """Name of a case, its folder, and what is read of it."""
    folder = published.write(tmp_path_factory.mktemp("published") / "model", request.param)
    return request.param, folder, pipelines.read(folder)


def outputs(name, pipeline):
    """Features of texts, the network's output and a picture, by the networks alone."""
    nets, config = parts.networks(pipeline.config), pipeline.config
    x, z = samples(name).values()
    told = {"label": np.array([1, 3])} if name == "dit" else {}
    found = {}
    rows, zipped = [], zip(nets.text, pipeline.text_params, pipeline.tokenizers, strict=True)
    for i, (net, params, tokenizer) in enumerate(zipped):
        encoder = config.text["encoders"][i]
        out = net.apply({"params": params}, tokenizer(published.TEXTS))
        rows.append(getattr(out, encoder["take"]))
        told |= {"vector": out.pooled} if encoder["pooled"] else {}
    if rows:
        told["text"] = found["text"] = np.concatenate(rows, axis=-1)
    told |= {"sizes": published.SIZES, "guidance": np.full(2, published.SCALE, np.float32)}
    told = {key: told[key] for key in nets.model.inputs}
    run = jax.jit(functools.partial(nets.model.apply, {"params": pipeline.params}))
    found["F"] = run(x, published.TIMES, told)
    scaled = z if name != "inpaint" else z * config.codec.scale
    found["image"] = nets.codec.apply({"params": pipeline.codec_params}, scaled, method="decode")
    return found


def test_outputs_are_those_that_diffusers_gave(case):
    """diffusers 0.42.1 and transformers 5.24 with torch 2.14, for the same folder."""
    name, _, pipeline = case
    found, golden = outputs(name, pipeline), recorded(name)["outputs"]
    assert set(found) == set(golden)
    for key, wanted in golden.items():
        wanted = np.array(wanted, np.float32)
        assert np.std(wanted) > 1e-2
        np.testing.assert_allclose(some(found[key]), wanted, atol=1e-4 * np.abs(wanted).max())


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_what_is_written_is_read_again_and_is_what_diffusers_wrote(case, tmp_path):
    name, folder, pipeline = case
    pipelines.write(tmp_path / "model", pipeline)
    back = pipelines.read(tmp_path / "model")
    same(pipeline[1:4], back[1:4])
    assert back.config.to_json() == pipeline.config.to_json()
    for a, b in zip(pipeline.tokenizers, back.tokenizers, strict=True):
        np.testing.assert_array_equal(a(published.TEXTS), b(published.TEXTS))
    for file in folder.rglob("*.safetensors"):
        written = safetensors.numpy.load_file(tmp_path / "model" / file.relative_to(folder))
        same(safetensors.numpy.load_file(file), written)
    for file in folder.rglob("scheduler_config.json"):
        assert json.loads(file.read_text()) == json.loads(
            (tmp_path / "model" / file.relative_to(folder)).read_text()
        )
    with pytest.raises(FileExistsError, match="choose another name"):
        pipelines.write(tmp_path / "model", pipeline)


def test_diffusers_reads_what_is_written(case, tmp_path):
    for module in ("torch", "diffusers", "transformers"):
        pytest.importorskip(module, reason=f"needs {module} (the extra parity)")
    name, _, pipeline = case
    pipelines.write(tmp_path / "model", pipeline)
    found, golden = published.theirs(tmp_path / "model", name), recorded(name)["outputs"]
    for key, wanted in golden.items():
        wanted = np.array(wanted, np.float32)
        np.testing.assert_allclose(some(found[key]), wanted, atol=1e-5 * np.abs(wanted).max())


def test_sections(case):
    name, _, pipeline = case
    config = pipeline.config
    assert tuple(config.data.image_shape) == (16, 16, 3)
    assert config.codec.name == ("autoencoder_tiny" if name == "inpaint" else "autoencoder_kl")
    scale = {"sd": 7.5, "inpaint": 7.5, "xl": 5.0, "lcm": 8.5, "dit": 4.0}
    assert config.sample.guidance_scale == scale[name]
    if name == "dit":
        assert config.data.class_names == ("tench", "crane", "crane")
        assert config.model.position_grid == 4 and "text" not in config
        return
    assert config.model.text_length == published.LENGTH
    assert config.text["null"] == ("zeros" if name == "xl" else "encode")
    taken = [(one["take"], one["pooled"]) for one in config.text["encoders"]]
    two = [("penultimate", False), ("penultimate", True)]
    assert taken == (two if name == "xl" else [("last", False)])
    extra = dict(config.get("extra") or {})
    assert extra == (dict(channels=5, kind="inpaint") if name == "inpaint" else {})
    if name == "inpaint":
        assert config.prediction.name == "v" and config.schedule.zero_terminal_snr


# --- published models -----------------------------------------------------------------------------

COUNTS = {
    "sd15": (859_520_964, 123_060_480),
    "sd21": (865_910_724, 340_387_840),
    "sdxl": (2_567_463_684, 123_060_480, 694_659_840),
    "dit-xl-2": (674_834_720,),
    "sit-xl-2": (674_834_720,),
}

ORIGINAL = {
    "sd15": (686, "output_blocks.11.0.skip_connection.weight", "output_blocks.2.1.conv.weight"),
    "sd21": (686, "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight", "time_embed.2.bias"),
    "sdxl": (1680, "output_blocks.5.2.conv.bias", "label_emb.0.2.weight"),
}
"""Tensors of the network's part of original files, among them those that programs look for."""


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.slow
def test_shapes_of_published_models(name):
    pipeline = pipelines.shapes(name)
    assert (count(pipeline.params), *map(count, pipeline.text_params)) == COUNTS[name]
    assert count(pipeline.codec_params) == 83_653_863
    leaves = jax.tree.leaves(pipeline[1:4])
    assert {type(leaf) for leaf in leaves} == {jax.ShapeDtypeStruct}
    if name in ORIGINAL:
        check_original_names(pipeline, *ORIGINAL[name])


def check_original_names(pipeline, wanted, *some):
    """As many as original files hold."""
    net, ours = parts.networks(pipeline.config).model, flatten_dict(pipeline.params, sep="/")
    rename = original_names.unet(net.num_blocks, [bool(depth) for depth in net.depths])
    entries = renamed(tensor_names.text_unet(net), rename)
    names = {name for entry in entries if entry.ours in ours for name in entry.theirs}
    assert len(names) == wanted and set(some) <= names


def arguments(name):
    content = recorded("real")[name]
    kind = KINDS[content.get("_class_name") or content["architectures"][0]]
    return kind, kind.arguments(Options(name, content))


@pytest.mark.parametrize(
    "name, model, changes",
    [
        ("sd15", "sd15", {}),
        ("sd21", "sd21", {}),
        ("sdxl", "sdxl", {}),
        ("lcm", "sd15", {"guidance_dim": 256}),
        ("inpaint", "sd15", {}),
        ("dit", "dit-xl-2", {}),
    ],
)
def test_configs_of_published_models_are_the_built_in_ones(name, model, changes):
    """As diffusers writes them; all else of the module is its default."""
    kind, found = arguments(name)
    wanted = {k: v for k, v in CONFIGS[model]["model"].items() if k != "name"}
    assert kind.module(**found) == kind.module(**wanted | changes)
    assert kind.module(**kind.arguments(Options("", kind.options(kind.module(**found))))) == (
        kind.module(**found)
    )


@pytest.mark.parametrize(
    "name, model, place",
    [
        ("clip-l", "sd15", 0),
        ("openclip-h", "sd21", 0),
        ("openclip-g", "sdxl", 1),
        ("vae", "sd15", None),
        ("vae-xl", "sdxl", None),
    ],
)
def test_configs_of_published_encoders_are_the_built_in_ones(name, model, place):
    _, found = arguments(name)
    config = CONFIGS[model]
    wanted = config["codec"] if place is None else config["text"]["encoders"][place]
    wanted = {k: v for k, v in wanted.items() if k not in ("name", "take", "pooled")}
    assert {k: found[k] for k in wanted} == wanted


OLD_CLIP = dict(
    architectures=["CLIPTextModel"], bos_token_id=0, eos_token_id=2, pad_token_id=1, hidden_size=32,
    num_attention_heads=2, num_hidden_layers=2, intermediate_size=24, torch_dtype="float32",
    _name_or_path="openai/clip", transformers_version="4.22.0.dev0", vocab_size=1000,
)  # fmt: skip


def test_end_tokens_of_older_files():
    """2 stands for the token of the highest number."""
    assert KINDS["CLIPTextModel"].arguments(Options("", OLD_CLIP))["end"] == 999


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """The smallest pipeline."""
    return published.write(tmp_path / "model", "dit")


def weights(folder):
    return folder / "transformer" / "diffusion_pytorch_model.safetensors"


def test_shards_and_variants(folder):
    whole = pipelines.read(folder)
    file = weights(folder)
    tensors = safetensors.numpy.load_file(file)
    file.unlink()
    names, where = sorted(tensors), {}
    for i, part in enumerate((names[::2], names[1::2])):
        shard = file.with_name(f"diffusion_pytorch_model-{i + 1:05d}-of-00002.safetensors")
        safetensors.numpy.save_file({name: tensors[name] for name in part}, shard)
        where |= dict.fromkeys(part, shard.name)
    index = file.with_name(f"{file.name}.index.json")
    index.write_text(json.dumps({"weight_map": where}))
    same(pipelines.read(folder).params, whole.params)
    half = {name: value.astype(np.float16) for name, value in tensors.items()}
    safetensors.numpy.save_file(half, file.with_suffix(".fp16.safetensors"))
    assert dtypes(pipelines.read(folder).params) == {"float32"}
    assert dtypes(pipelines.read(folder, "float16").params) == {"float16"}
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {shard.name}, which {index.name} lists"):
        pipelines.read(folder)
    index.unlink()
    found = pipelines.read(folder)
    assert dtypes(found.params) == {"float16"} and dtypes(found.codec_params) == {"float32"}


def dtypes(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


def test_parameters_in_another_dtype(tmp_path):
    """bfloat16 files are read, written and converted."""
    folder = published.write(tmp_path / "model", "dit", dtype="bfloat16")
    pipeline = pipelines.read(folder)
    assert dtypes(pipeline[1:4]) == {"bfloat16"}
    assert dtypes(pipelines.read(folder, "float32")[1:4]) == {"float32"}
    pipelines.write(tmp_path / "again", pipeline)
    same(pipelines.read(tmp_path / "again")[1:4], pipeline[1:4])
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, got"):
        pipelines.read(folder, "int8")


def test_choice_of_files():
    names = {"model.fp16.safetensors", "model.safetensors.index.json", "model.non_ema.safetensors"}
    assert tensor_files.choose(names, "model") == "model.safetensors.index.json"
    assert tensor_files.choose(names, "model", "float16") == "model.fp16.safetensors"
    assert tensor_files.choose(names, "diffusion_pytorch_model") is None
    names = {"model.safetensors.index.fp16.json"}
    assert tensor_files.choose(names, "model") == "model.safetensors.index.fp16.json"


def test_written_files_are_those_of_safetensors(tmp_path):
    """Byte for byte, also of tensors that are views, in any order; of another dtype its numbers."""
    rows = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    tensors = {
        "b": rows.T, "a": rows[:, 1], "half": rows.astype(jnp.bfloat16).transpose(1, 0, 2),
        "one": np.float32(3), "none": np.zeros((0, 3), np.float16), "whole": np.arange(3),
        "ä": np.arange(3, dtype=np.uint8),
    }  # fmt: skip
    packed = {name: np.array(value, order="C") for name, value in tensors.items()}
    for metadata in ({"format": "pt"}, {}):
        tensor_files.save(tmp_path / "a.safetensors", tensors, metadata)
        wanted = safetensors.numpy.save(packed, metadata or None)
        assert (tmp_path / "a.safetensors").read_bytes() == wanted
    tensor_files.save(tmp_path / "a.safetensors", {"b": rows.T}, {}, "bfloat16")
    found = safetensors.numpy.load_file(tmp_path / "a.safetensors")["b"]
    np.testing.assert_array_equal(found, rows.T.astype(jnp.bfloat16))
    with pytest.raises(ValueError, match="b holds numbers that are not finite in float16"):
        tensor_files.save(tmp_path / "c.safetensors", {"b": rows.T * 1e6}, {}, "float16")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_writing_copies_one_tensor_at_a_time(tmp_path, dtype):
    """Of 24 kernels of 1 MB."""
    params = {f"layer_{i}": {"kernel": np.ones((3, 3, 128, 228), np.float32)} for i in range(24)}
    entries = [Entry(f"layer_{i}/kernel", (f"{i}.weight",)) for i in range(24)]
    tracemalloc.start()
    tensor_files.save(tmp_path / "a.safetensors", to_theirs(entries, params), {}, dtype)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6
    back = to_ours(entries, tensor_files.Tensors([tmp_path / "a.safetensors"]))
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_pickles_are_not_opened(folder):
    weights(folder).rename(folder / "transformer" / "diffusion_pytorch_model.bin")
    message = r"only diffusion_pytorch_model.bin, which is not opened; .*safe_serialization=True"
    with pytest.raises(FileNotFoundError, match=message):
        pipelines.read(folder)


def test_damaged_files(folder):
    weights(folder).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        pipelines.read(folder)


@pytest.mark.parametrize(
    "dtype, message",
    [
        ("float16", "not finite in float16: float16 ends at 65,504; take the float32 files"),
        ("float32", "not finite in float32: the file is damaged"),
    ],
)
def test_numbers_that_are_not_finite(folder, dtype, message):
    file = weights(folder)
    tensors = safetensors.numpy.load_file(file)
    value = 1e5 if dtype == "float16" else np.nan
    tensors["proj_out_1.bias"][3] = value
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(
        ValueError, match=f"transformer: proj_out_1.bias holds numbers .* {message}"
    ):
        pipelines.read(folder, dtype)


def test_one_network_alone(folder, tmp_path):
    config = pipelines.read(folder / "transformer").config
    assert "codec" not in config and tuple(config.data.image_shape) == (8, 8, 4)
    assert pipelines.is_folder(folder / "transformer") and pipelines.is_folder(folder)
    assert not pipelines.is_folder(folder / "scheduler")
    (tmp_path / "alone.part").mkdir()
    (tmp_path / "alone.part" / "notes.txt").touch()
    pipelines.write(tmp_path / "alone", pipelines.read(folder / "transformer"))
    assert (tmp_path / "alone.part" / "notes.txt").exists()  # it is not ours
    back = pipelines.read(tmp_path / "alone")
    same(back.params, pipelines.read(folder).params)
    with pytest.raises(ValueError, match="holds a AutoencoderKL, no network that draws"):
        pipelines.read(folder / "vae")
    codec = pipelines.read_component(folder / "vae")
    assert codec.section["name"] == "autoencoder_kl" and "decoder" in codec.params


def test_a_network_alone_is_drawn_by_the_scheduler_beside_it(tmp_path):
    folder = published.write(tmp_path / "model", "sd")
    own = pipelines.read(folder / "unet").config
    whole = pipelines.read(folder).config
    assert own.schedule == whole.schedule and own.sample.clip == whole.sample.clip == "none"
    assert own.sample.solver == whole.sample.solver == "plms"
    shutil.rmtree(folder / "scheduler")
    with rejects(FileNotFoundError, f"{folder}/unet has no scheduler_config.json", "put there"):
        pipelines.read(folder / "unet")


def test_stable_diffusion_is_not_clipped_and_its_steps_are_offset(tmp_path):
    """As its pipelines of diffusers do with schedulers of older files; those of XL do not."""
    cases = (("sd", "none", 1), ("inpaint", "static_x0", 1), ("xl", "static_x0", 0))
    for name, clip, offset in cases:
        folder = published.write(tmp_path / name, name)
        file = folder / "scheduler" / "scheduler_config.json"
        file.write_text(json.dumps({"_class_name": "DDIMScheduler", "prediction_type": "sample"}))
        found = pipelines.read(folder)
        assert found.config.sample.clip == clip
        assert found.config.sample.stride_options.get("offset", 0) == offset
        pipelines.write(tmp_path / f"{name} again", found)
        again = pipelines.read(tmp_path / f"{name} again")
        assert again.config.sample == found.config.sample


def test_sizes_that_are_not_square(tmp_path):
    folder = published.write(tmp_path / "model", "sd")
    change(folder / UNET, sample_size=[8, 12])
    pipeline = pipelines.read(folder)
    assert tuple(pipeline.config.data.image_shape) == (16, 24, 3)
    pipelines.write(tmp_path / "again", pipeline)
    assert json.loads((tmp_path / "again" / UNET).read_text())["sample_size"] == [8, 12]
    assert tuple(pipelines.read(tmp_path / "again").config.data.image_shape) == (16, 24, 3)


# --- what is refused ------------------------------------------------------------------------------


def change(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


UNET, VAE, CLIP = "unet/config.json", "vae/config.json", "text_encoder/config.json"


@pytest.mark.parametrize(
    "place, changes, message",
    [
        (UNET, {"mid_block_type": "UNetMidBlock2D"}, "only 'UNetMidBlock2DCrossAttn'"),
        (UNET, {"mid_block_type": None}, "mid_block_type=None is not supported"),
        (UNET, {"layers_per_block": [1, 2]}, "one number for all levels"),
        (UNET, {"reverse_transformer_layers_per_block": [[1]]}, "reverse_transformer.* only None"),
        (UNET, {"transformer_layers_per_block": [[1], 1]}, "a list of 2 numbers, one per level"),
        (UNET, {"class_embed_type": "timestep"}, "class_embed_type='timestep' is not supported"),
        (UNET, {"encoder_hid_dim": 8}, "encoder_hid_dim=8 is not supported"),
        (UNET, {"addition_embed_type": "image"}, "addition_embed_type='image' .* only None, text_"),
        (UNET, {"only_cross_attention": True}, "only_cross_attention=True is not supported"),
        (UNET, {"down_block_types": ["DownBlock2D"] * 2}, "attention at the same ones down and up"),
        (UNET, {"up_block_types": ["UpBlock2D", "SkipUpBlock2D"]}, "block SkipUpBlock2D is not"),
        (UNET, {"sparkle": 3}, "option 'sparkle' is not known"),
        (UNET, {"cross_attention_dim": 40}, "should be .*40"),
        (UNET, {"time_embedding_dim": 99}, "time_embedding_dim=99 is not supported, only 128"),
        (UNET, {"block_out_channels": [32, 32]}, "does not fit its own config|lacks|no place"),
        (UNET, {"sample_size": [8, 8, 8]}, "sample_size=.8, 8, 8. is not supported, only one numb"),
        (VAE, {"latents_mean": [0.1] * 4}, "latents_mean=.* is not supported"),
        (VAE, {"scaling_factor": 0}, "config.codec.scale must be positive, got 0"),
        ("model_index.json", {"unet": "UNet"}, "unet must be a library and a class, got 'UNet'"),
        (VAE, {"act_fn": "relu"}, "act_fn='relu' is not supported, only 'silu'"),
        (VAE, {"use_post_quant_conv": False}, "use_post_quant_conv=False is not supported"),
        (VAE, {"_class_name": "AsymmetricAutoencoderKL"}, None),
        (CLIP, {"hidden_act": "relu"}, "hidden_act='relu' .* quick_gelu, gelu"),
        (CLIP, {"num_hidden_layers": 3}, "lacks .*layers.2"),
        (CLIP, {"num_hidden_layers": 1}, "holds .*layers.1.* no place"),
        (CLIP, {"eos_token_id": 5}, "texts end with .* take the tokenizer that it was trained"),
        ("model_index.json", {"vae": ["diffusers", "AutoencoderDC"]}, "vae='AutoencoderDC' is not"),
        ("model_index.json", {"tokenizer": [None, None]}, "has no tokenizer, which is needed"),
        ("model_index.json", {"_class_name": "FluxPipeline"}, "unknown class of .*'FluxPipeline'"),
        ("model_index.json", {"controlnet": ["a", "B"]}, "option 'controlnet' is not known"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "x"}, "beta_schedule='x'"),
    ],
)
def test_folders_that_are_refused(tmp_path, place, changes, message):
    folder = published.write(tmp_path / "model", "sd")
    change(folder / place, **changes)
    if message is None:  # the index decides
        pipelines.read(folder)
        return
    with pytest.raises(ValueError, match=message):
        pipelines.read(folder)


def test_damaged_and_odd_json_files_are_named(tmp_path):
    folder = published.write(tmp_path / "model", "sd")
    sound = {path: path.read_bytes() for path in folder.rglob("*.json")}
    assert len(sound) > 6
    for path, content in sound.items():
        for bad, message in (
            (b"", "is damaged (Expecting value"),
            (b"[]", "must hold names and values, got '[]'"),
            (b'{"a": "\xe9"}', "is no text in UTF-8"),
        ):
            path.write_bytes(bad)
            with rejects(ValueError, f"{path} {message}"):
                pipelines.read(folder)
        path.write_bytes(content)
    merges = folder / "tokenizer" / "merges.txt"
    merges.write_text("a b\nc\n")
    with rejects(ValueError, f"merges in {folder}/tokenizer must be pairs of tokens, got ('c',)"):
        pipelines.read(folder)


@pytest.mark.parametrize(
    "place, changes, message",
    [
        (UNET, {"block_out_channels": 3}, "option in its .json files has a value that cannot be"),
        (UNET, {"sample_size": 10**9}, r"image_shape must be in \[1, 65536\]"),
        (UNET, {"sample_size": -1}, r"image_shape must be in \[1, 65536\]"),
        (UNET, {"cross_attention_dim": 10**9}, "context_dim must be in"),
        (UNET, {"transformer_layers_per_block": 10**9}, "depths must be in"),
        (VAE, {"latent_channels": 10**9}, "latent_channels must be in"),
        (VAE, {"layers_per_block": -1}, "num_blocks must be in"),
        (CLIP, {"num_hidden_layers": 10**9}, "layers must be in"),
        (CLIP, {"hidden_size": []}, "must be a whole number, got ..$"),
        ("scheduler/scheduler_config.json", {"beta_start": "x"}, "must be a number, got .x."),
    ],
)
def test_values_that_cannot_be(tmp_path, place, changes, message):
    folder = published.write(tmp_path / "model", "sd")
    change(folder / place, **changes)
    with pytest.raises(ValueError, match=f"^{folder}.*{message}"):
        pipelines.read(folder)


def test_the_refiner_is_refused(tmp_path):
    folder = published.write(tmp_path / "model", "xl")
    change(folder / "model_index.json", requires_aesthetics_score=True)
    with pytest.raises(ValueError, match="requires_aesthetics_score=True is not supported"):
        pipelines.read(folder)


def test_other_embeddings_of_sizes_are_refused(tmp_path):
    """diffusers embeds the sizes of XL as it embeds the time."""
    folder = published.write(tmp_path / "model", "xl")
    change(folder / UNET, flip_sin_to_cos=False, freq_shift=1)
    with rejects(ValueError, "with addition_embed_type='text_time'", "0 and true, got 1 and False"):
        pipelines.read(folder)


def test_components_that_are_missing(tmp_path):
    folder = published.write(tmp_path / "model", "sd")
    (folder / "tokenizer" / "vocab.json").unlink()
    with pytest.raises(FileNotFoundError, match="needs vocab.json and merges.txt"):
        pipelines.read(folder)
    (folder / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="scheduler_config.json is missing; fetch"):
        pipelines.read(folder)
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    (folder / "vae" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="vae/config.json is missing; fetch"):
        pipelines.read(folder)


def test_what_diffusers_does_not_have(folder, tmp_path):
    pipeline = pipelines.read(folder)
    for changes, message in (
        ({"time_embedding": "adm"}, "no network with time_embedding='adm', only 'dit'"),
        ({"scalars": ("interval",)}, "no network with scalars="),
    ):
        config = pipeline.config.copy_and_resolve_references()
        with config.unlocked():
            config.model.update(changes)
        with pytest.raises(ValueError, match=message):
            pipelines.write(tmp_path / "new", pipeline._replace(config=config))
    assert list(tmp_path.iterdir()) == [folder]


EULER = dict(_class_name="EulerDiscreteScheduler")
TRAILING = EULER | dict(timestep_spacing="trailing")


@pytest.mark.parametrize(
    "name, scheduler, told, scale, steps",
    [
        ("StableDiffusionPipeline", TRAILING, False, 1.0, 4),  # SD-Turbo
        (
            "StableDiffusionXLPipeline",  # SDXL-Turbo
            TRAILING | dict(_class_name="EulerAncestralDiscreteScheduler"), False, 1.0, 4,
        ),
        ("StableDiffusionXLImg2ImgPipeline", TRAILING, False, 1.0, 4),
        ("StableDiffusionXLPipeline", dict(_class_name="TCDScheduler"), False, 1.0, 4),
        ("StableDiffusionPipeline", dict(_class_name="LCMScheduler"), False, 1.0, 4),  # LCM-LoRA
        ("StableDiffusionXLPipeline", dict(_class_name="LCMScheduler"), True, 5.0, None),
        ("LatentConsistencyModelPipeline", dict(_class_name="LCMScheduler"), True, 8.5, None),
        ("StableDiffusionXLPipeline", EULER | dict(timestep_spacing="leading"), False, 5.0, None),
        ("StableDiffusionPipeline", EULER, False, 7.5, None),
        ("StableDiffusionPipeline", TRAILING | {"rescale_betas_zero_snr": True}, False, 7.5, None),
        (
            "StableDiffusionPipeline",
            TRAILING | dict(_class_name="DPMSolverMultistepScheduler"), False, 7.5, None,
        ),
        ("DiTPipeline", TRAILING, False, 4.0, None),
    ],
)  # fmt: skip
def test_distilled_networks_are_drawn_without_guidance(name, scheduler, told, scale, steps):
    found = unasked(name, scheduler, told)
    assert (found["guidance_scale"], found.get("steps")) == (scale, steps)


def test_a_turbo_folder_draws_without_guidance_and_is_written_back(tmp_path):
    run = whole_pipelines.RUNS["sd1 ancestral, turbo"]
    scheduler = dict(_class_name=run.scheduler, **run.options)
    folder = whole_pipelines.write(tmp_path / "turbo", run, scheduler)
    model = checkpoints.load(folder)
    assert model.recipe.guidance_scale == 1 and model.recipe.steps == 4
    pipelines.write(tmp_path / "again", pipelines.read(folder))
    written = tmp_path / "again" / "scheduler" / "scheduler_config.json"
    assert json.loads(written.read_text()) == scheduler
    assert checkpoints.load(tmp_path / "again").recipe == model.recipe


def test_a_new_schedule_is_written_as_one_of_ddim(folder, tmp_path):
    pipeline = pipelines.read(folder)
    with pipeline.config.unlocked():
        pipeline.config.prediction.name = "v"
    pipelines.write(tmp_path / "new", pipeline)
    file = tmp_path / "new" / "scheduler" / "scheduler_config.json"
    assert json.loads(file.read_text())["prediction_type"] == "v_prediction"


def test_networks_of_texts_that_diffusers_does_not_have(tmp_path):
    config = get("emoji")
    pipeline = pipelines.Pipeline(config, {}, {}, ({},))
    with rejects(ValueError, "diffusers has no text encoder like Tokens", "one .safetensors file"):
        pipelines.write(tmp_path / "folder", pipeline)
    options = dict(text_length=4, context_dim=8, time_embedding="dit")
    with rejects(ValueError, "text_length"):
        KINDS["DiTTransformer2DModel"].options(DiT(**options))
    assert not list(tmp_path.iterdir())
