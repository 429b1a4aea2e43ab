"""The solver table: its checks, padding, joining, and the numpy reference loop."""

import numpy as np
import pytest

from ddim_jax import schedules, solvers, strides
from ddim_jax.solvers import SOLVERS, State, concatenate
from ddim_jax.solvers.rows import BASE, NOISE, POINT, combine
from tests.oracles import Mixture

VP = schedules.vp_linear()
X = np.linspace(-2, 2, 9)


def table_of(name="heun", steps=6):
    return SOLVERS[name](VP, strides.uniform(VP, steps))


def normals(rows):
    return np.random.default_rng(0).standard_normal((rows, len(X)))


def with_value(table, field, index, value):
    array = getattr(table, field).copy()
    array[index] = value
    return table._replace(**{field: array})


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda t: t._replace(store=t.store[:3]), r"store must have shape \(11, 2\), got \(3, 2\)"),
        (
            lambda t: with_value(t, "history", 4, np.nan),
            "history is not finite in row 4; .*lam_min",
        ),
        (lambda t: with_value(t, "start", 0, np.inf), "start is not finite"),
        (lambda t: with_value(t, "slot", 3, 2), r"slots must be 0..1"),
        (lambda t: with_value(t, "active", 3, False), "padded rows must come last"),
        (lambda t: with_value(t, "history", (0, 0, 1), 0.5), "row 0 uses a history slot"),
        (
            lambda t: t._replace(level=t.level._replace(alpha=t.level.alpha * np.nan)),
            "level.alpha is not finite",
        ),
    ],
)
def test_validate(broken, message):
    table = table_of()
    assert table.validate() is table
    with pytest.raises(ValueError, match=message):
        broken(table).validate()


def test_a_table_from_where_a_solver_cannot_start_is_not_valid():
    schedule = schedules.rectified_flow()
    with np.errstate(all="ignore"):
        table = solvers.heun("sigma").make_table(schedule, strides.uniform(schedule, 4))
    with pytest.raises(ValueError, match="give the stride lam_min, or use another space"):
        table.validate()


@pytest.mark.parametrize("name", SOLVERS)
def test_padding_changes_nothing(name):
    table = table_of(name)
    padded = table.pad(24, 6).validate()
    assert len(padded.slot) == 24 and padded.history.shape == (24, 2, 6)
    assert padded.nfe == table.nfe and padded.deterministic == table.deterministic
    np.testing.assert_array_equal(
        padded.run_numpy(Mixture(), X, normals(24)),
        table.run_numpy(Mixture(), X, normals(24)[: table.nfe]),
    )


def test_slots_are_shared():
    """A slot is free again after its prediction's last use: the fewest that serve."""
    slots = {
        "ddim": 1, "heun": 2, "rk4": 4, "pndm": 6, "ipndm": 4, "dpm_solver_3": 2,
        "dpm_solver++_2m": 2, "dpm_solver++_3m": 3, "unipc_2": 3, "unipc_3": 4,
    }  # fmt: skip
    assert {name: table_of(name, 12).history.shape[-1] for name in slots} == slots


def test_combinations_add_and_scale():
    """The algebra that solvers are written with."""
    mixed = (2 * POINT - BASE / 4 + np.float64(3) * (POINT + NOISE)).weights
    assert mixed == {"point": 5.0, "base": -0.25, "noise": 3.0}
    assert combine([1.0, 2.0], [POINT, POINT]).weights == {"point": 3.0}


def test_padding_only_grows():
    with pytest.raises(ValueError, match="table of 11 rows and 2 slots to 10 rows and 2"):
        table_of().pad(10, 2)


@pytest.mark.parametrize("name", SOLVERS)
def test_concatenated_halves_are_the_whole(name):
    """For the solvers that remember nothing from step to step."""
    if table_of(name).history.shape[-1] > SOLVERS[name].stages or name == "heun_churn":
        return
    times, solver = strides.uniform(VP, 9), SOLVERS[name]
    whole = solver(VP, times)
    joined = concatenate(solver(VP, times[:4]), solver(VP, times[3:7]), solver(VP, times[6:]))
    joined.validate()
    assert joined.nfe == whole.nfe and joined.end == whole.end
    noise = normals(whole.nfe)
    np.testing.assert_allclose(
        joined.run_numpy(Mixture(), X, noise), whole.run_numpy(Mixture(), X, noise), atol=1e-13
    )


def test_concatenate_mixes_solvers():
    """First the noisy half by Heun, then DDIM: the slots of both fit."""
    times = strides.uniform(VP, 9)
    first, second = solvers.heun("flow")(VP, times[:6]), solvers.ddim()(VP, times[5:])
    between = first.run_numpy(Mixture(), X)
    joined = concatenate(first, second)
    np.testing.assert_allclose(
        joined.run_numpy(Mixture(), X), second.run_numpy(Mixture(), between), atol=1e-14
    )


def test_concatenate_starts_each_table_from_equal_points():
    """A first part that ends with base != evaluate does not leak into Heun, which reads base."""
    times = strides.uniform(VP, 6)
    first, second = solvers.ddim()(VP, times[:4]), solvers.heun("flow")(VP, times[3:])
    first = with_value(with_value(first, "history", (-1, 1, 0), 7.0), "state", (-1, 1, 1), 3.0)
    between = first.run_numpy_state(Mixture(), X)
    assert not np.allclose(*between)
    np.testing.assert_allclose(
        concatenate(first, second).run_numpy(Mixture(), X),
        second.run_numpy(Mixture(), between.evaluate),
        atol=1e-14,
    )


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (lambda a, b: [], "at least one table"),
        (lambda a, b: [b, a], "ends at t = 0.0, table 1 begins at 1.0; cut both from one stride"),
        (lambda a, b: [a.pad(20, 2), b], "table 0 is padded"),
    ],
)
def test_concatenate_errors(tables, message):
    times = strides.uniform(VP, 6)
    halves = solvers.ddim()(VP, times[:4]), solvers.ddim()(VP, times[3:])
    with pytest.raises(ValueError, match=message):
        concatenate(*tables(*halves))


def test_start_scales_and_adds_noise():
    table = table_of("ddim")._replace(start=np.array([3.0, 0.5]))
    assert not table.deterministic
    plain = table._replace(start=np.array([1.0, 0.0]))
    np.testing.assert_array_equal(
        table.run_numpy(Mixture(), X, start_noise=normals(1)[0]),
        plain.run_numpy(Mixture(), 3.0 * X + 0.5 * normals(1)[0]),
    )


def test_rows_do_what_they_say():
    """Two rows with every coefficient in use, computed by hand."""
    table = table_of("heun", 2)
    state = np.array([[[0.1, 0.2], [0.3, 0.4]], [[0.5, 0.6], [0.7, 0.8]], np.zeros((2, 2))])
    history = np.array([[[1.0, 0], [2.0, 0]], [[3.0, 4.0], [5.0, 6.0]], np.zeros((2, 2))])
    table = table._replace(
        store=np.array([[1.0, 2.0], [3.0, 4.0], [0, 0]]),
        slot=np.array([0, 1, 0]),
        state=state,
        history=history,
        noise=np.array([[0.1, 0.2], [0.3, 0.4], [0, 0]]),
        active=np.array([True, True, False]),
    )
    denoise = lambda x, level: (x + 1, x - 1)  # noqa: E731
    z = np.array([[1.0], [2.0]])
    # row 0: m0 = (2 + 1) + 2 (2 - 1) = 5
    evaluate, base = 0.1 * 2 + 0.2 * 7 + 1 * 5 + 0.1, 0.3 * 2 + 0.4 * 7 + 2 * 5 + 0.2
    m1 = 3 * (evaluate + 1) + 4 * (evaluate - 1)
    expected = (
        0.5 * evaluate + 0.6 * base + 3 * 5 + 4 * m1 + 0.3 * 2,
        0.7 * evaluate + 0.8 * base + 5 * 5 + 6 * m1 + 0.4 * 2,
    )
    got = table.run_numpy_state(denoise, State(np.array([2.0]), np.array([7.0])), z)
    np.testing.assert_allclose(np.concatenate(got), expected, rtol=1e-14)


def test_equal_points_start_equal():
    table = table_of("heun")
    np.testing.assert_array_equal(
        table.run_numpy(Mixture(), State(X, X)), table.run_numpy(Mixture(), X)
    )
