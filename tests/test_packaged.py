"""Files that hold only what differs from a model in the package."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import ddim_jax
from ddim_jax import checkpoints
from ddim_jax.checkpoints import packaged, tensor_files
from ddim_jax.checkpoints.__main__ import main as convert
from ddim_jax.networks.low_rank import LowRank
from tests.errors import rejects


@pytest.fixture(scope="module")
def digits():
    """The bundled digits with one parameter changed."""
    model = ddim_jax.load("digits")
    params = jax.tree.map(np.asarray, model.params)
    params["conv_out"]["bias"] = params["conv_out"]["bias"] + 0.25
    return model.replace(params=params)


def test_a_file_holds_what_differs_and_is_read_whole(digits, tmp_path):
    file = tmp_path / "changed.safetensors"
    checkpoints.save(file, digits, base="digits")
    held = tensor_files.Tensors([file])
    assert list(held) == ["conv_out/bias"]
    assert json.loads(held.metadata["base"]) == packaged.reference("digits")
    read = ddim_jax.load(file)
    assert read.fingerprint == digits.fingerprint and read.step == digits.step
    assert read.fingerprint != ddim_jax.load("digits").fingerprint


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_the_autoencoder_of_a_student_is_its_teachers(dtype, tmp_path):
    model = ddim_jax.load("emoji")
    params = jax.tree.map(lambda leaf: np.asarray(leaf) * 1.5, model.params)
    file = tmp_path / "student.safetensors"
    checkpoints.save(file, model.replace(params=params), dtype, base="emoji")
    assert not [name for name in tensor_files.Tensors([file]) if name.startswith("codec/")]
    read = ddim_jax.load(file)
    for ours, theirs in zip(*map(jax.tree.leaves, (read.params, params)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0 if dtype == "float32" else 0.02)
    for ours, theirs in zip(
        *map(jax.tree.leaves, (read.codec.params, model.codec.params)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("times", [1, 2])
def test_low_rank_changes_are_held_as_factors(times):
    base = packaged._tensors("digits")
    params, rng = ddim_jax.load("digits").params, np.random.default_rng(0)
    for rank in (3, 2)[:times]:
        low_rank = LowRank(rank, 6)
        shapes = low_rank.init(jax.random.key(0), params)
        tree = jax.tree.map(lambda leaf: np.float32(rng.normal(size=leaf.shape)), shapes)
        params = low_rank.merge(params, tree)
    merged = {name: np.asarray(value) for name, value in flatten_dict(params, sep="/").items()}
    held = packaged.less(merged, "digits")
    assert {name.rpartition(":")[2] for name in held} == {"down", "up"}
    ranks = {value.shape[-1] for name, value in held.items() if name.endswith("down")}
    assert ranks == {(3, 5)[times - 1]}
    assert sum(value.size for value in held.values()) < 0.04 * sum(v.size for v in base.values())
    read = packaged.whole(held, packaged.reference("digits"), "file")
    for name, value in merged.items():
        np.testing.assert_allclose(read[name], value, atol=1e-4, err_msg=name)


def test_a_layer_that_the_base_lacks_is_held_whole():
    """Such as of a student's further input."""
    tensors = packaged._tensors("digits") | {"more/kernel": np.ones((2, 2), np.float32)}
    assert list(packaged.less(tensors, "digits")) == ["more/kernel"]


def test_a_change_of_full_rank_is_held_whole():
    tensors = packaged._tensors("digits")
    noise = np.float32(np.random.default_rng(0).normal(size=tensors["conv_in/kernel"].shape))
    changed = tensors | {"conv_in/kernel": tensors["conv_in/kernel"] + noise}
    assert list(packaged.less(changed, "digits")) == ["conv_in/kernel"]


def test_what_is_no_change_of_the_base_is_refused():
    tensors = packaged._tensors("digits")
    few = {name: value for name, value in tensors.items() if name != "conv_in/kernel"}
    with rejects(ValueError, "no change of digits, which has conv_in/kernel beside"):
        packaged.less(few, "digits")
    with rejects(ValueError, "a base is a model in the package (digits", "got 'digit'"):
        packaged.reference("digit")
    said = packaged.reference("digits") | {"sha256": "0"}
    with rejects(ValueError, "file holds what differs from another digits", "without a base"):
        packaged.whole({}, said, "file")


def test_the_command_line(tmp_path, capsys):
    file = tmp_path / "same.safetensors"
    convert(["digits", str(file), "--base=digits"])
    assert len(tensor_files.Tensors([file])) == 0
    assert ddim_jax.load(file).fingerprint == ddim_jax.load("digits").fingerprint
    with pytest.raises(SystemExit) as stopped:
        convert(["digits", str(tmp_path / "folder"), "--base=digits"])
    assert "--base is for one .safetensors file" in str(stopped.value)


def test_a_base_that_is_none_is_refused_before_the_checkpoint_is_read(digits, tmp_path):
    message = "a base is a model in the package .digits, .*, got 'digitz'"
    with pytest.raises(SystemExit, match=message):
        convert(["no such run", str(tmp_path / "new.safetensors"), "--base=digitz"])
    with pytest.raises(ValueError, match=message):
        checkpoints.save(tmp_path / "new.safetensors", digits, base="digitz")
