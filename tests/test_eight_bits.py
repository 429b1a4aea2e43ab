"""Weights in 8 bits: how near, what stays float16, and a bundled network that draws the same."""

import numpy as np
import pytest

import ddim_jax
from ddim_jax import checkpoints
from ddim_jax.checkpoints import eight_bits, tensor_files
from ddim_jax.checkpoints.__main__ import main as convert
from tests.errors import rejects


def test_a_kernel_is_kept_to_half_a_unit_of_each_output():
    draw = np.random.default_rng(0).normal
    scale = np.exp(draw(size=(3, 1, 40)))
    kernel, few = (draw(size=(3, 64, 40)) * scale, draw(size=(3, 3, 3, 8)))
    kernel[0, :, 0] = 0
    tensors = {"kernel": kernel, "few": few, "bias": draw(size=7)}
    packed = eight_bits.pack(tensors)
    assert {name: value.dtype.name for name, value in packed.items()} == {
        "kernel": "int8", "kernel:largest": "float16", "few": "float16", "bias": "float16",
    }  # fmt: skip
    found = eight_bits.unpack(packed)
    assert set(found) == set(tensors) and found["kernel"].dtype == np.float32
    half_a_unit = np.abs(kernel).max(axis=1, keepdims=True) / 127 / 2
    assert np.all(np.abs(found["kernel"] - kernel) <= half_a_unit * 1.07)  # units are float16
    assert np.all(found["kernel"][0, :, 0] == 0)
    error = np.sqrt(np.mean(((found["kernel"] - kernel) / scale) ** 2))
    assert 0.002 < error < 0.008  # a uniform one of a unit: 2.5 / 127 / 12^0.5
    del packed["kernel:largest"]
    with rejects(ValueError, "the file lacks kernel:largest, the unit of kernel"):
        eight_bits.unpack(packed)


def test_small_numbers_and_stacked_biases_keep_their_size():
    small = np.full((16, 2), 3e-5)
    packed = eight_bits.pack({"blocks/bias": np.ones((24, 4)), "kernel": small, "null": 0 * small})
    assert packed["blocks/bias"].dtype == np.float16
    found = eight_bits.unpack(packed)
    np.testing.assert_allclose(found["kernel"], small, rtol=2e-3)
    np.testing.assert_array_equal(found["null"], 0)


def test_numbers_that_float16_does_not_hold_are_refused():
    with rejects(ValueError, "kernel holds numbers that are not finite in float16"):
        eight_bits.pack({"kernel": np.full((32, 2), 1e6)})


def test_a_file_in_8_bits_draws_nearly_the_same(tmp_path, capsys):
    file, half = tmp_path / "digits.safetensors", tmp_path / "half.safetensors"
    convert(["digits", str(file), "--dtype=int8"])
    convert(["digits", str(half), "--dtype=float16"])
    assert file.stat().st_size < 0.56 * half.stat().st_size
    assert tensor_files.Tensors([file]).metadata["format"] == "ddim_jax 1 int8"
    model, whole = ddim_jax.load(file), ddim_jax.load("digits")
    assert model.step == whole.step and model.fingerprint != whole.fingerprint
    few = dict(label=[3, 1, 4, 8], solver="ddim", steps=4, guidance_scale=1.0)
    pictures = [one.draw(**few).astype(float) for one in (model, whole)]
    error = np.sqrt(np.mean((pictures[0] - pictures[1]) ** 2))
    assert 0 < error < 6  # of 255
    again = tmp_path / "again.safetensors"
    checkpoints.save(again, model, "int8")  # nothing is lost twice
    for name, value in tensor_files.Tensors([again]).items():
        np.testing.assert_array_equal(value, tensor_files.Tensors([file])[name], name)


@pytest.mark.parametrize("flags", [["folder"], ["style.safetensors", "--lora"]])
def test_other_files_are_not_written_in_8_bits(flags, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        convert(["digits", str(tmp_path / flags[0]), *flags[1:], "--dtype=int8"])
    assert "--dtype=int8 is for one .safetensors file that ddim_jax reads" in str(stopped.value)
    assert not list(tmp_path.iterdir())
