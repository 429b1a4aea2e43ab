"""Original single files: the same parameters and networks as of the folders that hold them."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from ddim_jax import checkpoints
from ddim_jax.checkpoints import original_names, parts, pipelines, single_file, tensor_names
from ddim_jax.checkpoints.tensors import to_theirs
from ddim_jax.networks import DiT
from ddim_jax.networks.transformer import positions
from tests import published_pipelines as published
from tests.errors import rejects
from tests.published_pipelines import recorded
from tests.selection import slow_but
from tests.tokenizer_texts import layout

CLIP = dict(num_attention_heads=1)
CHANGES = {
    "sd15": {"unet": dict(attention_head_dim=8), "text_encoder": CLIP},
    "sd21": {
        "unet": dict(attention_head_dim=[1, 1], use_linear_projection=True),
        "text_encoder": CLIP | dict(hidden_act="gelu"),
        "scheduler": dict(prediction_type="v_prediction"),
    },
    "sdxl": {
        "unet": dict(attention_head_dim=[1, 1]),
        "vae": dict(scaling_factor=0.13025),
        "text_encoder": CLIP,
        "text_encoder_2": CLIP,
    },
}
"""Of the tiny folders, so that heads are as many as tensors of published networks say."""


def make_folder(path, family):
    """A folder of a family."""
    case = recorded("xl" if family == "sdxl" else "sd")
    for place, changes in CHANGES[family].items():
        file = "scheduler_config.json" if place == "scheduler" else "config.json"
        case["files"][f"{place}/{file}"] |= changes
    return published.write(path, "", case=case)


def load(folder):
    (file,) = folder.glob("*.safetensors")
    return safetensors.numpy.load_file(file)


def fused(tensors, layers):
    """OpenCLIP's names and layout of a CLIPTextModel's tensors."""
    tensors = {key.removeprefix("text_model."): value for key, value in tensors.items()}
    found = {"token_embedding.weight": tensors["embeddings.token_embedding.weight"]}
    found["positional_embedding"] = tensors["embeddings.position_embedding.weight"]
    for i in range(layers):
        theirs, ours = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
        for part in ("weight", "bias"):
            qkv = [tensors[f"{theirs}.self_attn.{x}_proj.{part}"] for x in "qkv"]
            found[f"{ours}.attn.in_proj_{part}"] = np.concatenate(qkv)
            for new, old in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
            ):
                found[f"{ours}.{new}.{part}"] = tensors[f"{theirs}.{old}.{part}"]
    for part in ("weight", "bias"):
        found[f"ln_final.{part}"] = tensors[f"final_layer_norm.{part}"]
    width = found["ln_final.bias"].size
    projection = tensors.get("text_projection.weight", np.ones((width, width), np.float32))
    return found | {"text_projection": projection.T, "logit_scale": np.float32(4.6)}


def original(folder, family):
    """The tensors of an original file of the networks in a folder."""
    crosses = [False, True] if family == "sdxl" else [True, False]
    rename = original_names.unet(1, crosses)
    found = {f"model.diffusion_model.{rename(k)}": v for k, v in load(folder / "unet").items()}
    rename = original_names.autoencoder(2)
    for key, value in load(folder / "vae").items():
        key = rename(key)
        key = f"first_stage_model.{key}"
        found[key] = value[:, :, None, None] if "attn_1" in key and value.ndim == 2 else value
    text = load(folder / "text_encoder")
    if family == "sd21":
        text = fused(text, 2)
        last = {k.replace("blocks.1", "blocks.2"): v for k, v in text.items() if "blocks.1" in k}
        found |= {f"cond_stage_model.model.{k}": v for k, v in (text | last).items()}
        return found
    place = "cond_stage_model" if family == "sd15" else "conditioner.embedders.0"
    found |= {f"{place}.transformer.{k}": v for k, v in text.items()}
    places = f"{place}.transformer.text_model.embeddings.position_ids"
    found[places] = np.arange(published.LENGTH)[None]
    if family == "sdxl":
        second = fused(load(folder / "text_encoder_2"), 3)
        found |= {f"conditioner.embedders.1.model.{k}": v for k, v in second.items()}
    tables = "betas alphas_cumprod sqrt_recipm1_alphas_cumprod posterior_mean_coef2 logvar"
    return found | {name: np.zeros(3, np.float32) for name in tables.split()} | {
        "model_ema.decay": np.float32(1), "model_ema.diffusion_modelconv": np.zeros(3),
        "first_stage_model.loss.discriminator.main.0.weight": np.zeros(3),
    }  # fmt: skip


def write(path, tensors):
    tensors = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    safetensors.numpy.save_file(tensors, path)
    return path


@pytest.fixture(scope="module", params=slow_but(CHANGES, ("sd15", "sdxl")))
def both(request, tmp_path_factory):
    """Family, its folder, and its file."""
    place = tmp_path_factory.mktemp("original")
    folder = make_folder(place / "folder", request.param)
    file = write(place / "file.safetensors", original(folder, request.param))
    return request.param, folder, file


def test_a_file_is_its_folder(both):
    family, folder, file = both
    assert single_file.is_original(file)
    options = dict(tokenizer=folder / "tokenizer", prediction="v" if family == "sd21" else None)
    found, wanted = single_file.read(file, **options), pipelines.read(folder)
    jax.tree.map(np.testing.assert_array_equal, found[1:4], wanted[1:4])
    assert parts.networks(found.config) == parts.networks(wanted.config)
    assert found.config.prediction == wanted.config.prediction
    assert found.config.text["null"] == wanted.config.text["null"]
    size = {"sd15": 512, "sd21": 768, "sdxl": 1024}[family]
    assert tuple(found.config.data.image_shape) == (size, size, 3)
    linear = found.config.published.linear_projection
    assert linear == wanted.config.published.linear_projection
    pads = [tokenizer(["a"])[0, -1] for tokenizer in found.tokenizers]
    end, mark = wanted.tokenizers[0].end, layout(published.MERGES)["!"]
    assert pads == {"sd15": [end], "sd21": [mark], "sdxl": [end, mark]}[family]


def test_the_names_are_those_that_diffusers_converts(both):
    """Its own conversion of the file gives the tensors of the folder."""
    for module in ("torch", "diffusers"):
        pytest.importorskip(module, reason=f"needs {module} (the extra parity)")
    import torch
    from diffusers.loaders import single_file_utils as theirs

    family, folder, file = both
    whole = {k: torch.tensor(v) for k, v in safetensors.numpy.load_file(file).items()}
    for place, convert in (
        ("unet", theirs.convert_ldm_unet_checkpoint),
        ("vae", theirs.convert_ldm_vae_checkpoint),
    ):
        config = json.loads((folder / place / "config.json").read_text())
        found = convert(dict(whole), config)
        wanted = load(folder / place)
        found = {k: v for k, v in found.items() if "loss" not in k}
        assert set(found) == set(wanted)
        for key, value in wanted.items():
            np.testing.assert_array_equal(found[key].numpy(), value, err_msg=key)
    if family == "sdxl":
        found = theirs.convert_open_clip_checkpoint(
            None, {k: v for k, v in whole.items()}, prefix="conditioner.embedders.1.model."
        )
        wanted = load(folder / "text_encoder_2")
        for key, value in found.items():
            np.testing.assert_array_equal(value.numpy(), wanted[key], err_msg=key)


# --- DiT and SiT ----------------------------------------------------------------------------------


@pytest.fixture
def transformer(tmp_path):
    """The tensors of a tiny file of the authors, and a folder with an autoencoder."""
    net = DiT(width=64, depth=2, heads=1, num_classes=3, unused_channels=4)
    shapes = parts.network_shapes(net, (8, 8, 4))
    empty = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    names = to_theirs(tensor_names.dit_authors(net), empty)
    tensors = {key: published.weight(key, value.shape) for key, value in names.items()}
    tensors["pos_embed"] = positions(4, 4, 64)[None]
    folder = published.write(tmp_path / "dit", "dit")
    return net, tensors, folder


def test_transformers(transformer, tmp_path):
    net, tensors, folder = transformer
    for name, flows in (("SiT-XL-2", True), ("DiT-XL-2", False)):
        file = write(tmp_path / f"{name}.safetensors", tensors)
        pipeline = single_file.read(file, "bfloat16", autoencoder=folder)
        config = pipeline.config
        assert parts.networks(config).model == net
        assert config.prediction.name == ("data_flow" if flows else "eps")
        assert config.schedule.name == ("rectified_flow" if flows else "ddpm_linear")
        assert tuple(config.data.image_shape) == (16, 16, 3)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(pipeline.params)} == {"bfloat16"}
        with pytest.raises(ValueError, match="time_embedding='adm', only 'dit'; keep it in a .saf"):
            pipelines.write(tmp_path / "new", pipeline)
    file = write(tmp_path / "model.safetensors", tensors)
    with pytest.raises(ValueError, match="give prediction=eps for DiT or prediction=flow"):
        single_file.read(file)
    alone = single_file.read(file, prediction="flow")
    assert alone.codec_params is None and tuple(alone.config.data.image_shape) == (8, 8, 4)
    write(file, tensors | {"projectors.0.weight": np.zeros(3)})
    with pytest.raises(ValueError, match="holds projectors.0.weight, for which"):
        single_file.read(file, prediction="flow")


# --- what is refused ------------------------------------------------------------------------------


def test_files_that_are_refused(tmp_path):
    folder = make_folder(tmp_path / "folder", "sd21")
    tensors = original(folder, "sd21")
    options = dict(tokenizer=folder / "tokenizer", prediction="v")
    file = write(tmp_path / "file.safetensors", tensors)
    with pytest.raises(ValueError, match="give prediction=v or prediction=eps"):
        single_file.read(file, tokenizer=folder / "tokenizer")
    with pytest.raises(FileNotFoundError, match="holds no tokenizer, .*vocab.json and merges.txt"):
        single_file.read(file, prediction="v")
    (tmp_path / "tokenizer").mkdir()
    published.write_tokenizer(tmp_path / "tokenizer")
    base = single_file.read(file, prediction="eps")
    assert tuple(base.config.data.image_shape) == (512, 512, 3)
    with pytest.raises(ValueError, match="unknown prediction of Stable Diffusion 'flow'"):
        single_file.read(file, prediction="flow")
    norm = "model.diffusion_model.out.0.weight"
    for changed, message in (
        (tensors | {"control_model.x": np.zeros(3)}, "holds control_model.x, for which there is"),
        (tensors | {f"{norm}s": np.zeros(3)}, r"model.diffusion_model.\*: .*holds out.0.weights"),
        ({k: v for k, v in tensors.items() if k != norm}, "lacks out.0.weight"),
        ({k: v for k, v in tensors.items() if "first_stage" not in k}, "no autoencoder"),
        ({k: v for k, v in tensors.items() if "cond_stage" not in k}, "no checkpoint of Stable"),
    ):
        with pytest.raises(ValueError, match=message):
            single_file.read(write(file, changed), **options)
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        single_file.read(file, **options)
    assert not single_file.is_original(file)


def test_marks_in_a_file(tmp_path):
    """Of what a file of XL predicts, and of its schedule."""
    folder = make_folder(tmp_path / "folder", "sdxl")
    marks = {"v_pred": np.zeros(0, np.float32), "ztsnr": np.zeros(0, np.float32)}
    file = write(tmp_path / "file.safetensors", original(folder, "sdxl") | marks)
    config = single_file.read(file, tokenizer=folder / "tokenizer").config
    assert config.prediction.name == "v" and config.schedule.zero_terminal_snr
    assert config.published.scheduler._class_name == "EulerDiscreteScheduler"


def test_a_mark_of_the_schedule_is_heeded_in_a_file_of_the_first(tmp_path):
    """Whose PNDM has no such option, and so DDIM draws."""
    folder = make_folder(tmp_path / "folder", "sd15")
    marks = {"v_pred": np.zeros(0, np.float32), "ztsnr": np.zeros(0, np.float32)}
    file = write(tmp_path / "file.safetensors", original(folder, "sd15") | marks)
    config = single_file.read(file, tokenizer=folder / "tokenizer").config
    assert config.schedule.zero_terminal_snr and config.sample.solver == "ddim"
    assert config.sample.clip == "none"


def test_the_way_to_convert_is_the_one_that_works(transformer, tmp_path):
    _, tensors, _ = transformer
    file = write(tmp_path / "SiT-XL-2.safetensors", tensors)
    with rejects(ValueError, f"{file} NEW.safetensors --autoencoder=VAE_FOLDER"):
        checkpoints.load(file)
    folder = make_folder(tmp_path / "folder", "sd15")
    file = write(tmp_path / "sd.safetensors", original(folder, "sd15"))
    with rejects(ValueError, f"{file} FOLDER --tokenizer=TOKENIZER_FOLDER"):
        checkpoints.load(file)
