"""Error-controlled integration of the probability-flow ODE: a tolerance in, an NFE out.

How many steps a picture needs depends on the picture, so this is the one sampler that is no table:
diffrax chooses the steps, for each sample its own. With `n = |alpha, sigma|`, `z = x / n` and the
angle `phi = atan2(sigma, alpha)` the flow is `dz/dphi = v`, and over `lam = log(alpha / sigma)`,
where `tan(phi) = exp(-lam)`,

    dz/dlam = -sin(phi) cos(phi) v        v = cos(phi) eps - sin(phi) x0

which dies out at both ends, for every schedule. It is integrated from the noisy end, but not from
below `lam_min`, to the cleanest trained level `schedule.t_min`, and the step from there to the
clean image is first order, as everywhere: `x0 = cos(phi) z - sin(phi) v` at the end.

An embedded pair of Runge-Kutta methods gives z and its local error; the step is accepted if

    rms(error / (atol + rtol |z|)) < 1        over one sample

and tried again with a smaller one if not. The last stage of a step is the first of the next, and
that of the last step the slope at the end, so with s stages

    nfe = 1 + (s - 1) (accepted + rejected)

Sources: Song et al. 2021 (ScoreSDE, arXiv:2011.13456), section 4.3; Kidger 2021 (diffrax,
arXiv:2202.02435); pairs: Bogacki & Shampine 1989, Dormand & Prince 1980, Tsitouras 2011.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax import sampling
from ddim_jax.denoisers import Apply, Denoiser
from ddim_jax.guidance import Guidance
from ddim_jax.names import check_range
from ddim_jax.predictions import Parameterization
from ddim_jax.schedules import NoiseLevel, Schedule

Array = Any

METHODS = {"bosh3": "Bosh3", "dopri5": "Dopri5", "tsit5": "Tsit5"}
"""Embedded pairs by name, as diffrax's classes (it takes a second to import, so on use only)."""

FIRST_STEP = 0.3
"""First step tried, in lam; given, because diffrax's own guess takes two evaluations."""

CONTROL = {"pcoeff": 0.3, "icoeff": 0.4}
"""Of diffrax's controller: a PI one (Gustafsson 1991) rejects fewer steps than its default."""


class Tolerance(NamedTuple):
    """Error allowed in a step; traced, so that new values do not recompile.

    Attributes:
        rtol: relative to the unit-variance state.
        atol: absolute.
    """

    rtol: Array
    atol: Array

    def validate(self) -> "Tolerance":
        """Returns it if it can be met.

        Raises:
            ValueError: a tolerance that is not a positive number.
        """
        for value in self:
            hint = "1e-3 looks exact, Song et al. use 1e-5"
            check_range("tolerance", value, "(0, inf)", hint)
        return self


class AdaptiveResult(NamedTuple):
    """What an integration returns; scalars per step size control, so [B] from a sampler.

    Attributes:
        x: the samples; NaN where failed.
        nfe: int32, network evaluations (a guided evaluation costs two forward passes).
        accepted: int32, steps taken.
        rejected: int32, steps tried in vain.
        failed: bool, the steps ran out before the clean end.
    """

    x: Array
    nfe: Array
    accepted: Array
    rejected: Array
    failed: Array

    def validate(self) -> "AdaptiveResult":
        """Returns the result, on the host, if every sample came to its end.

        Raises:
            ValueError: some did not.
        """
        failed = np.asarray(self.failed)
        if failed.any():
            steps = np.max(np.asarray(self.accepted) + np.asarray(self.rejected))
            raise ValueError(
                f"{failed.sum()} of {failed.size} samples did not meet the tolerance in {steps} "
                "steps; use a larger tolerance (float32 meets about 1e-6), or more max_steps"
            )
        return self


def integrate(
    denoise: Denoiser,
    schedule: Schedule,
    tolerance: Tolerance,
    x: Array,
    *,
    lam_min: float = -5.1,
    method: str = "bosh3",
    max_steps: int = 1000,
) -> AdaptiveResult:
    """Follows the probability flow of a denoiser, with one step size for all of `x`.

    Args:
        denoise: (x, level) -> Prediction; deterministic.
        schedule: the forward process.
        tolerance: error allowed in a step.
        x: [B, ...] a standard normal; B = 1 for a sample with steps of its own.
        lam_min: half log-SNR at which to start, where the schedule goes lower.
        method: a name in `METHODS`. At loose tolerances the low order is the better bargain: at
            1e-3 the digits of this package take 62 evaluations, with a sixth of the error that
            tsit5 makes with 67.
        max_steps: attempts after which to give up.

    Raises:
        ValueError: unknown method; nothing to integrate from lam_min.

    Source: Song et al. 2021, section 4.3 (there over t, with Dormand & Prince's pair).
    """
    first, last = noisy_end(schedule, lam_min), schedule.level(schedule.t_min)
    scale = schedule.prior_std(first.t) / np.hypot(first.alpha, first.sigma)
    begin, end = (float(schedule.half_log_snr(at.t)) for at in (first, last))
    z = jnp.asarray(scale, x.dtype) * x
    result, slope_at_end = solve(
        slope(denoise, schedule), z, begin, end, tolerance, method=method, max_steps=max_steps
    )
    cos = jnp.asarray(last.alpha / np.hypot(last.alpha, last.sigma), x.dtype)
    return result._replace(x=jnp.where(result.failed, jnp.nan, cos * result.x + slope_at_end / cos))


def slope(denoise: Denoiser, schedule: Schedule) -> Callable[[Array, Array], Array]:
    """`(lam, z) -> dz/dlam` of the probability flow."""

    def call(lam: Array, z: Array) -> Array:
        level = schedule.level(schedule.time_of(lam))
        n = jnp.hypot(level.alpha, level.sigma)
        cos, sin = level.alpha / n, level.sigma / n
        prediction = denoise(n * z, level)
        return -sin * cos * (cos * prediction.eps - sin * prediction.x0)

    return call


def solve(
    slope: Callable[[Array, Any], Any],
    state: Any,
    begin: float,
    end: float,
    tolerance: Tolerance,
    *,
    method: str = "bosh3",
    max_steps: int = 1000,
) -> tuple[AdaptiveResult, Any]:
    """Integrates any slope over lam, in either direction, to a tolerance in every leaf.

    Args:
        slope: (lam, state) -> the derivative of the state.
        state: pytree of arrays of one dtype; the error of each leaf is measured alone.
        begin: lam of the state.
        end: lam to go to.
        tolerance: error allowed in a step.
        method: see `integrate`.
        max_steps: see `integrate`.

    Returns:
        The result, whose x is the state at the end or where the steps ran out, and the slope there.

    Raises:
        ValueError: unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; it is one of {', '.join(METHODS)}")
    import diffrax

    def norm(error: Any) -> Array:
        squares = [jnp.mean(leaf**2) for leaf in jax.tree.leaves(error)]
        return jnp.sqrt(jnp.max(jnp.stack(squares)))

    dtype = jax.tree.leaves(state)[0].dtype
    rtol, atol = (jnp.asarray(value, dtype) for value in tolerance)
    first_step = np.copysign(FIRST_STEP, end - begin)
    begin, end, first_step = (jnp.asarray(value, dtype) for value in (begin, end, first_step))
    pair = getattr(diffrax, METHODS[method])()
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda lam, state, args: slope(lam, state)),
        pair,
        begin,
        end,
        first_step,
        state,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, norm=norm, **CONTROL),
        # (first step?, slope at the start): otherwise a first step tried twice pays for it twice
        solver_state=(jnp.asarray(False), slope(begin, state)),
        adjoint=diffrax.ForwardMode(),
        saveat=diffrax.SaveAt(t1=True, solver_state=True),
        max_steps=max_steps,
        throw=False,
    )
    result = AdaptiveResult(
        x=jax.tree.map(lambda leaf: leaf[0], solution.ys),
        nfe=1 + (pair.tableau.num_stages - 1) * solution.stats["num_steps"],
        accepted=solution.stats["num_accepted_steps"],
        rejected=solution.stats["num_rejected_steps"],
        failed=solution.result != diffrax.RESULTS.successful,
    )
    return result, solution.solver_state[1]


def noisy_end(schedule: Schedule, lam_min: float = -5.1) -> NoiseLevel:
    """The noisiest level, but not below lam_min.

    Raises:
        ValueError: there is nothing between it and the cleanest trained level.
    """
    noise, cleanest = schedule.t_span[0], schedule.half_log_snr(schedule.t_min)
    lam = max(float(schedule.half_log_snr(noise)), lam_min)
    if not -np.inf < lam < cleanest:
        raise ValueError(
            f"lam_min must be finite and below {cleanest:.2f}, where the {schedule.name} schedule "
            f"is cleanest, got {lam_min}; -5.1 is nearly pure noise"
        )
    return schedule.level(float(schedule.time_of(lam)) if lam == lam_min else noise)


def make_adaptive_sampler(
    apply: Apply,
    parameterization: Parameterization,
    schedule: Schedule,
    *,
    null_inputs: Callable[[Any], Any] | None = None,
    clip: str = "static",
    clip_options: dict | None = None,
    **options,
) -> Callable[..., AdaptiveResult]:
    """A jitted `f(params, tolerance, x, keys, inputs=None, guidance=None, known=None)`.

    It is called like a sampler of `sampling.make_sampler`, with a tolerance for the table, and
    answers with an `AdaptiveResult`; keys and known are not used, since it draws no noise.
    Each sample has step sizes of its own: it is the same picture (to rounding), for the same NFE,
    whatever its batch mates. They run in lockstep, so a batch takes as long as its slowest sample.

    Args:
        apply: the network, `(params, x, model_time, inputs) -> F`.
        parameterization: what it predicts.
        schedule: the forward process; unlike in a table, the levels are not known beforehand.
        null_inputs: see `sampling.make_sampler`.
        clip: see `sampling.make_sampler`.
        clip_options: see `sampling.make_sampler`.
        **options: `lam_min`, `method` and `max_steps` of `integrate`.

    Raises:
        ValueError: unknown clip or method; guidance given without `null_inputs`.
    """
    denoiser = sampling.make_denoiser(apply, parameterization, null_inputs, clip, clip_options)

    def sample(params, tolerance, x, keys=None, inputs=None, guidance=None, known=None):
        axes = None
        if guidance is not None:
            scale = jnp.broadcast_to(jnp.asarray(guidance.scale, x.dtype), x.shape[:1])
            guidance, axes = guidance._replace(scale=scale), Guidance(0, None, None, None)

        def one(x, inputs, guidance) -> AdaptiveResult:
            x, inputs = jax.tree.map(lambda leaf: leaf[None], (x, inputs))
            denoise = denoiser(params, inputs, guidance)
            result = integrate(denoise, schedule, tolerance, x, **options)
            return result._replace(x=result.x[0])

        return jax.vmap(one, in_axes=(0, 0, axes))(x, inputs, guidance)

    return jax.jit(sample)
