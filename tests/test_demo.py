"""What the page of the demo does, without the page; and the page, where Gradio is installed."""

import importlib.util

import numpy as np
import pytest

from ddim_jax import demo
from tests.errors import rejects
from tests.pictures import noise
from tests.tiny_pipeline import tiny_digits


@pytest.fixture(scope="module")
def studio():
    return demo.Studio({"tiny": tiny_digits()})


@pytest.mark.slow
def test_it_inverts_and_says_how_exactly(studio):
    picture = noise(8, 8, 1)
    shown, said = studio.invert("tiny", picture, "", "", 4)
    before, code, again = shown
    np.testing.assert_array_equal(before, picture)
    assert code.shape == again.shape == (8, 8, 1)
    assert "24 evaluations to the noise and 4 back" in said
    larger = np.repeat(np.kron(picture, np.ones((2, 2, 1), np.uint8)), 3, 2)
    np.testing.assert_allclose(studio.invert("tiny", larger, "", "", 4)[0][0], picture, atol=60)


def test_it_completes_what_is_painted_over(studio):
    unknown, picture = np.zeros((16, 16), bool), noise(8, 8, 1)
    unknown[:, 8:] = True
    known, completed = studio.inpaint("tiny", picture, unknown, "7", 3, 0)
    np.testing.assert_allclose(completed[:, :4].astype(int), picture[:, :4], atol=1)
    assert known[:, 4:].max() == 0 and completed[:, 4:].std() > 1
    with rejects(ValueError, "paint over what is to be completed"):
        studio.inpaint("tiny", picture, np.zeros((28, 28), bool), "", 3, 0)
    with rejects(ValueError, "give a picture first"):
        studio.inpaint("tiny", None, unknown, "", 3, 0)


@pytest.mark.slow
def test_it_interpolates_between_the_pictures_of_two_seeds(studio):
    frames = studio.interpolate("tiny", "8", "", 3, 14, 3, 4)
    assert len(frames) == 3 and frames[0].shape == (8, 8, 1)
    assert np.abs(frames[0].astype(int) - frames[2]).max() > 5


@pytest.mark.parametrize(
    "checkpoints, said",
    [
        (["moving_4step"], "moving_4step draws clips, which the demo does not; use sample.py"),
        (["digits", "digits"], "two checkpoints are called 'digits'"),
    ],
)
def test_checkpoints_that_it_cannot_show(checkpoints, said):
    args = demo.parse([f"--checkpoint={name}" for name in checkpoints] + ["--port=47813"])
    with rejects(ValueError, said):
        demo.run(args)


def test_it_draws_and_refuses(studio):
    pictures = studio.draw("tiny", "3", "", "ddim", 4, 1.5, 0, 2)
    wanted = studio.models["tiny"].draw(2, label="3", solver="ddim", steps=4, guidance_scale=1.5)
    assert np.abs(np.stack(pictures).astype(int) - wanted).max() <= 1
    for change, parts in (
        ({"label": "12"}, ["labels must be 0..9", "got 12"]),
        ({"steps": 0}, ["steps must be in [1, 250], got 0"]),
        ({"num": 41}, ["pictures must be in [1, 40], got 41"]),
    ):
        given = dict(
            name="tiny", label="3", prompt="", solver="ddim", steps=4, guidance=1.5, seed=0, num=2
        )
        with rejects(ValueError, *parts):
            studio.draw(**given | change)


def test_pictures_are_shown_large_and_grey_ones_as_grey():
    small, large = noise(8, 8, 1), noise(200, 100, 3)
    (shown,) = demo.enlarged([small])
    assert shown.mode == "L" and shown.size == (136, 136)
    np.testing.assert_array_equal(np.asarray(shown)[::17, ::17], small[..., 0])
    assert demo.enlarged([large])[0].size == (100, 200)


@pytest.mark.skipif(not importlib.util.find_spec("gradio"), reason="pip install 'ddim_jax[demo]'")
def test_the_page_has_all_of_it(studio):
    made = demo.page(studio)
    names = {block.api_name for block in made.fns.values()}
    assert {"draw", "invert", "complete", "interpolate"} <= names
