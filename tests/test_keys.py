"""Keys: every seed has its own, those of 32 bits are as they ever were, others are refused."""

import jax
import numpy as np
import pytest

from ddim_jax import checkpoints, edit, keys
from ddim_jax.evaluation import likelihood, straightness, times, tradeoff
from tests.errors import rejects

FEW = (0, 1, 2**31, 2**32 - 1)
MANY = (2**32, 2**32 + 1, 2**33, 2**63, 2**64 - 1)


def bits(of):
    return tuple(np.asarray(jax.random.key_data(of)).ravel().tolist())


def test_seeds_of_32_bits_are_those_of_jax():
    for seed in (*FEW, np.uint32(7), np.int64(8), 3.0):
        assert bits(keys.key(seed)) == bits(jax.random.key(int(seed)))
        expected = jax.random.fold_in(jax.random.key(int(seed)), 3)
        assert bits(keys.sample_keys(seed, [3])) == bits(expected)


def test_samples_are_of_one_generator_whatever_the_setting():
    before = [bits(keys.sample_keys(seed, [3])) for seed in (7, 2**40)]
    with jax.default_prng_impl("rbg"):
        assert [bits(keys.sample_keys(seed, [3])) for seed in (7, 2**40)] == before


def test_no_two_seeds_share_a_key_of_a_seed_sample_or_purpose():
    found = []
    for seed in (*FEW, *MANY):
        samples = keys.sample_keys(seed, np.arange(3))
        found += [bits(keys.key(seed)), *(bits(key) for key in samples)]
        found += [bits(one) for p in keys.Purpose for one in keys.purpose_keys(samples, p)]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("seed", [-1, 2**64, 10**30, "a", 1.5, float("nan"), None, True])
def test_other_seeds_are_refused(seed):
    with rejects(ValueError, "seed must be a whole number in 0..2^64 - 1", repr(seed)):
        keys.key(seed)
    with rejects(ValueError, "seed must be a whole number", repr(seed)):
        checkpoints.load("digits").draw(1, seed=seed)


@pytest.mark.parametrize("index", [3, [0.5], [-1], [2**31], [[1]], [True]])
def test_places_of_samples_are_whole_numbers_in_a_row(index):
    with rejects(ValueError, "index must be"):
        keys.sample_keys(0, index)


@pytest.mark.parametrize("seed", ["-1", str(2**64)])
@pytest.mark.parametrize(
    "main, flags",
    [
        (tradeoff.main, []),
        (times.main, []),
        (likelihood.main, []),
        (straightness.main, ["--checkpoint=digits"]),
        *[(edit.main, [name]) for name in ("invert", "inpaint", "sdedit")],
    ],
)
def test_commands_refuse_a_seed_by_its_flag(main, flags, seed, capsys):
    with pytest.raises(SystemExit, match=r"--seed must be a whole number in 0\.\.2\^64 - 1, got"):
        main([*flags, f"--seed={seed}"])
