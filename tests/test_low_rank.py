"""Training low-rank factors: what they change, what a workdir keeps, every network and loss."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

import ddim_jax
from configs import digits
from ddim_jax import experiment, losses, parallel
from ddim_jax.checkpoints import __main__ as export
from ddim_jax.checkpoints import lora, weights_file
from ddim_jax.checkpoints.workdir import BASE, BASE_FILE
from ddim_jax.commands import configs
from ddim_jax.networks import DiT, TextUNet, UNet
from ddim_jax.networks.low_rank import LowRank, of
from ddim_jax.predictions import PREDICTIONS
from ddim_jax.schedules import cosine
from ddim_jax.training import loop, method, stages
from ddim_jax.training.state import TrainState, constant_ema
from ddim_jax.training.step import make_step
from tests.errors import rejects
from tests.selection import slow_but
from tests.tiny import tiny

UNET = UNet(1, 8, (1,), 1, (), num_classes=10, patch_size=2)
DIT = DiT(1, width=8, depth=2, heads=2, num_classes=10)
TEXT = TextUNet(
    1, (8,), num_blocks=0, depths=(1,), heads=(2,), groups=4, text_length=3, context_dim=5
)  # fmt: skip
NETWORKS = {"unet": UNET, "dit": DIT, "text_unet": TEXT}
X = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)


def told(net):
    """Inputs of four samples."""
    texts = np.random.default_rng(1).normal(size=(4, 3, 5)).astype(np.float32)
    return {"text": texts} if net is TEXT else {"label": np.arange(4, dtype=np.int32)}


def moved(tree, seed=0, size=0.3):
    """Numbers of the same shapes none of which is zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: np.float32(size * rng.normal(size=leaf.shape)), tree)


@functools.cache
def params_of(net):
    shapes = jax.eval_shape(net.init, jax.random.key(0), X, jnp.ones(4), told(net))["params"]
    return moved(shapes)


# --- factors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_fresh_factors_change_nothing(name):
    params = params_of(NETWORKS[name])
    low_rank = LowRank(2, targets=("dense",))
    merged = low_rank.merge(params, low_rank.init(jax.random.key(1), params))
    assert jax.tree.all(jax.tree.map(np.array_equal, merged, params))
    assert jax.tree.all(jax.tree.map(np.array_equal, low_rank.merge(params, {}), params))


def test_a_merged_layer_computes_what_the_factored_one_does():
    """x W + alpha / rank (x down) up; of a convolution down is one, and up is pointwise."""
    params = {"a": {"kernel": moved(X[0, :, :5, 0])}, "b": {"kernel": np.ones((3, 3, 1, 6))}}
    params["b"]["kernel"] = moved(params["b"]["kernel"], 1)
    low_rank = LowRank(3, 6.0, ("dense", "convolutions"))
    factors = moved(low_rank.init(jax.random.key(0), params), 2)
    assert factors["a"]["down"].shape == (8, 3) and factors["a"]["up"].shape == (3, 5)
    assert factors["b"]["down"].shape == (3, 3, 1, 3) and factors["b"]["up"].shape == (3, 6)
    merged = low_rank.merge(params, factors)
    x, a = X[:, :, :, 0], factors["a"]
    found = x @ merged["a"]["kernel"]
    np.testing.assert_allclose(
        found, x @ params["a"]["kernel"] + 2 * (x @ a["down"]) @ a["up"], atol=1e-5
    )
    conv = lambda x, w: jax.lax.conv(  # noqa: E731
        x.transpose(0, 3, 1, 2), w.transpose(3, 2, 0, 1), (1, 1), "SAME"
    ).transpose(0, 2, 3, 1)
    b = factors["b"]
    wanted = conv(X, params["b"]["kernel"]) + 2 * conv(X, b["down"]) @ b["up"]
    np.testing.assert_allclose(conv(X, merged["b"]["kernel"]), wanted, atol=1e-5)


KERNELS = {
    "unet": ["mid_attention/out/kernel", "mid_attention/qkv/kernel"],
    "dit": ["blocks/attention/out/kernel", "blocks/attention/qkv/kernel"],
    "text_unet": [
        f"{place}/block_0/{layer}/kernel"
        for place in ("mid_attention", "up_0_0_attention")
        for layer in ("cross/k", "cross/out", "cross/q", "cross/v", "self/out", "self/qkv")
    ],
}


@pytest.mark.parametrize("name", NETWORKS)
def test_attention_is_found_in_every_network(name):
    assert LowRank().kernels(params_of(NETWORKS[name])) == KERNELS[name]


def test_targets():
    params = params_of(UNET)
    both = LowRank(targets=("convolutions", "mid_*/conv_?/kernel")).kernels(params)
    assert both == LowRank(targets=("convolutions",)).kernels(params)
    dense = LowRank(targets=("dense",)).kernels(params)
    kernels = [path for path in flatten_dict(params, sep="/") if path.endswith("kernel")]
    assert sorted(both + dense) == sorted(kernels)
    with rejects(ValueError, "no kernel is 'conv'", "attention, convolutions, dense", "conv_in/k"):
        LowRank(targets=("conv",)).kernels(params)
    assert LowRank(targets=(), whole=("conv_in/*",)).kernels(params) == []
    with rejects(ValueError, "config.train.lora trains nothing", "or whole patterns of parameters"):
        LowRank(targets=()).kernels(params)
    with rejects(ValueError, "config.train.lora.targets must be some of attention", "got (4,)"):
        LowRank(targets=(4,))


BAD = {
    "rank": ({"rank": 0}, "config.train.lora.rank must be at least 1, got 0"),
    "alpha": ({"alpha": -1}, "config.train.lora.alpha must be positive, got -1"),
    "name": ({"ranks": 4}, "no option 'ranks' (did you mean 'rank'?)"),
    "type": ({"rank": "four"}, "rank of config.train.lora must be a whole number, got 'four'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options(name):
    section, message = BAD[name]
    with rejects(ValueError, message):
        of(section)


def test_a_section_may_be_text():
    assert of({"targets": "attention,convolutions"}).targets == ("attention", "convolutions")
    assert of({"targets": ["dense"], "rank": 2}) == LowRank(2, None, ("dense",))
    assert of(None) is None and LowRank(4).scale == 1 and LowRank(4, 2.0).scale == 0.5


# --- the step -------------------------------------------------------------------------------------

LOSSES = {
    "diffusion": lambda net: losses.LOSSES["diffusion"](net),
    "consistency": lambda net: losses.LOSSES["consistency"](
        net, pairs=losses.PAIRS["grid"](sigma_min=0.0), distil=True, target_decay=0.5
    ),
}


def setting(name, loss_name):
    """The loss, factors, parameters and frozen of a network, and a batch."""
    module = NETWORKS[name]
    null = {name: put.null for name, put in module.inputs.items()}
    apply = lambda params, *args: module.apply({"params": params}, *args)  # noqa: E731
    net = losses.Net(apply, cosine(), PREDICTIONS["v"](), null)
    params, low_rank = params_of(module), LowRank(2, 4.0, ("attention", "*conv_?/kernel"))
    if name == "dit":
        low_rank = LowRank(2, 4.0)
    loss = LOSSES[loss_name](net)
    factors = low_rank.init(jax.random.key(0), params)
    frozen = (loss.freeze(factors, {}) or {}) | {BASE: params}
    return loss, low_rank, factors, params, frozen, {"image": np.tanh(X)} | told(module)


CASES = [("unet", "diffusion"), ("text_unet", "diffusion"), ("dit", "consistency")]


@pytest.mark.parametrize(("name", "loss_name"), slow_but(CASES, [CASES[0], CASES[2]]))
def test_a_step_of_every_network_and_loss(name, loss_name):
    """It begins at the loss of the base, and gradients are finite differences."""
    loss, low_rank, factors, params, frozen, batch = setting(name, loss_name)
    merging = method._merging(low_rank, loss, None, False)
    rest = batch, jax.vmap(jax.random.key)(jnp.arange(4)), jnp.int32(0)
    both = jax.jit(jax.value_and_grad(lambda factors: loss(*merging((factors, frozen)), *rest)[0]))
    expected = jax.jit(loss.compute)(params, loss.freeze(params, params), *rest)[0]
    np.testing.assert_allclose(both(factors)[0], expected, rtol=1e-6)
    somewhere, direction = moved(factors, 1), moved(factors, 2)
    low, high = (
        both(jax.tree.map(lambda a, b, h=h: a + h * b, somewhere, direction))[0]
        for h in (-0.003, 0.003)
    )
    along = optax.tree.vdot(both(somewhere)[1], direction)
    np.testing.assert_allclose((high - low) / 0.006, along, rtol=0.02)


@pytest.mark.slow
def test_factors_are_alike_where_they_and_the_base_are_split(monkeypatch):
    monkeypatch.setattr(parallel, "SPLIT_FROM", 4)
    loss, low_rank, factors, params, frozen, batch = setting("dit", "diffusion")
    mesh, found = parallel.make_mesh(), {}
    for mode in ("jit", "fsdp"):

        def make(axis, gather=None):
            merging = method._merging(low_rank, loss, gather, False)
            return make_step(loss, optax.adam(0.1), constant_ema(0.9), axis, merging)

        copies = jax.tree.map(jnp.array, (factors, frozen))
        opt_state = optax.adam(0.1).init(copies[0])
        ema = jax.tree.map(jnp.copy, copies[0])
        state = TrainState(
            jnp.int32(0), copies[0], ema, opt_state, jax.random.key(0), frozen=copies[1]
        )
        step, rows = parallel.parallelise_step(make, mode, mesh), parallel.shard(batch, mesh)
        state = jax.device_put(state, parallel.layout(state, mesh, mode))
        for _ in range(2):
            state, _ = step(state, rows)
        same = jax.tree.map(np.array_equal, state.frozen[BASE], params)
        assert jax.tree.all(same), mode
        if mode == "fsdp":
            assert any(leaf.sharding.spec for leaf in jax.tree.leaves(state.frozen))
        found[mode] = jax.device_get((state.params, state.ema))
    assert all(np.abs(leaf).max() > 0.01 for leaf in jax.tree.leaves(found["jit"][0]))
    for ours, theirs in zip(*map(jax.tree.leaves, found.values()), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)


# --- runs -----------------------------------------------------------------------------------------


def config(base, steps=4, parallel="jit", loss=None, **section):
    """A run of factors on tiny digits."""
    config = tiny(digits.get_config(), levels=1)
    config.start_from, config.parallel = str(base), parallel
    config.train.update(steps=steps, log_every=1, checkpoint_every=2, sample_every=0)
    with config.unlocked():
        config.train.lora = dict(rank=2, targets=("attention",)) | section
        config.loss = loss or config.loss
    return config


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A network of which no parameter is zero, as a file."""
    made = experiment.build(tiny(digits.get_config(), levels=1))
    params = moved(jax.eval_shape(made.init, jax.random.key(0)), size=0.1)
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    weights_file.save(path, made.replace(params=params))
    return path


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    """An uninterrupted run of 4 steps."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, loop.train(config(base), workdir)


def test_stages_may_change_factors_one_after_the_other(base, tmp_path):
    """All are checked before the first one trains."""
    chain = config(base)
    with chain.unlocked():
        chain.stages = [dict(name="first"), dict(name="second", train=dict(steps=2))]
    stages.check(stages.split(chain, tmp_path))
    with chain.unlocked():
        chain.stages[1]["train"] = dict(lora=dict(targets=("atention",)))
    with rejects(ValueError, "stage second", "no kernel is 'atention'"):
        stages.check(stages.split(chain, tmp_path))


def leaves(state):
    state = state.replace(key=jax.random.key_data(state.key))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def size(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(base, finished, tmp_path, capsys):
    loop.train(config(base, steps=2), tmp_path)
    assert (
        "96 numbers in factors of rank 2 of 2 kernels, which change 10,945"
        in capsys.readouterr().out
    )
    state = loop.train(config(base), tmp_path)
    for ours, theirs in zip(leaves(state), leaves(finished[1]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_factors_alone_are_trained_and_kept(base, finished):
    """Optimizer, average and checkpoints are of factors; the base is as it was."""
    workdir, state = finished
    start = ddim_jax.load(base)
    assert jax.tree.all(jax.tree.map(np.array_equal, state.frozen[BASE], start.params))
    names = {path.rpartition("/")[2] for path in flatten_dict(state.params, sep="/")}
    assert names == {"up", "down"}
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) <= 2 * count + 3
    assert jax.tree.structure(state.ema) == jax.tree.structure(state.params)
    kept = {*jax.tree.leaves(jax.tree.map(np.shape, state.params), is_leaf=lambda x: x == ())}
    metadata = (workdir / "checkpoints" / "4" / "state" / "_METADATA").read_text()
    assert kept and "conv_in" not in metadata and "mid_attention" in metadata


@pytest.mark.slow
def test_a_moved_workdir_draws_and_goes_on_without_what_it_started_from(base, finished, tmp_path):
    own = tmp_path / "own.safetensors"
    shutil.copy(base, own)
    loop.train(config(own, steps=2), tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    own.unlink()
    state = loop.train(config(own), tmp_path / "moved")
    for ours, theirs in zip(leaves(state), leaves(finished[1]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    model = ddim_jax.load(tmp_path / "moved")
    assert model.step == 4 and model.draw(2).shape == (2, 8, 8, 1)
    start = ddim_jax.load(base)
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), model.params, start.params)
    changed = {path for path, yes in flatten_dict(changed, sep="/").items() if yes}
    assert changed == {"mid_attention/qkv/kernel", "mid_attention/out/kernel"}
    wanted = LowRank(2).merge(state.frozen[BASE], state.ema)
    assert jax.tree.all(jax.tree.map(np.array_equal, model.params, wanted))


def test_an_exported_file_is_read_back(base, finished, tmp_path, capsys):
    workdir, _ = finished
    path = tmp_path / "out.safetensors"
    export.main([str(workdir), str(path), "--lora"])
    assert f"{path}: step 4, rank 2, 0.00 MB" in capsys.readouterr().out
    start, model = ddim_jax.load(base), ddim_jax.load(workdir)
    found, _ = lora.apply(path, 1.0, start.params, start.network)
    for ours, theirs in zip(*map(jax.tree.leaves, (found, model.params)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-7)
    with pytest.raises(
        SystemExit, match=r"checkpoints: .* trained a whole network|is not a training"
    ):
        export.main([str(tmp_path), str(tmp_path / "no.safetensors"), "--lora"])


@pytest.mark.slow
def test_a_teacher_starts_from_the_base(base, tmp_path):
    """Progressive distillation by factors; pictures are drawn from the merged network."""
    halve = config(base, 2, "pmap", dict(name="progressive", steps=2))
    halve.train.sample_every = 2
    state = loop.train(halve, tmp_path)
    assert state.frozen["teacher"] == {}
    assert (tmp_path / "samples" / "step_0000002.png").exists()
    again = loop.train(halve, tmp_path)  # restored, with nothing in the teacher's place
    assert again.frozen["teacher"] == {} and int(again.step) == 2


@pytest.mark.slow
def test_layers_of_new_inputs_are_trained_whole(base, tmp_path):
    """They begin without effect, and are kept and drawn with; no LoRA file can hold them."""
    guided = config(base, 2, loss=dict(name="guided", guidance=(1.0, 4.0)), whole=("norm_out/*",))
    guided.model.scalars = ("guidance",)
    loop.train(guided, tmp_path / "run")
    guided.train.steps = 4
    state = loop.train(guided, tmp_path / "run")
    found = flatten_dict(state.params, sep="/")
    whole = {path for path in found if path.rpartition("/")[2] not in ("up", "down")}
    new = {f"guidance_{k}/{name}" for k in range(2) for name in ("kernel", "bias")}
    assert whole == new | {"norm_out/scale", "norm_out/bias"}
    model = ddim_jax.load(tmp_path / "run")
    flat = flatten_dict(model.params, sep="/")
    ema = flatten_dict(jax.device_get(state.ema), sep="/")
    assert all(np.array_equal(flat[path], ema[path]) for path in whole)
    assert np.abs(flat["guidance_1/kernel"]).max() > 0
    assert model.draw(2, guidance_scale=2.0).shape == (2, 8, 8, 1)
    with pytest.raises(SystemExit, match="was trained whole; export the whole network"):
        export.main([str(tmp_path / "run"), str(tmp_path / "no.safetensors"), "--lora"])
    export.main([str(tmp_path / "run"), str(tmp_path / "merged.safetensors")])
    merged = ddim_jax.load(tmp_path / "merged.safetensors").params
    jax.tree.map(np.testing.assert_array_equal, merged, model.params)


def test_what_cannot_be_is_refused_before_anything_is_written(base, tmp_path):
    none = config("")
    with rejects(ValueError, "config.train.lora changes a trained network", "config.start_from"):
        loop.train(none, tmp_path / "a")
    with rejects(ValueError, "no kernel is 'atention'"):
        loop.train(config(base, targets=("atention",)), tmp_path / "a")
    with rejects(ValueError, "config.train.lora.whole: no parameter is 'norm'", "conv_in/b"):
        loop.train(config(base, whole=("norm",)), tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_a_resume_with_other_factors_is_refused(base, finished):
    workdir, _ = finished
    with rejects(ValueError, "config.train.lora.rank is 2, not 3"):
        loop.train(config(base, rank=3), workdir)
    loop.train(config(base, alpha=None), workdir)  # a default may be written out
    whole = config(base)
    with whole.unlocked():
        del whole.train["lora"]
    with rejects(ValueError, "config.train.lora"):
        loop.train(whole, workdir)


def test_a_workdir_without_its_base_says_so(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / BASE_FILE).unlink()
    with rejects(FileNotFoundError, "base.safetensors is missing", "export", "base"):
        ddim_jax.load(tmp_path / "run")
    other = ddim_jax.load(finished[0]).replace(name="other")
    weights_file.save(tmp_path / "run" / BASE_FILE, other)
    with rejects(ValueError, "another network than the one that the run started from"):
        ddim_jax.load(tmp_path / "run")


def test_fields_are_set_from_text():
    found = configs.load(
        "digits", [("train.lora.rank", "8"), ("train.lora.targets", "attention,dense")]
    )
    assert of(found.train.lora) == LowRank(8, None, ("attention", "dense"))
    json.loads(found.to_json())
    with rejects(ValueError, "config.train.lora has no field 'range' (did you mean 'rank'?)"):
        configs.load("digits", [("train.lora.range", "8")])
