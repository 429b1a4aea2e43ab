"""Inversion against closed forms and its own way down, in float64; the loop in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import schedules, strides
from ddim_jax.editing import latents
from ddim_jax.editing.inversion import INVERSIONS, bdia, edict, fixed_point, reverse
from ddim_jax.sampling import run, sample_keys
from ddim_jax.solvers import SOLVERS, ddim
from tests.oracles import GaussianData, Mixture
from tests.selection import slow_but

pytestmark = pytest.mark.usefixtures("strict_dtypes")

RNG = np.random.default_rng(0)
MIXTURE = Mixture()
IMAGES = np.concatenate([RNG.normal(-1, 0.35, 30), RNG.normal(0.6, 0.25, 70)])
SCHEDULES = {
    "cosine": schedules.cosine(),
    "ddpm_linear": schedules.ddpm_linear(),
    "edm": schedules.edm(),
    "rectified_flow": schedules.rectified_flow(),
}


def stride(name, steps, **options):
    make = strides.karras if name == "edm" else strides.uniform
    return make(SCHEDULES[name], steps, **options)


def round_trip(trip, x=IMAGES, denoise=MIXTURE):
    """The latent, and the image it comes back to."""
    state = trip.up.run_numpy_state(denoise, x)
    return state.evaluate, trip.down.run_numpy(denoise, state)


EXACT = {"edict": edict(), "bdia": bdia(), "damped bdia": bdia(0.9), "fixed point": fixed_point(60)}


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("name", SCHEDULES)
def test_exact_inversions_come_back_exactly(name, method):
    latent, back = round_trip(EXACT[method](SCHEDULES[name], stride(name, 50)))
    np.testing.assert_allclose(back, IMAGES, atol=1e-10)
    assert 0.8 < latent.std() < 1.7


def test_what_edict_drew_is_inverted_to_where_it_started():
    """The other way round: the pair at the end of the way down leads back to the pair above."""
    trip = edict()(SCHEDULES["cosine"], stride("cosine", 30))
    noise = RNG.normal(size=50)
    state = trip.down.run_numpy_state(MIXTURE, noise)
    assert np.abs(state.evaluate - state.base).max() > 1e-6
    np.testing.assert_allclose(trip.up.run_numpy(MIXTURE, state), noise, atol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_fixed_point_iteration_brings_it_nearer(name):
    errors = []
    for refinements in (0, 1, 3, 5, 10):
        trip = fixed_point(refinements)(SCHEDULES[name], stride(name, 50))
        assert trip.up.nfe == 50 * (refinements + 1) == 50 * trip.repeats
        errors.append(np.abs(round_trip(trip)[1] - IMAGES).max())
    assert (np.diff(errors) < 0).all()
    assert errors[0] > 0.003 and errors[3] < errors[0] / 500 and errors[4] < 1e-7


def test_the_rotation_is_ddims_step():
    """One fixed-point step of 60 iterations finds what one step of DDIM came from."""
    schedule, times = SCHEDULES["cosine"], np.array([0.7, 0.5])
    x = RNG.normal(size=100)
    below = ddim()(schedule, times).run_numpy(MIXTURE, x)
    above = fixed_point(60)(schedule, times).up.run_numpy(MIXTURE, below)
    np.testing.assert_allclose(above, x, atol=1e-10)


@pytest.mark.parametrize("name", SCHEDULES)
def test_latents_are_those_of_the_flow(name):
    """On Gaussian data, whose map is linear; better with more steps."""
    data, schedule = GaussianData(0.3, 0.5), SCHEDULES[name]
    errors = []
    for steps in (20, 200):
        times = stride(name, steps)
        top, clean = (schedule.level(t) for t in (times[0], times[-1]))
        expected = data.flow(IMAGES, clean, top) / schedule.prior_std(times[0])
        for method in (reverse(), fixed_point(5), edict(), bdia()):
            latent, _ = round_trip(method(schedule, times), denoise=data)
            errors.append(np.abs(latent - expected).max())
    coarse, fine = np.array(errors).reshape(2, 4)
    assert (fine < coarse).all() and (fine[:2] < 0.12).all() and fine[3] < 0.01


@pytest.mark.parametrize("method", [reverse(), reverse(SOLVERS["heun_angle"]), bdia()])
@pytest.mark.parametrize("name", SCHEDULES)
def test_two_bridges_between_gaussians_are_the_optimal_transport(name, method):
    """`m_B + s_B / s_A (x - m_A)`, of all maps from one to the other the shortest; and back again.

    Source: Su et al. 2023 (arXiv:2203.08382), section 4.
    """
    source, target, schedule = GaussianData(0.3, 0.5), GaussianData(-0.6, 0.8), SCHEDULES[name]
    x = 0.3 + 0.5 * RNG.normal(size=200)
    errors, cycles = [], []
    for steps in (50, 500):
        trip = method(schedule, stride(name, steps))
        there = trip.down.run_numpy(target, trip.up.run_numpy_state(source, x))
        back = trip.down.run_numpy(source, trip.up.run_numpy_state(target, there))
        errors.append(np.abs(there - (-0.6 + 0.8 / 0.5 * (x - 0.3))).max())
        cycles.append(np.abs(back - x).max())
    for coarse, fine in (errors, cycles):  # what is left is the level that a network begins at
        assert fine < max(coarse / 5, 0.01)


def test_the_naive_error_falls_with_the_steps():
    errors = [
        np.abs(round_trip(reverse()(SCHEDULES["cosine"], stride("cosine", s)))[1] - IMAGES).mean()
        for s in (10, 20, 50, 100, 200, 500)
    ]
    assert (np.diff(errors) < 0).all() and errors[-1] < errors[0] / 15


SAFE = (
    "ddim euler heun heun_flow heun_angle midpoint rk4 plms ipndm deis dpm_solver_2 dpm_solver_3 "
    "dpm_solver++_2s dpm_solver++_3s dpm_solver++_2m dpm_solver++_3m"
).split()


@pytest.mark.parametrize("name", slow_but(SAFE, SAFE[::2]))
def test_solvers_run_backwards(name):
    solver, schedule = SOLVERS[name], SCHEDULES["cosine"]
    times = strides.STRIDES[solver.stride](schedule, 50, lam_min=solver.lam_min)
    latent, back = round_trip(reverse(solver)(schedule, times))
    top = schedule.level(times[0])
    expected = MIXTURE.flow(IMAGES, schedule.level(1e-9), top)
    assert np.abs(back - IMAGES).max() < (0.1 if solver.order == 1 else 0.02)
    assert np.abs(latent - expected).max() < (0.15 if solver.order == 1 else 0.05)


def test_a_stride_that_ends_at_the_lowest_level_is_not_doubled():
    schedule = SCHEDULES["cosine"]
    times = np.array([1.0, 0.5, schedule.t_min, 0.0])
    trip = reverse()(schedule, times)
    assert trip.up.nfe == 3 and (np.diff(trip.up.level.t[1:]) > 0).all()


@pytest.mark.parametrize("method", INVERSIONS)
def test_the_loop_comes_back_in_float32(method):
    """With a network-like denoiser at full depth: 50 steps, 784 dimensions."""
    trip = INVERSIONS[method]()(SCHEDULES["cosine"], stride("cosine", 50))
    x = jnp.asarray(RNG.choice(IMAGES, (2, 784)), jnp.float32)
    keys = sample_keys(0, np.arange(2))
    state = jax.jit(lambda x: run(MIXTURE, trip.up, x, keys))(x).state
    back = jax.jit(lambda state: run(MIXTURE, trip.down, state, keys))(state).x
    limit = {"reverse": 0.1, "fixed_point": 1e-4, "edict": 1e-2, "bdia": 1e-4}
    limit["null_text"] = limit["fixed_point"]  # whose tables it has
    limit = limit[method]
    assert float(jnp.abs(back - x).max()) < limit


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: reverse(ddim(1.0))(SCHEDULES["cosine"], stride("cosine", 5)),
            "deterministic solv",
        ),
        (
            lambda: reverse(SOLVERS["deis"])(
                SCHEDULES["rectified_flow"], stride("rectified_flow", 5)
            ),
            "give the stride lam_min",
        ),
        (lambda: fixed_point(-1), "refinements must be at least 0, got -1"),
        (lambda: fixed_point()(SCHEDULES["cosine"], stride("cosine", 1)), "1 steps are too few"),
        (lambda: edict(0.0), r"mixing must be in \(0, 1\], got 0.0"),
        (lambda: bdia(1.5), r"gamma must be in \(0, 1\], got 1.5"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- latents --------------------------------------------------------------------------------------

Z = jnp.asarray(RNG.normal(size=(4, 6, 5, 2)), jnp.float32)


def norm(x):
    return np.sqrt((np.asarray(x) ** 2).sum((-3, -2, -1)))


def test_slerp_keeps_the_sphere_and_the_ends():
    first, second = Z[0], Z[1] * norm(Z[0]) / norm(Z[1])
    path = latents.slerp(first, second, jnp.linspace(0, 1, 9))
    np.testing.assert_allclose(norm(path), norm(first), rtol=1e-5)
    np.testing.assert_array_equal(path[0], first)
    np.testing.assert_array_equal(path[-1], second)
    gaps = norm(path[1:] - path[:-1])
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-4)  # even in angle
    np.testing.assert_allclose(latents.slerp(first, first, jnp.float32(0.3)), first, rtol=1e-6)
    middle = latents.slerp(first, second, jnp.float32(0.5))
    np.testing.assert_allclose(middle, path[4], rtol=1e-5, atol=1e-6)


def test_chains_and_grids_go_through_their_latents():
    path = latents.chain(Z, 5)
    assert path.shape == (16, 6, 5, 2)
    np.testing.assert_array_equal(path[::5], Z)
    square = latents.grid(Z, 3, 4)
    assert square.shape == (3, 4, 6, 5, 2)
    for corner, (row, column) in zip(Z, ((0, 0), (0, 3), (2, 0), (2, 3)), strict=True):
        np.testing.assert_array_equal(square[row, column], corner)
    np.testing.assert_allclose(square[1, 0], latents.slerp(Z[0], Z[2], jnp.float32(0.5)), rtol=1e-5)


def test_directions_find_what_separates_two_sets():
    true = RNG.normal(size=(6, 5, 2))
    true *= 3 / np.linalg.norm(true)
    positive = RNG.integers(0, 2, 400).astype(bool)
    z = RNG.normal(size=(400, 6, 5, 2)) + np.where(positive, 0.5, -0.5)[:, None, None, None] * true
    found = latents.mean_direction(z[positive], z[~positive])
    for direction in (found, latents.probe_direction(z, positive)):
        cosine = np.sum(direction * true) / norm(direction) / 3
        assert cosine > 0.85 and 2 < norm(direction) < 4
    great = latents.probe_direction(z, positive, ridge=1e9)
    assert np.sum(great * found) / norm(great) / norm(found) > 0.999
    other = latents.random_direction(jax.random.key(0), great)
    np.testing.assert_allclose(norm(other), norm(great), rtol=1e-5)


def test_adding_keeps_norms_and_moves_along_the_direction():
    moved = latents.add(Z, Z[0], jnp.arange(4, dtype=jnp.float32))
    np.testing.assert_allclose(norm(moved), norm(Z), rtol=1e-5)
    np.testing.assert_allclose(moved[0], Z[0], rtol=1e-6)
    assert np.sum((moved - Z)[1] * Z[0]) > 0
    assert latents.add(Z, Z[0], 2.0).shape == Z.shape


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: latents.slerp(Z[0], Z[0, :3], 0.5), "latents must have one shape"),
        (lambda: latents.chain(Z[:1], 4), "two latents and one step at least, got 1 and 4"),
        (lambda: latents.grid(Z[:3], 3, 3), "4 corners and sides of 2 or more, got 3 and 3 x 3"),
        (lambda: latents.mean_direction(Z[:0], Z), "the set 'toward' is empty"),
        (lambda: latents.probe_direction(Z, np.ones(4)), "the set 'away' is empty"),
        (lambda: latents.probe_direction(Z, np.arange(4) < 2, ridge=0), "ridge must be positive"),
    ],
)
def test_bad_latents(call, message):
    with pytest.raises(ValueError, match=message):
        call()
