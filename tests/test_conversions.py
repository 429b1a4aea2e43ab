"""Every checkpoint to one file or a folder, by the command; folders of the hub."""

import json
import sys
import types

import jax
import ml_collections
import numpy as np
import pytest
import safetensors.numpy
from absl.testing import flagsaver

from ddim_jax import checkpoints
from ddim_jax.checkpoints import __main__ as export
from ddim_jax.checkpoints import hub, pipelines, weights_file, workdir
from ddim_jax.commands import sample
from ddim_jax.networks.low_rank import LowRank
from ddim_jax.training import around, teacher
from tests import published_pipelines as published
from tests.test_single_file import make_folder, original, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A published pipeline with two text encoders."""
    return published.write(tmp_path_factory.mktemp("published") / "model", "xl")


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a[1:4], b[1:4])
    configs = [json.loads(one.config.to_json()) for one in (a, b)]
    for config in configs:
        config.pop("version", None)  # of files
    assert configs[0] == configs[1]
    assert [one.options() for one in a.tokenizers] == [one.options() for one in b.tokenizers]


def test_a_folder_to_a_file_and_back(folder, tmp_path, capsys):
    file, back = tmp_path / "model.safetensors", tmp_path / "model"
    export.main([str(folder), str(file)])
    assert f"{file}: {file.stat().st_size / 1e6:.2f} MB" in capsys.readouterr().out
    whole = pipelines.read(folder)
    found, step = weights_file.read_pipeline(file)
    assert step == 0
    same(found, whole)
    export.main([str(file), str(back)])
    assert "as diffusers reads it" in capsys.readouterr().out
    same(pipelines.read(back), whole)
    with pytest.raises(SystemExit, match="checkpoints: the file .* exists; choose another name"):
        export.main([str(folder), str(file)])


def test_other_dtypes(folder, tmp_path):
    for out in ("half.safetensors", "half"):
        export.main([str(folder), str(tmp_path / out), "--dtype=bfloat16"])
    half, _ = weights_file.read_pipeline(tmp_path / "half.safetensors")
    again = pipelines.read(tmp_path / "half")
    jax.tree.map(np.testing.assert_array_equal, half[1:4], again[1:4])
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(half[1:4])} == {"bfloat16"}
    full, _ = weights_file.read_pipeline(tmp_path / "half.safetensors", "float32")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(full[1:4])} == {"float32"}


def test_an_original_file_to_a_folder(tmp_path):
    source = make_folder(tmp_path / "source", "sd21")
    file = write(tmp_path / "v2.safetensors", original(source, "sd21"))
    with pytest.raises(SystemExit, match="holds no tokenizer, .* give --tokenizer=FOLDER"):
        export.main([str(file), str(tmp_path / "out"), "--prediction=v"])
    options = [f"--tokenizer={source / 'tokenizer'}"]
    with pytest.raises(SystemExit, match="give --prediction=v or --prediction=eps"):
        export.main([str(file), str(tmp_path / "out"), *options])
    export.main([str(file), str(tmp_path / "out"), *options, "--prediction=v"])
    back, wanted = pipelines.read(tmp_path / "out"), pipelines.read(source)
    jax.tree.map(np.testing.assert_array_equal, back[1:4], wanted[1:4])
    assert back.config.prediction.name == "v"
    with pytest.raises(SystemExit, match="--tokenizer is for original single files, and .* none"):
        export.main([str(source), str(tmp_path / "new"), *options])


def test_files_of_pipelines_that_do_not_fit(folder, tmp_path):
    file = tmp_path / "model.safetensors"
    pipeline = pipelines.read(folder)
    lacks = pipeline.codec_params | {"quant_in": {"kernel": np.zeros((4, 4), np.float32)}}
    weights_file.save_pipeline(file, pipeline._replace(codec_params=lacks))
    with pytest.raises(ValueError, match=r"codec/quant_in/bias should be \(4,\), is absent"):
        weights_file.read_pipeline(file)
    safetensors.numpy.save_file({"x": np.zeros(3)}, file)
    with pytest.raises(ValueError, match="was not written by ddim_jax"):
        weights_file.read_pipeline(file)


# --- the hub --------------------------------------------------------------------------------------


def repository(folder, asked):
    """A huggingface_hub that has one repository, on this disk."""
    module = types.ModuleType("huggingface_hub")

    def paths(name, revision=None):
        if name != "org/model":
            raise RuntimeError("404 Client Error.\nRepository Not Found")
        return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]

    def snapshot(name, allow_patterns, revision=None):
        asked.append((revision, sorted(allow_patterns)))
        return str(folder)

    module.list_repo_files, module.snapshot_download = paths, snapshot
    module.hf_hub_download = lambda name, path, revision=None: str(folder / path)
    return module


def test_folders_of_the_hub(tmp_path, monkeypatch):
    folder, asked = tmp_path / "model", []
    shards = {"a": "diffusion_pytorch_model-1.safetensors"}
    for path in (
        "model_index.json", "v1-5.safetensors", "v1-5.ckpt", "unet/config.json",
        "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model-1.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors", "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors", "tokenizer/vocab.json",
        "tokenizer/merges.txt", "safety_checker/model.safetensors", "text_encoder/model.onnx",
        "text_encoder/model.safetensors",
    ):  # fmt: skip
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    (folder / index).write_text(json.dumps({"weight_map": shards}))
    monkeypatch.setitem(sys.modules, "huggingface_hub", repository(folder, asked))
    assert hub.folder("hf:org/model") == folder
    texts = "model_index.json tokenizer/merges.txt tokenizer/vocab.json unet/config.json"
    common = [*texts.split(), "text_encoder/model.safetensors", "vae/config.json"]
    common.append("vae/diffusion_pytorch_model.fp16.safetensors")
    full = [index, "unet/diffusion_pytorch_model-1.safetensors"]
    assert asked == [(None, sorted(common + full))]
    hub.folder("hf:org/model@v2", "float16")
    half = ["unet/diffusion_pytorch_model.fp16.safetensors"]
    assert asked[1] == ("v2", sorted(common + half))
    message = r"hf:org/other could not be fetched \(RuntimeError: 404 Client Error.\); check"
    with pytest.raises(FileNotFoundError, match=message):
        hub.folder("hf:org/other")
    with pytest.raises(ValueError, match="a checkpoint of the hub is hf:ORG/NAME, got 'hf:model'"):
        hub.folder("hf:model")


def test_what_the_cache_has_of_the_hub_is_read_without_it(tmp_path, monkeypatch):
    module = types.ModuleType("huggingface_hub")

    def offline(name, revision=None):
        raise ConnectionError("no network")

    def snapshot(name, revision, local_files_only):
        if not local_files_only or name != "org/model":
            raise FileNotFoundError("nothing is cached")
        return str(tmp_path / (revision or "main"))

    module.list_repo_files, module.snapshot_download = offline, snapshot
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    assert hub.folder("hf:org/model") == tmp_path / "main"
    assert hub.folder("hf:org/model@v2") == tmp_path / "v2"
    with pytest.raises(FileNotFoundError, match=r"fetched \(ConnectionError: no network\)"):
        hub.folder("hf:org/other")


def test_an_autoencoder_of_the_hub(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", repository(folder, []))
    one, other = (checkpoints.load_codec(name, (16, 16)) for name in ("hf:org/model", folder))
    assert one.sample_shape == other.sample_shape
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


@pytest.mark.parametrize("dtype", ["float16", "fp16", np.float16, np.int8])
def test_a_dtype_that_is_none_is_refused_before_anything_is_fetched(dtype):
    with pytest.raises(ValueError, match="dtype must be float32 or bfloat16, got '(fp|float|int)"):
        checkpoints.load("hf:no/such", dtype=dtype)


@pytest.mark.parametrize("accelerated", [True, False, None])
def test_the_default_dtype_is_that_of_the_devices(folder, monkeypatch, accelerated):
    """Of published pipelines, wherever they are read from; the bundled network is in float32."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", repository(folder, []))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu" if accelerated is None else "cpu")
    for name in (folder, "hf:org/model", "shapes:dit-xl-2"):
        model = checkpoints.load(name, accelerated=accelerated)
        wanted = "float32" if accelerated is False else "bfloat16"
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(model.params)} == {wanted}
        assert model.network.dtype == wanted
    assert checkpoints.load("digits", accelerated=accelerated).network.dtype == "float32"
    assert checkpoints.load(folder, dtype="float32", accelerated=True).network.dtype == "float32"


def test_a_dtype_is_one_wherever_the_model_is_read_from(folder, tmp_path):
    """Of all its networks; on accelerators too, where a published one has another default."""
    file = tmp_path / "model.safetensors"
    export.main([str(folder), str(file)])
    for given in (dict(dtype="bfloat16"), dict(accelerated=True), dict(accelerated=False)):
        one, other = (checkpoints.load(path, **given) for path in (folder, file))
        assert one.network.dtype == other.network.dtype
        assert one.fingerprint == other.fingerprint and one.around == other.around
    wanted = checkpoints.load(folder, dtype="float32", accelerated=True)
    assert wanted.around == one.around


def test_a_run_starts_from_float32_on_accelerators_too(folder, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    config = ml_collections.ConfigDict(dict(start_from=str(folder), train={}))
    start = teacher.load(config)
    found = start.params, around.autoencoder(str(folder), None)[1], start.inputs.encode.params
    config.text = dict(start_from=str(folder))
    found += (around._texts(config, None)[0],)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(found)} == {"float32"}


@pytest.mark.parametrize("name", ["sd", "xl"])
def test_exported_factors_have_the_shapes_of_their_network(name, tmp_path, monkeypatch):
    """Those of the folder that it came from, and that is written of it."""
    base = checkpoints.load(published.write(tmp_path / "base", name))
    low_rank = LowRank(rank=1, targets=("*/in/kernel",))
    factors = low_rank.init(jax.random.key(0), base.params)
    changed = workdir.Changed(base, low_rank, factors, 1)
    monkeypatch.setattr(workdir, "read_factors", lambda path: changed)
    export.main(["run", str(tmp_path / "a.safetensors"), "--lora"])
    found = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    weights = tmp_path / "base/unet/diffusion_pytorch_model.safetensors"
    theirs = safetensors.numpy.load_file(weights)
    for layer in (key.removesuffix(".lora_A.weight") for key in found if "lora_A" in key):
        weight = theirs[f"{layer.removeprefix('unet.')}.weight"]
        assert found[f"{layer}.lora_A.weight"].shape == (1, *weight.shape[1:])


def test_what_has_nothing_to_convert_says_so(folder, tmp_path):
    for out in ("new.safetensors", "new"):
        with pytest.raises(
            SystemExit, match="checkpoints: shapes:sd15 has shapes and no weights to"
        ):
            export.main(["shapes:sd15", str(tmp_path / out)])
    with pytest.raises(SystemExit, match="checkpoints: the file must end in .safetensors, got"):
        export.main([str(folder), str(tmp_path / "new.bin")])
    with pytest.raises(SystemExit, match="checkpoints: .*model is not a training workdir"):
        export.main([str(folder), str(tmp_path / "new.safetensors"), "--lora"])
    assert not list(tmp_path.iterdir())


def test_a_plan_is_of_accelerators(folder, monkeypatch):
    """Of a folder of the hub too."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", repository(folder, []))
    sample.flags.FLAGS(["sample.py"])
    with flagsaver.flagsaver(checkpoint="hf:org/model", plan="v5e:4"):
        assert sample._load()[0].network.dtype == "bfloat16"
    with flagsaver.flagsaver(checkpoint="hf:org/model"):
        assert sample._load()[0].network.dtype == "float32"


def test_without_the_hub(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SystemExit, match="which is not installed: pip install 'ddim_jax.hub.'"):
        export.main(["hf:org/model", str(tmp_path / "out")])
