"""One row of any table, per sample, is what the loop does; rows of many solvers in one batch."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import keys, predictions, sampling, schedules
from ddim_jax.export import row
from ddim_jax.inputs import Input, Inputs
from ddim_jax.recipe import Recipe
from ddim_jax.solvers import SOLVERS

SHAPE, ROWS = (4, 4, 2), 24
SCHEDULE = schedules.cosine()
TOLERANCE = {"pndm": 1e-3, "dpm_solver_fast": 1e-3, "heun_churn": 1e-3}
"""Of solvers that extrapolate far in few steps, by which rounding grows."""
PARAMS = {"gain": jnp.float32(0.7)}


def apply(params, x, model_time, inputs):
    """A small v network without meaning, that uses all that it is told."""
    told = (inputs["label"] / 10 + model_time / 1000).reshape(-1, 1, 1, 1)
    if "guidance" in inputs:
        told = told * inputs["guidance"].reshape(-1, 1, 1, 1)
    return jnp.tanh(params["gain"] * x + told) - 0.3 * jnp.roll(x, 1, axis=1)


def stand_in(**declared):
    """What a row asks of a model."""
    label = {"label": Input((), "int32", 10)}
    return types.SimpleNamespace(
        inputs=Inputs(label | declared),
        parameterization=predictions.v,
        apply=apply,
        recipe=Recipe(),
        config=types.SimpleNamespace(loss={"label_dropout": 0.1}),
    )


def table_of(name, steps):
    return Recipe(solver=name, steps=steps).table(SCHEDULE)


@functools.cache
def loop(takes_guidance=False):
    null = (stand_in(guidance=Input()) if takes_guidance else stand_in()).inputs.nulled
    return sampling.make_sampler(apply, predictions.v, null_inputs=null)


def drawn(table, index, label, guidance, own=False):
    """What the loop draws: one sample, [*SHAPE]."""
    table = table.pad(ROWS, row.SLOTS)
    of_sample = keys.sample_keys(3, np.array([index]))
    x = sampling.initial_noise(of_sample, SHAPE)
    inputs = {"label": np.array([label], np.int32)}
    strength = sampling.Guidance(np.float32(guidance))
    if own:
        inputs, strength = inputs | {"guidance": np.float32([guidance])}, None
    return np.asarray(loop(own)(PARAMS, table, x, of_sample, inputs, strength).x[0])


def drawn_by_rows(tables, labels, guidance, model):
    """A sample of each table, all in one batch, one evaluation after the other."""
    of_samples = keys.sample_keys(3, np.arange(len(tables)))
    rows = [row.pack(table) for table in tables]
    starts = np.stack([table.start for table in tables])
    numbers = np.zeros(len(tables), np.int32)
    x = sampling.initial_noise(of_samples, SHAPE)
    carry = row.begin(x, starts, row.row_noise(of_samples, numbers, SHAPE))
    evaluate = jax.jit(row.make_evaluate(model))
    found = [None] * len(tables)
    for k in range(max(map(len, rows))):
        now = np.stack([r[min(k, len(r) - 1)] for r in rows])
        noise = row.row_noise(of_samples, numbers + k + 1, SHAPE)
        carry, _ = evaluate(PARAMS, now, carry, noise, {"label": labels}, guidance)
        for i, own in enumerate(rows):
            if k == len(own) - 1:
                found[i] = np.asarray(carry.point[i])
    return found


def test_every_solver_in_one_batch_is_drawn_as_alone():
    tables = [table_of(name, 3 + i % 4) for i, name in enumerate(SOLVERS)]
    assert max(len(table.slot) for table in tables) <= ROWS
    labels = (np.arange(len(tables)) % 10).astype(np.int32)
    guidance = np.linspace(1, 2, len(tables)).astype(np.float32)
    found = drawn_by_rows(tables, labels, guidance, stand_in())
    for i, name in enumerate(SOLVERS):
        wanted = drawn(tables[i], i, labels[i], guidance[i])
        np.testing.assert_allclose(found[i], wanted, atol=TOLERANCE.get(name, 2e-4), err_msg=name)


def test_a_network_that_is_told_its_guidance_is_told_it():
    model = stand_in(guidance=Input())
    tables, labels = [table_of("ddim", 4)] * 2, np.array([3, 5], np.int32)
    found = drawn_by_rows(tables, labels, np.float32([1.25, 2]), model)
    for i, scale in enumerate((1.25, 2)):
        wanted = drawn(tables[0], i, labels[i], scale, own=True)
        np.testing.assert_allclose(found[i], wanted, atol=2e-5)


def test_a_start_that_draws_noise_is_carried_out():
    table = table_of("ddim", 4)._replace(start=np.array([0.8, 0.6]))
    found = drawn_by_rows([table], np.array([3], np.int32), np.float32([1]), stand_in())
    np.testing.assert_allclose(found[0], drawn(table, 0, 3, 1.0), atol=2e-5)


@pytest.mark.parametrize("name", ["ddim", "dpm_solver++_3m", "rk4", "ddpm", "pndm"])
def test_rows_unpack_to_the_table_they_were_packed_from(name):
    table = table_of(name, 5).pad(21, row.SLOTS)
    back = jax.jit(row.unpack)(row.pack(table), np.float32(table.start))
    for field in ("store", "slot", "state", "history", "noise", "active", "start"):
        active = slice(None) if field in ("active", "start") else table.active
        wanted = np.asarray(getattr(table, field), np.float32)[active]
        np.testing.assert_array_equal(np.asarray(getattr(back, field), np.float32)[active], wanted)
    for field in ("alpha", "sigma", "model_time"):
        wanted = np.float32(getattr(table.level, field))[table.active]
        np.testing.assert_array_equal(getattr(back.level, field)[table.active], wanted)


def test_a_guidance_of_one_costs_one_pass_and_others_two():
    """Both are in the program, under a condition; a format without branches has the second."""
    carry = row.begin(jnp.zeros((2, *SHAPE)), np.array([1.0, 0.0]))
    arguments = (PARAMS, np.zeros((2, row.WIDTH), np.float32), carry, carry.point)
    arguments += ({"label": np.zeros(2, np.int32)}, np.ones(2, np.float32))
    for branches, primitive in ((True, True), (False, False)):
        text = str(jax.make_jaxpr(row.make_evaluate(stand_in(), branches=branches))(*arguments))
        assert ("cond[" in text) == primitive


def test_a_solver_that_keeps_more_than_a_row_has_room_for_is_named():
    table = table_of("ddim", 8)
    table = table.pad(len(table.slot), 7)
    with pytest.raises(ValueError, match="keeps 7 predictions, and a row has room for 6"):
        row.pack(table)


def test_all_solvers_fit_into_a_row():
    for name in SOLVERS:
        table = Recipe(solver=name, steps=12).table(SCHEDULE)
        assert row.pack(table).shape == (table.nfe, row.WIDTH), name
