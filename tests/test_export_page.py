"""The page: JAX's random numbers in JavaScript, and the whole of it in a real browser."""

import json
import shutil
import subprocess
import warnings

import jax
import numpy as np
import pytest

from benchmarks import browser
from ddim_jax import keys
from ddim_jax.export import tables, web
from ddim_jax.networks.tokenizer import END, Tokenizer
from tests import tokenizer_texts
from tests.test_export import model

# --- random numbers -------------------------------------------------------------------------------

SEEDS = [(0, 0), (7, 3), (2**32 + 5, 2**31 - 1), (2**64 - 1, 12)]
RANDOM = """
import * as random from "./random.mjs";
console.log(JSON.stringify(given.map(([seed, index]) => {
  const key = random.sampleKey(BigInt(seed), index);
  const own = [random.initialKey(key), random.rowKey(key, 0), random.rowKey(key, 9)];
  return { keys: [key, ...own], normals: [...random.normal(own[0], 20000)] };
})));
"""
TOKENS = """
import { tokenizer } from "./tokenizer.mjs";
const tokens = tokenizer(given.options);
console.log(JSON.stringify(given.texts.map((text) => [...tokens(text).ids])));
"""


def in_node(folder, script, given):
    """What a script says that is given a value and modules of the page."""
    if shutil.which("node") is None:
        pytest.skip("node, which runs JavaScript without a browser, is not installed")
    for name in ("random", "tokenizer"):
        shutil.copy(str(web.PAGE / f"{name}.js"), folder / f"{name}.mjs")
    (folder / "given.json").write_text(json.dumps(given))
    (folder / "script.mjs").write_text(
        'import fs from "node:fs";\nconst given = JSON.parse(fs.readFileSync("given.json"));'
        + script
    )
    result = subprocess.run(["node", "script.mjs"], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_keys_are_those_of_jax_bit_for_bit_and_normals_to_1e_6(tmp_path):
    said = in_node(tmp_path, RANDOM, [[str(seed), index] for seed, index in SEEDS])
    for (seed, index), found in zip(SEEDS, said, strict=True):
        own = keys.sample_keys(seed, np.array([index]))
        initial = keys.purpose_keys(own, keys.Purpose.INITIAL_NOISE)
        rows = [keys.purpose_keys(own, keys.Purpose.SOLVER_NOISE, k) for k in (0, 9)]
        wanted = [jax.random.key_data(key)[0].tolist() for key in (own, initial, *rows)]
        assert found["keys"] == wanted
        normals = np.asarray(jax.random.normal(initial[0], (20000,)))
        np.testing.assert_allclose(found["normals"], normals, atol=1e-6)


def test_tokens_are_those_of_python(tmp_path):
    """Of texts with marks, digits, other scripts, special tokens, and too many words."""
    for pad in (END, "!"):
        _check_tokens(tmp_path, pad)


def _check_tokens(folder, pad):
    own = Tokenizer.of_texts([*tokenizer_texts.TEXTS[:6], "a crying cat face"], 24)
    own = Tokenizer(**own.options() | {"pad": pad})
    options = own.options() | {"start": own.start, "end": own.end}
    texts = [*tokenizer_texts.TEXTS, *tokenizer_texts.MARKS]
    texts += ["a crying CAT  face", "unknown words", "x" * 90]
    said = in_node(folder, TOKENS, {"options": options, "texts": texts})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some are cut off
        np.testing.assert_array_equal(said, own(texts))


# --- the folder -----------------------------------------------------------------------------------


def test_a_page_is_not_written_over_what_is_there(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds other files: choose an empty folder"):
        web.check_folder(tmp_path, overwrite=True)
    page = tmp_path / "page"
    web.check_folder(page, overwrite=False)
    page.mkdir()
    (page / web.SITE).write_text("{}")
    with pytest.raises(FileExistsError, match="holds a page"):
        web.check_folder(page, overwrite=False)
    web.check_folder(page, overwrite=True)


def page_of(name, out, monkeypatch, fails=False):
    """Writes a page of a network of this name, with little in its files."""

    def network(folder, model, recipe, own, dtype):
        for ending in (".onnx", ".onnx.json", ".check.json"):
            (folder / f"{model.name}{ending}").write_text(dtype)
        if fails:
            raise ValueError("it cannot be converted")
        return {"name": model.name}

    monkeypatch.setattr(web, "fetch_runtime", lambda to: to.mkdir())
    monkeypatch.setattr(web, "_network", network)
    own = model().replace(name=name)
    web.write(out, [(own, own.recipe)], [{}], "float16")


def test_a_page_is_whole_or_not_there_and_replaces_another(tmp_path, monkeypatch):
    page = tmp_path / "page"
    with pytest.raises(ValueError, match="cannot be converted"):
        page_of("a", page, monkeypatch, fails=True)
    assert not list(tmp_path.iterdir())
    page_of("a", page, monkeypatch)
    (page / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match="cannot be converted"):
        page_of("b", page, monkeypatch, fails=True)
    assert (page / "a.onnx").exists() and not (page / "b.onnx").exists()
    page_of("b", page, monkeypatch)
    names = {path.name for path in page.iterdir()}
    assert {"b.onnx", "b.check.json", "note.txt", "runtime", web.SITE} < names
    assert not any(name.startswith("a.") for name in names)
    assert [path.name for path in tmp_path.iterdir()] == ["page"]
    (page / web.SITE).write_text('{"models": [{}]}')
    with pytest.raises(ValueError, match="site.json is damaged"):
        page_of("c", page, monkeypatch)
    assert (page / "b.onnx").exists() and [path.name for path in tmp_path.iterdir()] == ["page"]


def test_without_npm_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="npm.*is not installed: install it, or give --cdn=URL"):
        web.fetch_runtime(tmp_path / "runtime")


# --- a real browser -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The address of a page of an untrained network, served without any special header."""
    for package in ("jax2onnx", "onnx", "onnxruntime"):
        pytest.importorskip(package)
    if browser.find() is None:
        pytest.skip("no Chromium is installed, nor named by the variable CHROMIUM")
    if shutil.which("npm") is None:
        pytest.skip("npm, which fetches onnxruntime-web, is not installed")
    folder, own = tmp_path_factory.mktemp("site") / "page", model()
    found = tables.collect(own, own.recipe, ["ddim", "ddpm", "unipc_2"], [2, 3, 6])
    web.write(folder, [(own, own.recipe)], [found], "float16")
    with browser.served(folder) as address:
        yield address


SAID = "document.getElementById('said').textContent"


def test_the_page_in_a_browser(site):
    with browser.Browser.start() as chromium:
        page = chromium.open(site, width=390, height=844)
        page.wait(browser.READY)
        assert "10 pictures, 3 evaluations" in page.evaluate(SAID)
        apart = page.evaluate("page.compare()")
        assert set(apart) == {"ddim:3", "unipc_2:6"} and max(apart.values()) < 1e-4
        _check_layout(page)
        _check_names(page)
        _check_keyboard(page)
        _check_bad_seed(page)
        _check_offline(page)
        assert not page.problems()


def _check_layout(page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("document.getElementById('draw').getBoundingClientRect().bottom < 844")
    small = "[...document.querySelectorAll('select, input, button')].filter((e) => e.offsetHeight"
    assert page.evaluate(f"{small} && e.offsetHeight < 44).length") == 0


def _check_names(page):
    """Whatever can be operated or seen has a name for a screen reader."""
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"combobox", "textbox", "slider", "button", "image", "progressbar", "status"}
    found = [n for n in nodes if n.get("role", {}).get("value") in roles and not n["ignored"]]
    named = {n["name"]["value"] for n in found if n.get("name", {}).get("value")}
    assert {"Class", "Pictures", "Solver", "Steps", "Seed", "Draw", "Network evaluations"} <= named
    assert "3, picture 4 of seed 0" in named
    unnamed = [n["role"]["value"] for n in found if not n.get("name", {}).get("value")]
    assert set(unnamed) <= {"status"}, unnamed


def _check_keyboard(page):
    page.evaluate("document.querySelector('[name=seed]').focus()")
    page.evaluate("document.querySelector('[name=seed]').select()")
    page.call("Input.insertText", text="18446744073709551615")
    page.key("Enter", "\r")
    first = "document.querySelector('#pictures canvas').ariaLabel"
    page.wait(f"{first}.endsWith('of seed 18446744073709551615')")
    page.key("Tab")
    page.key("Tab")  # Draw; from there on to the next seed, which is 0
    page.key("Enter", "\r")
    page.wait("document.querySelector('[name=seed]').value === '0'")
    page.wait(f"{first}.endsWith('of seed 0')")


def _check_bad_seed(page):
    for bad in ("-1", "1.5", "18446744073709551616", "", "seven"):
        page.evaluate(f"document.querySelector('[name=seed]').value = {json.dumps(bad)}")
        page.evaluate("document.getElementById('draw').click()")
        page.wait(f"{SAID}.startsWith('Not drawn: the seed must be a whole number in 0 to 2^64')")
        page.evaluate("document.getElementById('said').textContent = ''")
    page.evaluate("document.querySelector('[name=seed]').value = '0'")


def _check_offline(page):
    page.wait("navigator.serviceWorker.controller !== null")
    page.wait("caches.keys().then((names) => names.length === 1)")
    page.call("Network.emulateNetworkConditions", offline=True, latency=0,
              downloadThroughput=-1, uploadThroughput=-1)  # fmt: skip
    page.evaluate("window.page = undefined")
    page.call("Page.reload")
    page.wait(browser.READY)
    assert "10 pictures, 3 evaluations" in page.evaluate(SAID)
    assert page.evaluate("crossOriginIsolated"), "threads need it, and the service worker gives it"


def test_what_the_page_cannot_draw_with_is_refused():
    from ddim_jax.inputs import Input, Inputs

    told = Inputs({"text": Input((4,), "int32", 0)})
    with pytest.raises(ValueError, match="is told text, which the page cannot say"):
        web.check(model().replace(inputs=told))
