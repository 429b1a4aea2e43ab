"""What is read from the text of compiled programs."""

import jax
import jax.numpy as jnp

from configs import digits
from ddim_jax import experiment, parallel, program_cost
from ddim_jax.networks import layers

COLLECTIVES = """
  %a = f32[3,4]{1,0} all-reduce(%x), replica_groups={}
  %b = (f32[10]{0}, bf16[2,5]{1,0}) all-reduce(%x, %y), to_apply=%add
  %c = (f32[8]{0}, f32[32]{0}) all-gather-start(%x), dimensions={0}
  %d = f32[32]{0} all-gather-done(%c)
  %e = f32[] add(%x, %y), metadata={op_name="all-reduce(not one)"}
"""

TPU = """HloModule jit_f, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0:T(128)} parameter(0)
  ROOT %inside = f32[8]{0:T(128)} negate(%p)
}

ENTRY %main (x: f32[8], y: bf16[4]) -> f32[8] {
  %x = f32[8]{0:T(128)} parameter(0)
  %y = bf16[4]{0:T(256)(128)(2,1)} parameter(1)
  %start = (f32[8]{0:T(128)S(1)}, f32[8]{0:T(128)}, u32[]{:S(2)}) copy-start(%x)
  %near = f32[8]{0:T(128)S(1)} copy-done(%start)
  %slice = ((f32[8]{0:T(128)}), f32[2]{0:T(128)S(1)}, u32[]{:S(2)}) slice-start(%x), slice={[0:2]}
  %part = f32[2]{0:T(128)S(1)} slice-done(%slice)
  %one = f32[8]{0:T(128)S(1)} fusion(%near, f32[8]{0:T(128)} %x), kind=kLoop, calls=%fused
  %two = (f32[8]{0:T(128)}, bf16[4]{0}) fusion(%one, %y), kind=kLoop, calls=%fused
  ROOT %out = f32[8]{0:T(128)} get-tuple-element(%two), index=0
}
"""


GATHER = """all-gather(%p), dimensions={0}, backend_config={"async_collective_fusion_config":{}}"""
TARGET = 'custom_call_target="AsyncCollective'
GOES_ON = f"""HloModule jit_f

%starts (p: f32[2]) -> (f32[2], f32[8], u32[]) {{
  %p = f32[2]{{0}} parameter(0)
  %g = f32[8]{{0}} {GATHER}
  ROOT %c = (f32[2]{{0}}, f32[8]{{0}}, u32[]) custom-call(%g), {TARGET}Start"
}}

%beside (p: f32[2], q: f32[8], r: f32[4]) -> (f32[4], f32[2], f32[8], f32[8]) {{
  %p = f32[2]{{0}} parameter(0)
  %q = f32[8]{{0}} parameter(1)
  %r = f32[4]{{0}} parameter(2)
  %work = f32[4]{{0}} negate(%r)
  %g = f32[8]{{0}} {GATHER}
  ROOT %t = (f32[4]{{0}}, f32[2]{{0}}, f32[8]{{0}}, f32[8]{{0}}) tuple(%work, %p, %q, %g)
}}

%ends (p: f32[2], q: f32[8]) -> f32[8] {{
  %p = f32[2]{{0}} parameter(0)
  %q = f32[8]{{0}} parameter(1)
  %g = f32[8]{{0}} {GATHER}
  ROOT %c = f32[8]{{0}} custom-call(%p, %q, %g), {TARGET}Done"
}}

ENTRY %main (x: f32[2], y: f32[4]) -> f32[8] {{
  %x = f32[2]{{0}} parameter(0)
  %y = f32[4]{{0}} parameter(1)
  %s = (f32[2]{{0}}, f32[8]{{0}}, u32[]) fusion(%x), kind=kCustom, calls=%starts
  %p = f32[2]{{0}} get-tuple-element(%s), index=0
  %q = f32[8]{{0}} get-tuple-element(%s), index=1
  %b = (f32[4]{{0}}, f32[2]{{0}}, f32[8]{{0}}, f32[8]{{0}}) fusion(%p, %q, %y), calls=%beside
  ROOT %e = f32[8]{{0}} fusion(%p, %q), kind=kCustom, calls=%ends
}}
"""
"""A collective that begins, goes on beside other work, and ends, as the TPU compiler writes it."""


def test_a_collective_that_goes_on_beside_other_work_is_sent_once():
    assert program_cost.collectives(GOES_ON) == {"all-gather": (1, 32)}
    read, written, token, work = 8, 8 + 32, 4, 2 * 16
    assert program_cost.traffic(GOES_ON) == read + written + token + work


def test_collectives_are_counted_with_the_bytes_of_their_results():
    found = program_cost.collectives(COLLECTIVES)
    assert found == {"all-reduce": (2, 48 + 40 + 20), "all-gather": (1, 128)}


def test_traffic_is_of_the_devices_memory_only():
    copied, sliced = 32, 8
    assert program_cost.traffic(TPU) == copied + sliced + 32 + (32 + 8 + 8)


def test_traffic_of_a_compiled_program_is_what_it_must_read_and_write():
    x = jnp.zeros((64, 128))
    text = jax.jit(lambda x: jnp.tanh(x) + 1).lower(x).compile().as_text()
    assert program_cost.traffic(text) == 2 * 4 * 64 * 128
    step = lambda x, _: (jnp.tanh(x) + 1, None)  # noqa: E731
    loop = jax.jit(lambda x: jax.lax.scan(step, x, None, length=50)[0])
    fifty = program_cost.traffic(loop.lower(x).compile().as_text())
    assert 50 * 2 * 4 * 64 * 128 <= fifty < 55 * 2 * 4 * 64 * 128


def test_of_an_array_a_loop_moves_the_parts_that_it_takes_and_puts():
    step = lambda carry, x: (carry, jnp.tanh(x) + 1)  # noqa: E731
    loop = jax.jit(lambda xs: jax.lax.scan(step, 0.0, xs)[1])
    text = loop.lower(jnp.zeros((50, 64, 128))).compile().as_text()
    each = 4 * 50 * 64 * 128  # read once and written once, beside zeros to write into
    assert 2 * each <= program_cost.traffic(text) < 4 * each


LOOP = """HloModule jit_f

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}

%body (p: (s32[], f32[10])) -> (s32[], f32[10]) {
  %inside = f32[10]{0} all-reduce(%x), to_apply=%sum
}

%until (p: (s32[], f32[10])) -> pred[] {
  %limit = s32[]{:T(128)} constant(7)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (x: f32[10]) -> f32[10] {
  %outside = f32[10]{0} all-reduce(%x), to_apply=%sum
  %loop = (s32[], f32[10]) while(%t), condition=%until, body=%body
}
"""


def test_collectives_in_loops_count_as_often_as_they_run():
    assert program_cost.collectives(LOOP) == {"all-reduce": (8, 8 * 40)}


def test_products_are_counted_as_the_mathematics_needs_them():
    def count(f, *shapes):
        return program_cost.product_flops(jax.make_jaxpr(f)(*(jnp.zeros(s) for s in shapes)))

    def convolve(x, k, stride=1):
        return layers.conv3x3(x, k, stride)

    assert count(jnp.matmul, (5, 8, 3), (3, 4)) == 2 * 5 * 8 * 3 * 4
    assert count(jax.jit(lambda a, b: jax.nn.relu(a @ b) @ b), (2, 4), (4, 4)) == 2 * 2 * 2 * 4 * 4
    looped = lambda x: jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=7)[0]  # noqa: E731
    assert count(looped, (3, 3)) == 7 * 2 * 27
    mesh = parallel.make_mesh()  # what each device does for its own rows
    assert count(parallel.by_rows(lambda w, x: x @ w, mesh), (3, 4), (8, 3)) == 2 * 8 * 3 * 4
    # along each side of 4 pixels the taps in the image are 2, 3, 3, 2; at stride 2 they are 3, 2
    assert count(convolve, (5, 4, 4, 2), (3, 3, 2, 7)) == 2 * 5 * 2 * 7 * 10**2
    strided = lambda x, k: convolve(x, k, 2)  # noqa: E731
    assert count(strided, (5, 4, 4, 2), (3, 3, 2, 7)) == 2 * 5 * 2 * 7 * 5**2
    # both gradients of a convolution need what it needs itself
    for f, taps in ((convolve, 10), (strided, 5)):
        both = jax.grad(lambda x, k, f=f: jnp.sum(f(x, k) ** 2), argnums=(0, 1))
        assert count(both, (5, 4, 4, 2), (3, 3, 2, 7)) == 3 * 2 * 5 * 2 * 7 * taps**2


def test_products_are_most_of_what_xla_counts():
    model = experiment.build(digits.get_config())
    params = jax.eval_shape(model.init, jax.random.key(0))
    inputs = {"label": jnp.zeros(4, jnp.int32)}
    given = (params, jnp.zeros((4, *model.sample_shape)), jnp.zeros(4), inputs)
    flops = jax.jit(model.apply).lower(*given).cost_analysis()["flops"]
    assert 0.9 < program_cost.product_flops(jax.make_jaxpr(model.apply)(*given)) / flops < 1
