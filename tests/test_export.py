"""Exported files draw what JAX draws; what cannot be exported is refused before the work."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import digits as digits_config
from ddim_jax import command_line, experiment
from ddim_jax.export import __main__ as command
from ddim_jax.export import graph, made, row, tables
from ddim_jax.export.unlooped import unlooped
from ddim_jax.recipe import Recipe
from tests.selection import slow_but
from tests.tiny import tiny
from tests.told_latents import told_tokens

PAGE = (Path(__file__).parent.parent / "docs" / "deploy.md").read_text()


@functools.cache
def model(seed=0, **changes):
    """An untrained network of digits, 8 x 8, whose output is not 0."""
    config = tiny(digits_config.get_config())
    with config.unlocked():
        config.loss.update(label_dropout=0.1)
        config.sample.update(solver="ddim", steps=3, guidance_scale=1.0)
    built = experiment.build(config)
    return built.replace(params=params_of(built, seed), name="tiny", **changes)


def params_of(built, seed=0):
    """Of which none is 0."""
    params = jax.jit(built.init)(jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.device_get(jax.tree.unflatten(tree, noisy))


def tables_of(own, *names):
    found = tables.collect(own, own.recipe, ["ddim", "ddpm", "unipc_2"], [2, 3])
    return {name: found[name] for name in names}


def drawn_apart(exported, own, *names):
    cases = graph.cases(graph.as_float32(own), own.recipe, tables_of(own, *names))
    return max(one.most for one in made.differences(exported, cases))


# --- tables ---------------------------------------------------------------------------------------


def test_tables_are_json_that_reads_back_as_float32():
    own = Recipe(solver="unipc_2", steps=7)
    found = tables.collect(model(), own, ["ddim", "rk4", "unipc_2"], [1, 2, 4])
    text = json.dumps(tables.as_json(found, model()), allow_nan=False)
    back = json.loads(text)
    assert back["default"] == "unipc_2:7" == next(iter(back["tables"]))
    assert back["columns"]["noise"] == [27, 29] and back["slots"] == row.SLOTS
    assert list(back["tables"])[1:4] == ["ddim:1", "ddim:2", "ddim:4"]
    for name, table in found.items():
        one = back["tables"][name]
        assert one["nfe"] == len(one["rows"]) == table.nfe
        assert one["deterministic"] == table.deterministic
        np.testing.assert_array_equal(np.float32(one["rows"]), row.pack(table))
        np.testing.assert_array_equal(np.float32(one["start"]), np.float32(table.start))


def test_a_recipe_keeps_its_stride_and_options_in_tables_of_its_own_solver_alone():
    own = Recipe(solver="ddim", stride="quadratic", steps=4, solver_options={"eta": 0.5})
    schedule = model().schedule
    found = tables.collect(model(), own, ["ddim", "heun"], [2, 4])
    for name, recipe in (
        ("ddim:2", own.replace(steps=2)),
        ("ddim:4", own),
        ("heun:2", Recipe(solver="heun", steps=2)),
    ):
        np.testing.assert_array_equal(row.pack(found[name]), row.pack(recipe.table(schedule)))


def test_a_solver_is_left_out_where_it_needs_more_steps_and_named_where_it_has_no_table():
    found = tables.collect(model(), Recipe(steps=4), ["pndm"], [1, 2, 8])
    assert "pndm:8" in found
    with pytest.raises(ValueError, match="unknown solver 'ddmi'"):
        tables.collect(model(), Recipe(steps=4), ["ddmi"], [4])
    with pytest.raises(ValueError, match="table_steps must be in"):
        tables.collect(model(), Recipe(steps=4), ["ddim"], [0])


@functools.cache
def jumping():
    """An untrained network that is told the length of its steps."""
    own = model()
    config = own.config.copy_and_resolve_references()
    with config.unlocked():
        config.model.scalars = ("interval",)
    built = experiment.build(config)
    return built.replace(params=params_of(built), name="jumping")


def test_tables_tell_a_network_the_length_of_its_steps_or_are_left_out():
    own = jumping()
    found = tables.collect(own, own.recipe, ["ddim", "ddpm", "unipc_2"], [1, 2, 4])
    assert {"ddim:1", "ddim:2", "ddim:3", "ddim:4"} <= set(found)
    assert not {"ddpm:2", "ddpm:4", "unipc_2:4"} & set(found)
    told = {name: one["told"] for name, one in tables.as_json(found, own)["tables"].items()}
    lengths = {name: own.jumps(table)[0] for name, table in found.items()}
    assert told == {name: {"interval": pytest.approx(x, rel=1e-6)} for name, x in lengths.items()}
    assert len({lengths[f"ddim:{k}"] for k in (1, 2, 3, 4)}) == 4
    with pytest.raises(ValueError, match="step"):
        tables.collect(own, own.recipe.replace(solver="unipc_2"))


def test_a_graph_of_one_table_draws_what_jax_draws():
    """With the noise of each row, where the table has any."""
    own, found = model(), tables_of(model(), "ddpm:2")
    (case,) = graph.cases(graph.as_float32(own), own.recipe, found)
    assert np.all(case.noise.std((2, 3, 4)) > 0.5) and case.noise.shape[1] == 3
    of_table = graph.in_steps(own, own.recipe, found["ddpm:2"], 4)
    given = {"x": case.x, "noise": case.noise} | case.inputs
    (drawn,) = jax.jit(of_table.call)(*(given[name] for name in of_table.inputs))
    np.testing.assert_allclose(drawn, case.wanted, atol=1e-5)


@pytest.mark.slow
def test_graphs_of_a_network_that_is_told_the_length_of_its_steps():
    """One that takes any table is told with it; in one of a table it is a constant."""
    from ddim_jax.export import stablehlo

    own = jumping()
    found = tables.collect(own, own.recipe, ["ddim"], [2])
    exported = stablehlo.make(own, own.recipe, "noise")
    cases = graph.cases(graph.as_float32(own), own.recipe, found)
    assert "interval" in exported.graph.inputs and len(cases) == 2
    assert max(one.most for one in made.differences(exported, cases)) < 1e-5
    fixed = graph.in_steps(own, own.recipe, found["ddim:2"], 4)
    assert "interval" not in fixed.inputs
    given = {"x": cases[1].x} | cases[1].inputs
    (drawn,) = jax.jit(fixed.call)(*(given[name] for name in fixed.inputs))
    np.testing.assert_allclose(drawn, cases[1].wanted, atol=1e-5)


# --- formats --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", slow_but(["noise", "row", "seed"], ["noise"]))
def test_stablehlo_draws_what_jax_draws(form):
    pytest.importorskip("flatbuffers")
    from ddim_jax.export import stablehlo

    exported = stablehlo.make(model(), model().recipe, form)
    assert drawn_apart(exported, model(), "ddim:3", "ddpm:2", "unipc_2:3") < 1e-5


@pytest.mark.slow
def test_pictures_of_stablehlo_are_those_of_draw(tmp_path, monkeypatch):
    """From the seed alone, in a process that cannot import this package."""
    pytest.importorskip("flatbuffers")
    from ddim_jax.export import stablehlo

    own = model()
    recipe = own.recipe.replace(guidance_scale=1.5)
    found = tables_of(own, "ddim:3", "unipc_2:3")
    (tmp_path / "digits.stablehlo").write_bytes(stablehlo.make(own, recipe).data)
    (tmp_path / "digits.stablehlo.tables.json").write_text(json.dumps(tables.as_json(found, own)))
    (reader,) = [text for text in PAGE.split("```python\n")[1:] if "deserialize" in text]
    reader = reader.partition("```")[0].replace("unipc_2:8", "unipc_2:3")
    guard = "import sys\nsys.modules['ddim_jax'] = None\n"
    result = subprocess.run(
        [sys.executable, "-c", guard + reader],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    drawn = np.load(tmp_path / "digits.npy")
    wanted = own.draw(10, seed=7, solver="unipc_2", steps=3, guidance_scale=1.5)
    apart = np.abs(drawn.astype(int) - wanted)
    assert apart.max() <= 1 and (apart > 0).mean() < 1e-3


@pytest.mark.parametrize("dtype", slow_but(["float32", "float16"], ["float16"]))
def test_onnx_rows_draw_what_jax_draws(dtype):
    """A guided network is in two branches, and its weights are in the file once."""
    for package in ("jax2onnx", "onnx", "onnxruntime"):
        pytest.importorskip(package)
    import onnx

    from ddim_jax.export import onnx_file

    own = graph.stored_as(model(), dtype)
    exported = onnx_file.make(own, own.recipe)
    assert list(exported.graph.inputs)[:5] == ["row", "point", "base", "history", "noise"]
    assert drawn_apart(exported, own, "ddim:3", "ddpm:2", "unipc_2:3") < 1e-4
    kept = [one for one in onnx.load_from_string(exported.data).graph.initializer]
    large = [one for one in kept if np.prod(one.dims) >= graph.HALVED_FROM]
    leaves = [leaf for leaf in jax.tree.leaves(model().params) if leaf.size >= graph.HALVED_FROM]
    assert 0.5 * len(leaves) <= len(large) <= 1.5 * len(leaves)
    half = onnx.TensorProto.FLOAT16
    assert {one.data_type == half for one in large} == {dtype == "float16"}


@pytest.mark.slow
def test_a_client_in_numpy_draws_what_ddim_draws(tmp_path):
    """The one in the documentation, against steps of DDIM written out."""
    for package in ("jax2onnx", "onnx", "onnxruntime"):
        pytest.importorskip(package)
    from ddim_jax.export import onnx_file

    own = model().replace(recipe=model().recipe.replace(guidance_scale=1.5))
    (tmp_path / "digits.onnx").write_bytes(onnx_file.make(own, own.recipe).data)
    found = json.dumps(tables.as_json(tables_of(own, "ddim:3"), own))
    (tmp_path / "digits.onnx.tables.json").write_text(found)
    (client,) = [text for text in PAGE.split("```python\n")[1:] if "import onnxruntime" in text]
    client = client.partition("```")[0].replace("ddim:4", "ddim:3").replace("28, 28", "8, 8")
    subprocess.run([sys.executable, "-c", client], cwd=tmp_path, check=True, timeout=300)
    denoise = own.denoiser(label=np.arange(10), guidance_scale=1.5)
    levels = [
        own.schedule.level(np.full(10, t, np.float32)) for t in own.recipe.times(own.schedule)
    ]
    x = np.random.default_rng(0).standard_normal((10, 8, 8, 1), np.float32)
    for now, then in zip(levels[:-1], levels[1:], strict=True):
        seen = denoise(x, now)
        x = then.alpha[0] * seen.x0 + then.sigma[0] * seen.eps
    assert np.abs(np.load(tmp_path / "digits.npy") - 127.5 * (np.clip(x, -1, 1) + 1)).max() < 0.6


@pytest.mark.slow
def test_onnx_of_unrolled_steps_draws_what_jax_draws():
    for package in ("jax2onnx", "onnx", "onnxruntime"):
        pytest.importorskip(package)
    from ddim_jax.export import onnx_file

    for name in ("ddim:3", "ddpm:2"):
        exported = onnx_file.make(model(), model().recipe, tables_of(model(), name)[name])
        assert drawn_apart(exported, model(), name) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("form", ["row", "steps"])
def test_litert_draws_what_jax_draws(dtype, form):
    for package in ("litert_converter", "ai_edge_litert", "ai_edge_quantizer"):
        pytest.importorskip(package)
    from ddim_jax.export import litert

    own = graph.stored_as(model(), dtype)
    table = None if form == "row" else tables_of(own, "ddim:3")["ddim:3"]
    exported = litert.make(own, own.recipe, table, int8=dtype == "int8")
    limit = 0.2 if dtype == "int8" else 2e-5
    assert drawn_apart(exported, own, "ddim:3") < limit


def test_a_transformer_told_tokens_draws_the_same_without_its_loop():
    """In latents, guided away from the encoded empty text; its decoder makes the pictures."""
    own = told_tokens()
    plain = unlooped(own)
    assert "blocks" not in plain.params and "block_0" in plain.params
    made_of = graph.per_row(plain, own.recipe, 2)
    assert list(made_of.inputs)[5:] == ["label", "text", "guidance"]
    found = {"unipc_2:2": Recipe("unipc_2", steps=2).table(own.schedule)}
    (case,) = graph.cases(own, own.recipe, found, count=2)
    call = jax.jit(made_of.call)

    def run(given):
        return dict(zip(made_of.outputs, call(*map(given.get, made_of.inputs)), strict=True))

    drawn = graph.follow(run, case)
    np.testing.assert_allclose(drawn, case.wanted, atol=1e-5 * np.ptp(case.wanted), rtol=0)
    (picture,) = graph.decoder(own, 2).call(drawn)
    rounded = np.clip(np.round(127.5 * (np.asarray(picture) + 1)), 0, 255)
    assert np.abs(rounded - own.pictures(drawn)).max() <= 1
    assert made.tokenizer(own) is None  # a function of its own makes the numbers


# --- what is written, and what is refused ---------------------------------------------------------


def error_line(*arguments):
    """What the command says of bad input, in one line."""
    with pytest.raises(SystemExit) as error:
        command.main(list(arguments))
    assert "\n" not in str(error.value)
    return str(error.value)


def stub(monkeypatch, off=0.0):
    own = model()
    inputs = {"row": jax.ShapeDtypeStruct((3, 29), np.float32)}

    def convert(args, kind, model, recipe, table):
        made_of = graph.Graph(None, inputs, ("sample",))
        return made.Made(b"content", lambda case: case.wanted + off, made_of, {"x": "1"}), "row"

    monkeypatch.setattr(command, "_convert", convert)
    monkeypatch.setattr(command.checkpoints, "load", lambda name, **options: own)
    monkeypatch.setattr(command_line.parallel, "use_cpu_cores", lambda: None)
    monkeypatch.setattr(command_line.parallel, "use_compilation_cache", lambda: None)


def test_a_manifest_and_tables_are_written_beside_a_file(monkeypatch, tmp_path, capsys):
    stub(monkeypatch)
    out = tmp_path / "tiny.onnx"
    arguments = ["tiny", str(out), "--per_row", "--tables=ddim", "--table_steps=2,3"]
    command.main(arguments)
    assert "ddim:3: differs from JAX by 0" in capsys.readouterr().out
    assert out.read_bytes() == b"content"
    about = json.loads(Path(f"{out}.json").read_text())
    assert about["format"] == "onnx" and about["form"] == "row" and about["bytes"] == 7
    assert about["inputs"]["row"] == {"shape": [3, 29], "dtype": "float32"}
    assert about["checkpoint"]["weights"] == model().fingerprint
    assert about["recipe"]["guidance_interval"] == [0.0, None]
    found = json.loads((tmp_path / about["tables"]).read_text())
    assert list(found["tables"]) == ["ddim:3", "ddim:2"]
    assert "exists; choose another name, or pass --overwrite" in error_line(*arguments)
    command.main([*arguments, "--overwrite"])
    command.main(["tiny", str(out), "--overwrite"])  # of another form, which has no tables
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.onnx", "tiny.onnx.json"]


def test_a_traced_program_holds_float16_as_it_is():
    own = graph.stored_as(model(), "float16")
    kernels = [leaf for leaf in jax.tree.leaves(own.params) if leaf.dtype == np.float16]
    traced = jax.make_jaxpr(lambda: jax.tree.map(graph.whole, kernels))()
    assert kernels and {const.dtype for const in traced.consts} == {np.dtype("float16")}
    assert {out.dtype for out in traced.out_avals} == {np.dtype("float32")}


def test_the_decoder_of_a_file_that_is_replaced_goes_with_it(monkeypatch, tmp_path):
    stub(monkeypatch)
    out, old = tmp_path / "tiny.onnx", tmp_path / "tiny-decoder.onnx"
    ours, other = json.dumps({"decoder": "tiny-decoder.onnx"}), json.dumps({"decoder": "../else"})
    for told, kept in (ours, False), (other, True), ("", True), ("[]", True):
        old.write_bytes(b"of latents")
        (tmp_path / "tiny-decoder.onnx.json").write_text("{}")
        (tmp_path / "tiny.onnx.json").write_text(told)
        command.main(["tiny", str(out), "--overwrite"])
        assert old.exists() == kept == (tmp_path / "tiny-decoder.onnx.json").exists()


def test_a_folder_that_is_not_there_is_made(monkeypatch, tmp_path):
    stub(monkeypatch)
    command.main(["tiny", str(tmp_path / "new" / "far" / "tiny.onnx")])
    assert (tmp_path / "new" / "far" / "tiny.onnx.json").exists()


def test_clips_are_refused_before_the_work(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "_convert", lambda *given: pytest.fail("it converts"))
    said = error_line("moving_4step", str(tmp_path / "clips.stablehlo"))
    assert "moving_4step draws clips, which are not exported" in said and "sample.py" in said


def test_what_has_appeared_meanwhile_is_not_replaced(monkeypatch, tmp_path):
    stub(monkeypatch)
    out, convert = tmp_path / "tiny.onnx", command._convert

    def slow(*given):
        out.write_text("another's")
        return convert(*given)

    monkeypatch.setattr(command, "_convert", slow)
    assert "tiny.onnx exists; choose another name" in error_line("tiny", str(out))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["another's"]


def test_files_that_belong_together_are_written_all_or_none(monkeypatch, tmp_path):
    stub(monkeypatch)

    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(command.files, "write_json", full)
    assert "No space left" in error_line("tiny", str(tmp_path / "tiny.onnx"), "--per_row")
    assert not list(tmp_path.iterdir()) and not command.interrupts.unfinished


def test_rounded_weights_are_compared_with_those_of_the_model(monkeypatch, tmp_path):
    stub(monkeypatch)
    seen, cases = [], graph.cases
    monkeypatch.setattr(
        command.graph, "cases", lambda m, *given: seen.append(m) or cases(m, *given)
    )
    command.main(["tiny", str(tmp_path / "a.onnx"), "--dtype=float16"])
    assert [one is model() for one in seen] == [True]
    assert 0 < made.MOST_RMS["float16"] < made.MOST_RMS["int8"]


def test_a_page_needs_a_checkpoint_and_any_folder(monkeypatch, tmp_path):
    stub(monkeypatch)
    said = error_line("", str(tmp_path / "page"), "--format=web")
    assert "checkpoint must be a name or a path, got ''" in said
    monkeypatch.setattr(command.web, "write", lambda out, *given: out.mkdir())
    command.main(["tiny", str(tmp_path / "page-1.2"), "--format=web"])
    assert (tmp_path / "page-1.2").is_dir()


def test_a_file_that_draws_something_else_is_not_written(monkeypatch, tmp_path):
    stub(monkeypatch, off=0.01)
    out = tmp_path / "tiny.onnx"
    said = error_line("tiny", str(out))
    assert "more than 0.001: nothing is written" in said and not list(tmp_path.iterdir())


REFUSED = {
    "--solver=adaptive": "--solver=adaptive chooses its steps while it draws",
    "--solver=ddmi": "unknown solver 'ddmi'",
    "--steps=0": "--steps must be in [1, 10000], got 0",
    "--steps=40": "a graph of 40 evaluations, one after the other, is too long: at most 32",
    "--guidance_scale=nan": "--guidance_scale of a recipe must be a number",
    "--dtype=int8": "--dtype=int8 is for --format=litert, got --format=onnx; use float16",
    "--format=litert": "the file must end in .tflite, got tiny.onnx",
    "--from_noise": "--from_noise is for --format=stablehlo, got --format=onnx",
    "--tables=ddim": "--tables is for graphs that run any table: add --per_row",
    "--table_steps=3": "--table_steps is for graphs that run any table: add --per_row",
    "--cdn=x": "--cdn is for --format=web, got --format=onnx",
    "--batch=4": "--batch is for --format=litert: the batch of onnx is open",
    "--batch=0": "--batch must be in [1, 1024]",
}


@pytest.mark.parametrize("flag", REFUSED)
def test_what_cannot_be_exported_is_refused_in_one_line(flag, monkeypatch, tmp_path):
    stub(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "_convert", lambda *given: pytest.fail("it converts"))
    said = error_line("tiny", "tiny.onnx", flag)
    assert REFUSED[flag].split(", got")[0] in said, said
    assert not list(tmp_path.iterdir())


def test_a_missing_converter_names_what_installs_it(monkeypatch):
    for module in ("jax2onnx", "litert_converter", "flatbuffers"):
        monkeypatch.setitem(sys.modules, module, None)
    from ddim_jax.export import litert, onnx_file, stablehlo

    with pytest.raises(ValueError, match=r'jax2onnx is not installed: pip install "ddim_jax\['):
        onnx_file.make(model(), model().recipe)
    with pytest.raises(ValueError, match=r'pip install "ddim_jax\[litert\]"'):
        litert.make(model(), model().recipe)
    with pytest.raises(ValueError, match="pip install flatbuffers"):
        stablehlo.make(model(), model().recipe)


def test_weights_beyond_two_gigabytes_are_refused_before_the_work():
    huge = {"kernel": jax.ShapeDtypeStruct((30_000, 20_000), np.float32)}
    with pytest.raises(ValueError, match=r"take 2.4 GB, and a file of onnx holds at most 2 GB"):
        made.check_size(model().replace(params=huge), "onnx")


def test_a_converter_that_fails_is_named_in_one_line():
    with pytest.raises(ValueError, match=r"^jax2onnx cannot convert this network \(no sort\)"):
        with made.converting("jax2onnx"):
            raise NotImplementedError("no sort\nand a trace")


def test_litert_cannot_sort():
    from ddim_jax.export import litert

    with pytest.raises(ValueError, match="clip=dynamic sorts numbers, which LiteRT cannot"):
        litert.make(model(), model().recipe.replace(clip="dynamic"))


def test_weights_beyond_float16_are_refused():
    kernel = {"kernel": np.full((20, 20), 1e6, np.float32)}
    with pytest.raises(ValueError, match="beyond float16's 65504"):
        graph.stored_as(model().replace(params=kernel), "float16")
