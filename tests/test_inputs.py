"""Inputs of networks: labels by number and name, arrays for sampling, dropping to null values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.dropping import drop, is_null
from ddim_jax.inputs import Input, Inputs

pytestmark = pytest.mark.usefixtures("strict_dtypes")

LABEL = {"label": Input((), "int32", 3)}
ANIMALS = Inputs(LABEL, ("cat", "Dog", "wild goose"))
STUDENT = Inputs(LABEL | {"guidance": Input(), "interval": Input()})
PLAIN = Inputs({})
TOKENS = LABEL | {"tokens": Input((2,), "int32", np.array([7, 8], np.int32))}
MANY = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(20000))


def test_facts_follow_from_what_is_declared():
    assert STUDENT.num_classes == 3 and STUDENT.null == {"label": 3}
    assert STUDENT.takes("guidance") and not ANIMALS.takes("guidance")
    assert PLAIN.num_classes == 0 and PLAIN.null == {} and not PLAIN.takes("label")


def test_titles_are_the_names_of_classes():
    assert ANIMALS.titles(np.array([1, 0, 3])) == ["Dog", "cat", "3"]  # 3: none
    assert Inputs(LABEL, ("tench, Tinca tinca", "b", "c")).titles([0]) == ["tench"]
    assert STUDENT.titles([2]) == ["2"] and PLAIN.titles(None) is None


@pytest.mark.parametrize(
    "given, expected",
    [
        (None, [0, 1, 2, 0, 1]),
        ([], [0, 1, 2, 0, 1]),
        (2, [2] * 5),
        (np.int64(1), [1] * 5),
        ("2", [2] * 5),
        (["2.0", 2.0], [2] * 5),
        ("wild goose", [2] * 5),
        ("CAT", [0] * 5),
        ([2, 0], [2, 0, 2, 0, 2]),
        (("dog", " 2", 0), [1, 2, 0, 1, 2]),
        (np.array([1, 2]), [1, 2, 1, 2, 1]),
        (jnp.array([1, 2]), [1, 2, 1, 2, 1]),
    ],
)
def test_labels_are_given_by_number_or_name_and_repeat(given, expected):
    labels = ANIMALS.labels(given, 5)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize(
    "given, message",
    [
        (3, r"labels must be 0..2 or a class name, got 3; guidance_scale=0 draws without a label"),
        ([0, -1], "got -1; guidance_scale=0"),
        (1.5, "got 1.5"),
        ("12", "got 12"),
        ("cut", r"got cut \(did you mean 'cat'\?\)"),
        ("zebra", "got zebra; guidance_scale=0 draws without a label; classes: "),
        ([None], "got None"),
        (True, "got True"),
        ("2.5", "got 2.5"),
        (float("nan"), "got nan"),
    ],
)
def test_labels_that_are_no_classes(given, message):
    with pytest.raises(ValueError, match=message):
        ANIMALS.labels(given, 4)


def test_names_that_differ_in_capitals_are_apart():
    names = Inputs(LABEL, ("Dog", "dog", "cat"))
    assert [names.labels(name, 1)[0] for name in ("Dog", "dog", "Cat")] == [0, 1, 2]


def test_networks_without_names_or_labels():
    with pytest.raises(ValueError, match="labels must be 0..2, got cat$"):
        STUDENT.labels("cat", 2)
    assert PLAIN.labels(None, 4) is None and PLAIN.labels([], 4) is None
    with pytest.raises(ValueError, match=r"unconditional and takes no labels, got \[1\]"):
        PLAIN.labels(1, 2)
    with pytest.raises(ValueError, match="name all 3 classes of the network, got 2 names"):
        Inputs(LABEL, ("cat", "dog"))


def test_arrays_are_what_the_network_declares():
    assert PLAIN.arrays(None) == {}
    assert list(ANIMALS.arrays([1, 2], guidance=3.0, interval=0.1)) == ["label"]
    arrays = STUDENT.arrays(np.array([1, 2]), guidance=3.0, interval=np.array([0.1, 0.2]))
    assert {name: array.dtype.name for name, array in arrays.items()} == {
        "label": "int32",
        "guidance": "float32",
        "interval": "float32",
    }
    np.testing.assert_array_equal(arrays["guidance"], [3, 3])
    np.testing.assert_allclose(arrays["interval"], [0.1, 0.2])
    np.testing.assert_array_equal(STUDENT.arrays([1, 2], interval=1.0)["guidance"], [1, 1])
    unlabelled = Inputs({"interval": Input()})
    np.testing.assert_array_equal(unlabelled.arrays(None, interval=0.5)["interval"], [0.5])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(labels=[1]), "takes 'interval' as an input: sample it over equal steps"),
        (dict(labels=None, interval=1.0), "class-conditional: give the label of every sample"),
        (dict(labels=[0, 1, 2], interval=[1.0, 1.0]), "one length, got .*'label': 3"),
    ],
)
def test_arrays_need_every_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        STUDENT.arrays(**arguments)
    with pytest.raises(ValueError, match="takes 'tokens' as an input, and it is not given"):
        Inputs(TOKENS).arrays([0])


def test_nulled_replaces_what_can_be_dropped_and_nothing_else():
    inputs = STUDENT.arrays([0, 1], guidance=2.0, interval=1.0)
    null = STUDENT.nulled(inputs)
    np.testing.assert_array_equal(null["label"], [3, 3])
    assert null["label"].dtype == jnp.int32
    assert null["guidance"] is inputs["guidance"]
    assert PLAIN.nulled({}) == {}


def test_a_row_is_null_where_all_that_can_be_dropped_is():
    inputs = {
        "label": jnp.array([3, 3, 0], jnp.int32),
        "tokens": jnp.array([[7, 8], [7, 7], [7, 8]], jnp.int32),
        "guidance": jnp.ones(3),
    }
    np.testing.assert_array_equal(is_null(inputs, Inputs(TOKENS).null), [True, False, False])
    np.testing.assert_array_equal(is_null(inputs, {"label": 3}), [True, True, False])


def test_rows_are_dropped_at_the_given_rate_all_inputs_of_a_row_together():
    inputs = {
        "label": jnp.arange(len(MANY), dtype=jnp.int32) % 3,
        "tokens": jnp.zeros((len(MANY), 2), jnp.int32),
        "guidance": jnp.ones(len(MANY)),
    }
    found = drop(inputs, Inputs(TOKENS).null, MANY, 0.1)
    dropped = np.asarray(found["label"]) == 3
    assert abs(dropped.mean() - 0.1) < 5 * np.sqrt(0.09 / len(MANY))
    np.testing.assert_array_equal(found["label"][~dropped], inputs["label"][~dropped])
    expected = np.where(dropped[:, None], [[7, 8]], 0)
    np.testing.assert_array_equal(found["tokens"], expected)
    assert found["guidance"] is inputs["guidance"]
    assert drop(inputs, {"label": 3}, MANY, 0.0) is inputs and drop({}, {}, MANY, 0.5) == {}
    assert (drop(inputs, {"label": 3}, MANY, 1.0)["label"] == 3).all()
