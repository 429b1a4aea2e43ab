"""Networks of diffusers: read, written, refused; equal outputs where torch and diffusers are."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from configs import cifar10, digits
from ddim_jax import checkpoints, experiment, schedules
from ddim_jax.checkpoints import __main__ as export
from ddim_jax.checkpoints import diffusers, tensor_names
from tests.errors import rejects
from tests.tiny import tiny

TORCH = all(importlib.util.find_spec(name) for name in ("torch", "diffusers"))


def network(**changes):
    """A tiny network that diffusers could hold, with random parameters."""
    config = tiny(cifar10.get_config())
    with config.unlocked():
        config.data.image_shape, config.model.out_channels = (8, 8, 3), 3
        config.model.update(channels=32, dropout=0.0, attention_resolutions=(4,), num_blocks=2)
        config.model.group_channels = 1  # 32 groups everywhere
        config.model.update(changes)
    parts = experiment.build(config)
    shapes = jax.eval_shape(parts.init, jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    values = [rng.normal(size=leaf.shape).astype(np.float32) * 0.1 for leaf in leaves]
    return parts.replace(params=jax.tree.unflatten(tree, values), name="tiny", step=3)


VARIANTS = {
    "ddpm": {},
    "adm": dict(
        scale_shift=True, time_embedding="adm", norm_eps=1e-5, head_channels=8,
        down_padding="symmetric", num_classes=5, null_label=False,
    ),
    "cosines first": dict(time_embedding="dit"),
}  # fmt: skip


@pytest.fixture(params=VARIANTS)
def folder(request, tmp_path):
    model = network(**VARIANTS[request.param])
    diffusers.write(tmp_path / "written", model.config, model.params)
    return tmp_path / "written", model


def test_what_is_written_is_read_again(folder):
    path, model = folder
    back = checkpoints.load(path)
    assert back.name == "written"
    assert back.fingerprint == model.fingerprint
    assert back.sample_shape == model.sample_shape
    names = "channels channel_mults num_blocks attention_resolutions scale_shift norm_eps"
    for name in f"{names} head_channels down_padding time_embedding num_classes".split():
        assert getattr(back.network, name) == getattr(model.network, name)
    np.testing.assert_array_equal(back.schedule.level(0.5).alpha, model.schedule.level(0.5).alpha)
    with pytest.raises(FileExistsError, match="choose another name"):
        diffusers.write(path, model.config, model.params)


def test_layouts_are_those_of_torch(folder):
    """[O, I, 3, 3] and [O, I]; q, k, v are the thirds of ours."""
    path, model = folder
    theirs = safetensors.numpy.load_file(path / "unet" / diffusers.WEIGHTS)
    qkv = np.split(model.params["mid_attention"]["qkv"]["kernel"], 3, axis=1)
    for letter, kernel in zip("qkv", qkv, strict=True):
        name = f"mid_block.attentions.0.to_{letter}.weight"
        np.testing.assert_array_equal(theirs[name], kernel.T)
    kernel = model.params["conv_in"]["kernel"]
    np.testing.assert_array_equal(theirs["conv_in.weight"][5, 1, 2], kernel[2, :, 1, 5])
    skip = model.params["up_0_0"]["skip"]["kernel"]
    found = theirs["up_blocks.1.resnets.0.conv_shortcut.weight"]
    np.testing.assert_array_equal(found[..., 0, 0], skip.T)


def outputs(model):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, *model.sample_shape)).astype(np.float32)
    t = np.array([0.0, 37.0, 999.0], np.float32)
    labels = np.array([0, 2, 4], np.int32)
    cond = {"label": jnp.asarray(labels)} if model.inputs.num_classes else {}
    y = jax.jit(model.apply)(model.params, x, t, cond)
    return x, t, labels, np.asarray(y)


@pytest.mark.parametrize(
    "name, golden",
    [
        ("ddpm", [0.13820899, 0.04463043, 0.1157117]),
        ("adm", [0.15960878, -0.05533264, 0.20622146]),
    ],
)
def test_outputs_are_those_that_diffusers_gave(name, golden):
    """One pixel of diffusers 0.42.1 with torch 2.13.0, for the same parameters."""
    *_, y = outputs(network(**VARIANTS[name]))
    np.testing.assert_allclose(y[1, 2, 3], golden, atol=2e-5)


@pytest.mark.skipif(not TORCH, reason="needs torch and diffusers (the extra parity)")
def test_outputs_are_those_of_diffusers(folder):
    import torch
    from diffusers import UNet2DModel

    path, model = folder
    theirs = UNet2DModel.from_pretrained(path / "unet").eval()
    x, t, labels, ours = outputs(checkpoints.load(path))
    given = {"class_labels": torch.tensor(labels)} if model.inputs.num_classes else {}
    with torch.no_grad():
        y = theirs(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(t), **given).sample
    y = y.permute(0, 2, 3, 1).numpy()
    assert np.abs(y).mean() > 0.1
    np.testing.assert_allclose(ours, y, atol=1e-4 * np.abs(y).max())


@pytest.mark.skipif(not TORCH, reason="needs torch and diffusers (the extra parity)")
def test_what_diffusers_saves_is_read(tmp_path):
    """The layout of the DDPM checkpoints, as `save_pretrained` leaves it."""
    import torch
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), attention_head_dim=None,
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), downsample_padding=0, freq_shift=1,
        flip_sin_to_cos=False, norm_eps=1e-6,
    )  # fmt: skip
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    DDPMPipeline(net, scheduler).save_pretrained(tmp_path / "saved")
    model = checkpoints.load(tmp_path / "saved")
    assert model.schedule.name == "ddpm_cosine"
    x, t, _, ours = outputs(model)
    with torch.no_grad():
        y = net.eval()(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(t)).sample
    np.testing.assert_allclose(ours, y.permute(0, 2, 3, 1).numpy(), atol=1e-4)


def spoil(path, **changes):
    file = path / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, "block SkipDownBlock2D is not"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type='fourier' is not supported"),
        (
            {"norm_num_groups": 5, "attn_norm_num_groups": 5},
            "norm_num_groups=5 with block_out_channels",
        ),
        ({"sample_size": None}, "needs one whole number as its sample_size, got None"),
        ({"in_channels": 6}, "in_channels=6 is not supported, only 3, which are its out_channels"),
        ({"freq_shift": 3}, "freq_shift and flip_sin_to_cos must be 1 and false"),
        (
            {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": None},
            "attn_norm_num_groups=None with resnet_time_scale_shift='scale_shift' is not supported",
        ),
        ({"layers_per_block": 3}, "lacks down_blocks.0.resnets.2."),
        ({"layers_per_block": 1}, "holds .*, for which the network has no place"),
    ],
)
def test_networks_that_we_do_not_have(tmp_path, changes, message):
    model = network()
    diffusers.write(tmp_path / "net", model.config, model.params)
    spoil(tmp_path / "net", **changes)
    with pytest.raises(ValueError, match=message):
        checkpoints.load(tmp_path / "net")


def test_folders_without_weights_or_with_another_schedule(tmp_path):
    model = network()
    diffusers.write(tmp_path / "net", model.config, model.params)
    scheduler = tmp_path / "net" / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({"beta_schedule": "sigmoid"}))
    with pytest.raises(ValueError, match="beta_schedule='sigmoid'.* is not supported, only linear"):
        checkpoints.load(tmp_path / "net")
    scheduler.write_text(json.dumps({"rescale_betas_zero_snr": True}))
    with pytest.raises(ValueError, match="prediction 'eps' says nothing about x0 where alpha = 0"):
        checkpoints.load(tmp_path / "net")
    zero = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    scheduler.write_text(json.dumps(zero))
    assert checkpoints.load(tmp_path / "net").schedule.level(1.0).alpha == 0
    scheduler.write_text(json.dumps({"clip_sample": False}))
    assert checkpoints.load(tmp_path / "net").config.sample.clip == "none"
    (tmp_path / "net" / "unet" / diffusers.WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match="safe_serialization=True"):
        checkpoints.load(tmp_path / "net")


@pytest.mark.parametrize("name", ["LDMPipeline", "LDMSuperResolutionPipeline", None])
def test_pipelines_of_latents_are_no_pixels(tmp_path, name):
    """Nor is their network alone."""
    model = network()
    diffusers.write(tmp_path / "net", model.config, model.params)
    (tmp_path / "net" / "model_index.json").write_text(json.dumps({"_class_name": name}))
    for place in ("net", "net/unet"):
        with rejects(ValueError, f"net/model_index.json is of a {name}", "DDPMPipeline, DDIMPi"):
            checkpoints.load(tmp_path / place)


def test_a_pipeline_has_a_scheduler(tmp_path):
    """Also when its network is read alone; a network that is in no pipeline may lack it."""
    model = network()
    diffusers.write(tmp_path / "net", model.config, model.params)
    scheduler = tmp_path / "net" / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({"clip_sample": False, "beta_end": 0.01}))
    index = tmp_path / "net" / "model_index.json"
    index.write_text(json.dumps({"_class_name": "DDPMPipeline"}))
    for place in ("net", "net/unet"):
        config = checkpoints.load(tmp_path / place).config
        assert config.sample.clip == "none" and config.schedule.beta_end == 0.01
    (tmp_path / "scheduler").mkdir()
    scheduler.rename(tmp_path / "scheduler" / "scheduler_config.json")  # of another folder
    for place in ("net", "net/unet"):
        with rejects(FileNotFoundError, "net/scheduler/scheduler_config.json is missing; fetch"):
            checkpoints.load(tmp_path / place)
    index.unlink()
    assert checkpoints.load(tmp_path / "net").config.sample.clip == "static_x0"


def test_networks_of_pixels_are_float32_wherever_they_are_read_from(tmp_path):
    model = network()
    diffusers.write(tmp_path / "net", model.config, model.params)
    (tmp_path / "net" / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))
    export.main([str(tmp_path / "net"), str(tmp_path / "net.safetensors")])
    for name in ("net", "net.safetensors"):
        found = checkpoints.load(tmp_path / name, accelerated=True)
        assert found.network.dtype == "float32" and found.fingerprint == model.fingerprint


def test_zero_terminal_snr_is_read_and_written(tmp_path):
    model = network()
    model.config.prediction.name = "v"
    with model.config.unlocked():
        model.config.schedule = dict(name="ddpm_scaled_linear", zero_terminal_snr=True)
    diffusers.write(tmp_path / "net", model.config, model.params)
    scheduler = json.loads((tmp_path / "net/scheduler/scheduler_config.json").read_text())
    assert scheduler["rescale_betas_zero_snr"] is True
    schedule = checkpoints.load(tmp_path / "net").schedule
    wanted = schedules.zero_terminal_snr(schedules.ddpm_scaled_linear())
    t = np.linspace(0, 1, 11)
    np.testing.assert_array_equal(schedule.level(t), wanted.level(t))


def test_old_names_of_attention(tmp_path):
    model = network()
    diffusers.write(tmp_path / "net", model.config, model.params)
    file = tmp_path / "net" / "unet" / diffusers.WEIGHTS
    old = {new: name for name, new in tensor_names.OLD_NAMES.items()}
    tensors = {}
    for name, value in safetensors.numpy.load_file(file).items():
        for new in old if "attentions" in name else ():
            name = name.replace(new, old[new])
        tensors[name] = value
    assert any("proj_attn" in name for name in tensors)
    safetensors.numpy.save_file(tensors, file)
    back = checkpoints.load(tmp_path / "net")
    assert back.fingerprint == model.fingerprint


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"patch_size": 2, "attention_resolutions": ()}, "no network with patch_size=2"),
        ({"resample_blocks": True}, "no network with resample_blocks=True"),
        ({"num_heads": 2}, "no network with num_heads=2"),
        ({"num_classes": 3}, "no network with null_label=True"),
        ({"group_channels": 4}, "one number of norm groups, this network 8 to 32"),
    ],
)
def test_networks_that_diffusers_does_not_have(tmp_path, changes, message):
    model = network(**changes)
    with pytest.raises(ValueError, match=message):
        diffusers.write(tmp_path / "net", model.config, model.params)
    assert not (tmp_path / "net").exists()


def test_schedules_that_diffusers_does_not_have(tmp_path):
    model = network()
    model.config.schedule = dict(name="ddpm_cosine", max_beta=0.5)
    with pytest.raises(ValueError, match="no max_beta of schedule 'ddpm_cosine'"):
        diffusers.write(tmp_path / "net", model.config, model.params)
    model.config.schedule = digits.get_config().schedule
    with pytest.raises(ValueError, match="no schedule 'cosine' with prediction 'eps'"):
        diffusers.write(tmp_path / "net", model.config, model.params)


def test_a_folder_with_one_group_is_read_again(tmp_path):
    model = network(channels=8, group_channels=32, attention_resolutions=())
    diffusers.write(tmp_path / "net", model.config, model.params)
    assert checkpoints.load(tmp_path / "net").fingerprint == model.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channel_mults": (2, 1)}, "first level has 64 channels of 32, only with channel_mults"),
        ({"time_scale": 2.0}, "no network with time_scale=2.0"),
    ],
)
def test_what_would_be_read_as_another_network_is_not_written(tmp_path, changes, message):
    model = network(**changes)
    with pytest.raises(ValueError, match=message):
        diffusers.write(tmp_path / "net", model.config, model.params)
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize(
    ("part", "wrong", "message"),
    [
        ("_their_model", {"act_fn": "gelu"}, "act_fn='gelu' is not supported"),
        ("_their_model", {"norm_num_groups": 3}, "norm_num_groups=3"),
        ("_their_model", {"norm_eps": 0.5}, "read this network with norm_eps=0.5, it has 1e-06"),
        ("their_scheduler", {"beta_schedule": "laplace"}, "beta_schedule='laplace'"),
        ("their_scheduler", {"beta_end": 0.5}, "diffusers would read another schedule than"),
        ("their_scheduler", {"num_train_timesteps": 7}, "diffusers would read another schedule"),
    ],
)
def test_what_our_reader_refuses_is_not_written(tmp_path, monkeypatch, part, wrong, message):
    """Whatever comes to be written: the reader is asked first."""
    model, write = network(), getattr(diffusers, part)
    monkeypatch.setattr(diffusers, part, lambda config: write(config) | wrong)
    with pytest.raises(ValueError, match=message):
        diffusers.write(tmp_path / "net", model.config, model.params)
    assert not (tmp_path / "net").exists()


def test_widths_come_back_whole():
    for first in range(4, 65, 2):
        for width in range(4, 1025, 4):
            assert int(first * diffusers._multiple(width, first)) == width
