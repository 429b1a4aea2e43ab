"""The FID network against pytorch-fid's and torch-fidelity's, and against numbers they gave.

Weights and images come from numpy alone; where both libraries are installed, the numbers here are
checked to be theirs, and everything is compared.
"""

import functools
import hashlib
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from ddim_jax.evaluation import feature_networks, inception, inception_network
from ddim_jax.evaluation.features import Features

SHA256 = "5eed" * 16
KEPT = {"pool": np.s_[:, ::128], "logits": np.s_[:, ::84], "spatial": np.s_[:, ::127]}
SIZES = {"larger": (5, 7), "smaller": (640, 310)}
RESIZED = np.s_[0, 7::130, 11::120]

# What pytorch-fid's network gives, in float64.
FEATURES = {
    "pool": """
        0.217769 0.2563591 0.04144105 0.03873747 0.9714975 0.04323001 0 0.06620824 0.283611
        0.2400692 0.3926424 0.5346263 0.01298948 0.2563718 0.5109828 0.4022387 0.1990995
        0.2461185 0.04828144 0.04989309 0.9778335 0.05836985 0.005550362 0.04870059 0.2049736
        0.2144445 0.2781574 0.4610918 0.02243564 0.2219561 0.4006469 0.3661673
    """,
    "logits": """
        1.069187 -0.9749413 -2.373579 -1.091765 1.545256 -1.69412 -0.4033794 1.66666 -0.5958682
        0.4027971 -1.133687 -0.5553447 0.9851151 -1.010907 -2.469069 -0.980769 1.446788
        -1.709231 -0.4937694 1.596614 -0.7445753 0.5101725 -1.159733 -0.708671
    """,
    "spatial": """
        0.5061493 0.6303222 0 1.854689 0 0 0 0 1.437825 0 1.841623 0 0.2931498 0 0.109135
        0.4517064 0.7277485 0.5398453 0 2.8566 0 0.02819905 0 0.5494002 1.703772 0 1.281709 0
        0.5470571 0 0.4215316 0.7735286
    """,
}
# What torch gives, and torch-fidelity.
RESIZED_TO = {
    ("pytorch_fid", "larger"): """
        0.5137255 -0.3098039 -0.1607843 0.3357731 0.3571773 -0.5469604 0.09205866 -0.5364941
        -0.05601686 -0.6785363 0.4818543 -0.1522852 0.1654712 0.6152285 -0.2952987 0.2801331
        -0.5061555 0.1172909 -0.07343447 0.2747327 0.8798347 0.06888664 -0.2862914 -0.8058857
        0.4823694 -0.3809972 0.7231178
    """,
    ("tensorflow", "larger"): """
        0.4451758 -0.3185309 -0.2738712 -0.09783912 0.754557 -0.5908046 0.6362761 -0.2501579
        -0.6081712 -0.312278 0.3080038 0.06292903 0.7608508 0.6496825 -0.2535684 0.5000722
        -0.6555418 -0.4927465 -0.01042539 0.2128448 0.8206784 -0.09184253 -0.203752 -0.6174228
        0.4990332 -0.1918635 0.6717182
    """,
    ("pytorch_fid", "smaller"): """
        -0.4891934 0.03395391 -0.05512631 -0.4218189 0.166896 -0.08041859 0.2546033 -0.3656946
        0.4234768 0.01015925 -0.003693879 0.1683514 0.06365919 0.7382445 0.3145944 -0.1101339
        0.5153238 -0.499842 -0.5311921 -0.07077271 -0.5566941 0.07474196 -0.2888377 0.04058647
        -0.01245582 -0.7360231 0.7200474
    """,
    ("tensorflow", "smaller"): """
        -0.2768602 0.190421 0.1734591 -0.009294629 0.1157823 -0.7376561 0.2326179 -0.1764658
        -0.04337311 0.4540482 -0.001677692 0.08419204 -0.08234054 0.6692595 0.0380249 0.3518074
        0.4376775 -0.6461299 -0.4433877 0.1040535 -0.08224046 -0.191138 -0.1141826 -0.2359841
        -0.1987616 -0.1652795 0.5044289
    """,
}


@functools.cache
def weights() -> dict[str, np.ndarray]:
    """Tensors under which activations keep their size and images stay apart."""
    rng, tensors = np.random.default_rng(0), {}
    for name, shape in inception.torch_shapes().items():
        noise = rng.random(shape, np.float32) * 2 - 1
        if name.endswith("conv.weight"):
            centred = noise - noise.mean((1, 2, 3), keepdims=True)
            tensors[name] = centred * np.float32(np.sqrt(6 / np.prod(shape[1:])))
        elif name == "fc.weight":
            tensors[name] = noise * np.float32(0.1)
        elif name.endswith(("bn.weight", "running_var")):
            tensors[name] = 1 + noise * np.float32(0.5)
        else:
            tensors[name] = noise * np.float32(0.3)
    return tensors | {"fc.bias": rng.random(1008, np.float32)}


def network_input() -> np.ndarray:
    """float32 [2, 299, 299, 3] in [-1, 1]: squares of 13 x 13."""
    x = np.random.default_rng(1).random((2, 23, 23, 3), np.float32) * 2 - 1
    return x.repeat(13, 1).repeat(13, 2)


def pictures(height, width, count=1) -> np.ndarray:
    shape = (count, height, width, 3)
    return np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)


@functools.cache
def network():
    return jax.jit(lambda params, x: inception_network.Inception().apply({"params": params}, x))


def numbers(text):
    return np.array(text.split(), float)


def assert_close(found, wanted, tolerance=1e-4):
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=0.1 * tolerance * scale)


def write(path, tensors, **metadata):
    path.write_bytes(safetensors.numpy.save(tensors, metadata))
    return path


@pytest.mark.slow
def test_features_are_those_of_the_published_network(tmp_path):
    path = write(tmp_path / "weights.safetensors", weights(), source_sha256=SHA256)
    params, sha256 = inception.load(path, sha256_prefix="5eed")
    assert sha256 == SHA256
    features = network()(params, network_input())
    assert [leaf.shape for leaf in jax.tree.leaves(features)] == [(2, 2048), (2, 1008), (2, 2023)]
    for name, kept in KEPT.items():
        assert_close(np.ravel(np.asarray(getattr(features, name))[kept]), numbers(FEATURES[name]))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("convention", inception_network.RESIZES)
def test_images_are_resized_as_published(convention, size):
    x = inception_network.preprocess(pictures(*SIZES[size]), convention)
    assert x.shape == (1, 299, 299, 3) and x.dtype == np.float32
    wanted = numbers(RESIZED_TO[convention, size])
    np.testing.assert_allclose(np.ravel(x[RESIZED]), wanted, atol=2e-5)


def test_images_of_299_are_scaled_only():
    images = pictures(299, 299)
    for convention, wanted in {
        "pytorch_fid": images / 255 * 2 - 1,
        "tensorflow": (images - 128.0) / 128,
    }.items():
        np.testing.assert_allclose(
            inception_network.preprocess(images, convention), wanted, atol=1e-6
        )


@pytest.mark.parametrize("convention", inception_network.RESIZES)
def test_one_channel_is_repeated(convention):
    grey = pictures(9, 12)[..., :1]
    found = jax.jit(inception_network.preprocess, static_argnums=1)(grey, convention)
    wanted = inception_network.preprocess(grey.repeat(3, -1), convention)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "convention", "message"),
    [
        (pictures(9, 9), "bicubic", "'bicubic'.*pytorch_fid, tensorflow"),
        (pictures(9, 9) / 255, "tensorflow", "float64.*data.to_uint8"),
        (pictures(9, 9)[..., :2], "tensorflow", r"\(1, 9, 9, 2\)"),
        (pictures(9, 9)[0], "tensorflow", r"\(9, 9, 3\)"),
    ],
)
def test_preprocess_refuses(images, convention, message):
    with pytest.raises(ValueError, match=message):
        inception_network.preprocess(images, convention)


def test_missing_weights_are_explained(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        inception.load(tmp_path / "none.pth")
    for part in ("none.pth", "pt_inception-2015-12-05-6726825d.pth", "https://", "digits", "SHA"):
        assert part in str(error.value)


def test_other_weights_are_refused(tmp_path):
    pth = tmp_path / "other.pth"
    pth.write_bytes(b"other")
    own = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(ValueError, match=f"must begin with 6726825d, is {own}"):
        inception.load(pth)
    converted = write(tmp_path / "other.safetensors", {}, source_sha256=SHA256)
    with pytest.raises(ValueError, match=f"must begin with 6726825d, is {SHA256}"):
        inception.load(converted)
    plain = write(tmp_path / "plain.safetensors", {"x": np.zeros(1)})
    own = hashlib.sha256(plain.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=f"must begin with 6726825d, is {own}"):
        inception.load(plain)


def test_unreadable_files_are_refused(tmp_path):
    path = tmp_path / "weights.npz"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"\.pth or a \.safetensors.*weights.npz"):
        inception.load(path)
    path = path.rename(tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="weights.safetensors is not a readable"):
        inception.load(path)


def test_without_torch_a_pth_is_refused_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "weights.pth"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"needs torch.*python -m ddim_jax.evaluation.inception"):
        inception.load(path, sha256_prefix=None)


@pytest.mark.slow
def test_it_serves_as_a_feature_network(tmp_path):
    """As `--features` takes it; the hash in the metadata stands for the published weights."""
    path = tmp_path / "w.safetensors"
    known = {"source_sha256": inception.SHA256_PREFIX + SHA256[8:]}
    path.write_bytes(safetensors.numpy.save(weights(), known))
    used = feature_networks.load(f"inception_tensorflow:{path}")
    assert used.names == ("FID", "KID", "IS") and used.resize == "tensorflow"
    assert used.sha256 == known["source_sha256"] and not used.num_classes
    images = pictures(20, 24, count=1)
    found = used.extract(images)  # two devices: the batch is filled up
    params, _ = inception.load(path)
    wanted = network()(params, inception_network.preprocess(np.repeat(images, 2, 0), "tensorflow"))
    assert found.pool.shape == (1, used.dimensions)
    jax.tree.map(lambda ours, theirs: assert_close(ours, np.asarray(theirs)[:1]), found, wanted)


@pytest.mark.parametrize(("shape", "is_"), [(None, "missing"), ((31,), r"\(31,\)")])
def test_the_first_wrong_tensor_is_named(tmp_path, shape, is_):
    name = "Conv2d_1a_3x3.bn.bias"
    tensors = {"fc.bias" if shape is None else name: np.zeros(shape or 1008, np.float32)}
    path = write(tmp_path / "weights.safetensors", tensors)
    with pytest.raises(ValueError, match=rf"{name} must be \(32,\), is {is_}"):
        inception.load(path, sha256_prefix=None)


def test_the_command_keeps_tensors_and_hash(tmp_path, capsys):
    sha256 = "6726825d" + 56 * "0"
    tensors = {"fc.bias": np.arange(4.0), "n": np.array(3)}
    source = write(tmp_path / "source.safetensors", tensors, source_sha256=sha256)
    target = tmp_path / "target.safetensors"
    inception.main([str(source), str(target)])
    assert sha256 in capsys.readouterr().out
    with safetensors.safe_open(target, framework="numpy") as file:
        assert file.metadata() == {"source_sha256": sha256}
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(file.get_tensor(name), tensor)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("none.pth", "new.safetensors", "no Inception weights at none.pth"),
        ("other.pth", "new.safetensors", "must begin with 6726825d"),
        ("other.pth", "new.npz", "must end in .safetensors, got new.npz"),
        ("other.pth", "old.safetensors", "old.safetensors exists"),
    ],
)
def test_the_command_refuses(tmp_path, monkeypatch, source, target, message):
    monkeypatch.chdir(tmp_path)
    for name in ("other.pth", "old.safetensors"):
        (tmp_path / name).write_bytes(b"here before")
    with pytest.raises(SystemExit, match=f"inception: .*{message}"):
        inception.main([source, target])
    assert (tmp_path / "old.safetensors").read_bytes() == b"here before"
    assert len(list(tmp_path.iterdir())) == 2


# Where torch, pytorch-fid and torch-fidelity are installed.


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """pytorch-fid's module and network under our weights, and its state in a `.pth`."""
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("pytorch_fid.inception")
    with pytest.MonkeyPatch.context() as patch:
        state = {name: torch.from_numpy(tensor) for name, tensor in weights().items()}
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: state)
        net = module.fid_inception_v3().eval()
        path = tmp_path_factory.mktemp("inception") / "weights.pth"
        torch.save(net.state_dict(), path)
        yield module, net, path


def to_torch(images):
    import torch

    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def published_features(net, x):
    """Of x float32 [B, 299, 299, 3], in float64."""
    import torch

    kept = {}
    hooks = [
        net.avgpool.register_forward_hook(lambda *a: kept.update(pool=a[2].flatten(1))),
        net.Mixed_6d.branch1x1.register_forward_hook(lambda *a: kept.update(spatial=a[2])),
    ]
    with torch.no_grad():
        net.double()(to_torch(x).double())
    net.float()
    for hook in hooks:
        hook.remove()
    pool, spatial = kept["pool"], kept["spatial"][:, :7].permute(0, 2, 3, 1).flatten(1)
    logits = pool @ net.fc.weight.detach().double().T
    return Features(pool.numpy(), logits.numpy(), spatial.numpy())


def test_parity_of_features(published, tmp_path):
    _, net, pth = published
    wanted = published_features(net, network_input())
    for name, kept in KEPT.items():  # the numbers above are its own
        assert_close(numbers(FEATURES[name]), np.ravel(getattr(wanted, name)[kept]), 1e-6)
    converted = tmp_path / "weights.safetensors"
    sha256 = hashlib.sha256(pth.read_bytes()).hexdigest()
    assert inception.convert(pth, converted, sha256_prefix=None) == sha256
    for path in (pth, converted):
        params, found = inception.load(path, sha256_prefix=sha256[:8])
        assert found == sha256
        features = network()(params, network_input())
        jax.tree.map(assert_close, features, wanted)


@pytest.mark.parametrize("size", SIZES)
def test_parity_of_resizes(size):
    torch = pytest.importorskip("torch")
    tensorflow = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    images = pictures(*SIZES[size])
    x = to_torch(images).float()
    x = torch.nn.functional.interpolate(x, (299, 299), mode="bilinear", align_corners=False)
    wanted = {"pytorch_fid": x / 255 * 2 - 1}
    resize = tensorflow.interpolate_bilinear_2d_like_tensorflow1x
    x = resize(to_torch(images).float(), (299, 299), align_corners=False)
    wanted["tensorflow"] = (x - 128) / 128
    for convention, x in wanted.items():
        x = x.numpy().transpose(0, 2, 3, 1)
        stored = numbers(RESIZED_TO[convention, size])
        np.testing.assert_allclose(stored, np.ravel(x[RESIZED]), atol=1e-6)
        np.testing.assert_allclose(inception_network.preprocess(images, convention), x, atol=2e-5)


def test_parity_from_images_to_features(published):
    import torch

    module, _, pth = published
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    images, (params, _) = pictures(40, 56, count=2), inception.load(pth, sha256_prefix=None)
    names = ["2048", "logits_unbiased"]
    extract = fidelity.FeatureExtractorInceptionV3("", names, feature_extractor_weights_path=pth)
    with torch.no_grad():
        pool = module.InceptionV3().eval()(to_torch(images / np.float32(255)))[0][..., 0, 0].numpy()
        fidelity_pool, logits = (feature.numpy() for feature in extract(to_torch(images)))
    features = network()(params, inception_network.preprocess(images, "pytorch_fid"))
    assert_close(features.pool, pool)
    features = network()(params, inception_network.preprocess(images, "tensorflow"))
    assert_close(features.pool, fidelity_pool)
    assert_close(features.logits, logits)
