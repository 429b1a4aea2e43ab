"""The site of the docs is built without a warning, its Python runs, and its worked diffs apply."""

import importlib.util
import re
import subprocess
import sys

import numpy as np
import pytest

import ddim_jax
from ddim_jax import schedules, strides
from ddim_jax.solvers import SOLVERS
from tests.oracles import Mixture, level_of
from tests.test_readme import PAGES, ROOT

NOTEBOOKS = sorted(file.name for file in (ROOT / "notebooks").glob("*.ipynb"))
MISSING = [n for n in ("mkdocs", "material", "mkdocstrings") if not importlib.util.find_spec(n)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder that the one command fills; it fails after a warning, unless it is --quiet."""
    if MISSING:
        pytest.skip(f"{MISSING[0]} is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)]
    result = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_the_site_has_every_page(site):
    for page in [*PAGES.keys() - {"README.md", "docs/index.md"}, *NOTEBOOKS]:
        assert (site / page.split("/")[-1].rpartition(".")[0].lower() / "index.html").exists()


def test_the_site_fetches_nothing_from_elsewhere(site):
    elsewhere = re.compile(r"<(?:script|link|img)[^>]*(?:src|href)=.?https?://")
    for page in site.rglob("*.html"):
        assert not elsewhere.findall(page.read_text()), page


def test_the_reference_has_the_public_interface(site):
    text = (site / "reference" / "index.html").read_text()
    for name in ddim_jax.__all__:
        assert f'id="ddim_jax.{name}"' in text, name
    for module in ("predictions", "schedules", "solvers", "strides"):
        for name in getattr(getattr(ddim_jax, module), "__all__", ()):
            if callable(getattr(getattr(ddim_jax, module), name)):
                assert re.search(rf'id="ddim_jax\.{module}\.(\w+\.)?{name}"', text), name


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"- (?:.*: )?([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    pages = {page.split("/")[-1] for page in PAGES} - {"README.md"}
    roots = {page.lower() for page in PAGES if "/" not in page} - {"readme.md"}
    docs = {page.removeprefix("docs/") for page in PAGES if "/" in page}
    docs |= {name.replace(".ipynb", ".md") for name in NOTEBOOKS}
    assert len(pages) + len(NOTEBOOKS) == len(listed) and set(listed) == docs | roots


@pytest.mark.parametrize("page", ["start", "concepts", "migration"])
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", PAGES[f"docs/{page}.md"], re.S):
        if "FOLDER" not in block:
            exec(compile(block, page, "exec"), scope)  # noqa: S102


# --- from k-diffusion and consistency_models ------------------------------------------------------

SIGMAS = np.append(np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), 12) ** 7, 0)
X = np.linspace(-2, 2, 9)


def denoised(x, sigma):
    return Mixture()(x, level_of(1, sigma)).x0


def k_euler(x):
    for sigma, after in zip(SIGMAS[:-1], SIGMAS[1:], strict=True):
        x = x + (x - denoised(x, sigma)) / sigma * (after - sigma)
    return x


def k_heun(x):
    for sigma, after in zip(SIGMAS[:-1], SIGMAS[1:], strict=True):
        d = (x - denoised(x, sigma)) / sigma
        y = x + d * (after - sigma)
        x = x + (d + (y - denoised(y, after)) / after) / 2 * (after - sigma) if after else y
    return x


def k_dpm_2(x):
    for sigma, after in zip(SIGMAS[:-1], SIGMAS[1:], strict=True):
        d, middle = (x - denoised(x, sigma)) / sigma, np.sqrt(sigma * after)
        if after:
            y = x + d * (middle - sigma)
            d = (y - denoised(y, middle)) / middle
        x = x + d * (after - sigma)
    return x


def k_dpmpp_2m(x):
    old = None
    for k, (sigma, after) in enumerate(zip(SIGMAS[:-1], SIGMAS[1:], strict=True)):
        new = estimate = denoised(x, sigma)
        if old is not None and after:
            r = np.log(SIGMAS[k - 1] / sigma) / np.log(sigma / after)
            estimate = new + (new - old) / (2 * r)
        x, old = after / sigma * x + (1 - after / sigma) * estimate, new
    return x


def k_lms(x):
    seen = []
    for k in range(len(SIGMAS) - 1):
        seen = [(x - denoised(x, SIGMAS[k])) / SIGMAS[k], *seen][:4]
        nodes = SIGMAS[k - len(seen) + 1 : k + 1][::-1]
        for j, d in enumerate(seen):  # the integral of a Lagrange polynomial
            others = np.delete(nodes, j)
            area = np.poly1d(np.poly(others) / np.prod(nodes[j] - others)).integ()
            x = x + (area(SIGMAS[k + 1]) - area(SIGMAS[k])) * d
    return x


@pytest.mark.parametrize(
    ("theirs", "name", "options"),
    [
        (k_euler, "euler", {}),
        (k_heun, "heun", {}),
        (k_dpm_2, "midpoint", {}),
        (k_dpmpp_2m, "dpm_solver++_2m", {}),
        (k_lms, "lms", {"lower_order_final": False}),
    ],
)
def test_samplers_of_k_diffusion_are_the_solvers_that_the_page_names(theirs, name, options):
    schedule = schedules.edm(0.002, 80.0)
    times = strides.karras(schedule, 12)
    np.testing.assert_allclose(times, SIGMAS, rtol=1e-12)
    table = SOLVERS[name].make(**options)(schedule, times)
    np.testing.assert_allclose(table.run_numpy(Mixture(), X), theirs(80 * X), atol=1e-9)


def test_the_times_of_consistency_models_are_the_page_s():
    scope = {}
    block = re.findall(r"```python\n(.*?)```", PAGES["docs/migration.md"], re.S)[-1]
    exec(compile(block, "migration", "exec"), scope)  # noqa: S102
    ends = 80 ** (1 / 7), 0.002 ** (1 / 7)
    second = (ends[0] + 22 / 39 * (ends[1] - ends[0])) ** 7
    np.testing.assert_allclose(scope["table"].level.sigma, [80, second], rtol=1e-12)
    noise = scope["table"].noise[:, 0]
    np.testing.assert_allclose(noise, [np.sqrt(second**2 - 0.002**2), 0], rtol=1e-12)


def test_the_spacings_are_those_that_the_answer_lists():
    lines = re.findall(r"^\| `(\w+)`.* \| (\d+), (\d+), .*?(\d+)\b", PAGES["docs/faq.md"], re.M)
    assert [line[0] for line in lines] == ["trailing", "linspace", "leading"]
    for spacing, *wanted in lines:
        times = strides.uniform(schedules.ddpm_linear(), 10, spacing=spacing)[[0, 1, 9]]
        assert [round(1000 * t) - 1 for t in times] == [int(index) for index in wanted], spacing


# --- contributing, changes, citation --------------------------------------------------------------

DIFFS = re.findall(r"```diff\n(.*?)```", PAGES["CONTRIBUTING.md"], re.S)


@pytest.mark.parametrize("diff", DIFFS, ids=["solver", "loss", "network"])
def test_a_worked_diff_is_short_and_applies(diff, tmp_path):
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++", "@@"))]
    assert len(lines) < 40
    for name in re.findall(r"^--- a/(.*)", diff, re.M):  # a copy: git refuses paths that it ignores
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    done = subprocess.run(
        ["git", "apply", "-"], input=diff, cwd=tmp_path, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    for name in re.findall(r"^\+\+\+ b/(.*)", diff, re.M):
        compile((tmp_path / name).read_text(), name, "exec")


def test_the_version_is_the_same_everywhere():
    version = re.search(r'version="(.*?)"', (ROOT / "setup.py").read_text())[1]
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)[1] == version
    assert PAGES["CHANGELOG.md"].split("\n## ")[1].startswith(version)


def test_no_pickle_is_opened_and_no_text_is_run():
    """As SECURITY.md says; torch reads the one `.pth` without code."""
    forbidden = r"allow_pickle=True|import pickle|\b(eval|exec)\(|shell=True|os\.system"
    for file in (ROOT / "ddim_jax").rglob("*.py"):
        text = file.read_text()
        assert not re.search(forbidden, text), file
        assert "torch.load" not in text or "weights_only=True" in text, file
