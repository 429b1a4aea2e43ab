"""Inductive moment matching (IMM): groups of jumps from two times must be distributed alike.

A network with `scalars=("interval",)`, told how far its jump goes, jumps by one step of DDIM, as in
`flow_map`. From x_t, and from x_r of the same data and noise a little nearer to the data, it must
draw the same distribution at s <= r <= t. M rows are a group with t, r and s in common, and

    loss = mean over groups of  w (mean k(y_t, y_t') + mean k(y_r, y_r') - 2 mean k(y_t, y_r'))

    y_t = f(x_t, t, s),   y_r = held(f(x_r, r, s)),   k(y, y') = exp(-|y - y'| / (c D))

over all M x M pairs of a group, with D numbers in a sample, c = |df / dF| of the network's output
F, and the same dropout in both. No teacher, no moving average, no derivative by time. With M = 1
and k = -|y - y'|^2 it is twice consistency training.

In R, the noise ratio sigma / alpha over the data's standard deviation, the times are

    log R_t normal, cut at `most`;   R_s likewise, cut at R_t;   R_r = max(R_s, R_t - most / 2^n)

and with b, a and the time tau = R / (1 + R) of a straight path, whose log-SNR is -2 log R,

    w = 1/2 sigmoid(b - log_snr) (-d log_snr / d tau) (1 - tau)^a / ((1 - tau)^2 + tau^2)

Rows keep labels of their own: batches come in any order, and every row is compared with every other
of its group, whatever its label. The pairs of one row with itself learn what a label means, the
others the mixture of all, and the exact jump of each label is best for both.

Source: Zhou et al. 2025 (arXiv:2503.07565), equations 12 and 13, appendices C and D.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from ddim_jax.losses.loss import Loss, Net, add_noise, check_dropout, conditions, split
from ddim_jax.names import check_range
from ddim_jax.predictions import predict
from ddim_jax.schedules import NoiseLevel

Array = Any
NEAREST = 1e-8
"""Least squared distance of two samples: below it there is no gradient."""
held = jax.lax.stop_gradient


def moment_matching(
    net: Net,
    *,
    group: int = 4,
    log_normal: tuple[float, float] | None = (-1.1, 2.0),
    most: float = 160.0,
    halvings: int = 12,
    bias: float = 4.0,
    power: float = 1.0,
    sigma_data: float = 0.5,
    label_dropout: float = 0.0,
) -> Loss:
    """Two sets of jumps to one time, compared by a kernel.

    Args:
        net: the network, which takes "interval"; on any schedule.
        group: M, rows of a batch, one behind the other, that share their times; divides the rows
            that a device takes at a time.
        log_normal: (mean, std) of log R; None: tau_t is uniform, and tau_s below it.
        most: greatest R; draw from there, by the stride's `lam_min=-log(most * sigma_data)`.
        halvings: n; r is nearer to t the greater it is.
        bias: b, how much weight goes to low noise.
        power: a; 1 for one step, 2 for several, with less weight where there is much noise.
        sigma_data: standard deviation of the data: 0.5 of pictures, 1 of latents.
        label_dropout: probability that the inputs of a row become null, for both jumps.

    Raises:
        ValueError: an option out of range; of the loss, rows that make no whole groups.
    """
    _check(group, log_normal, most, halvings, bias, power, sigma_data, label_dropout)
    noise = net.schedule.half_log_snr(net.schedule.t_span[0])
    most = min(most, float(np.exp(-noise)) / sigma_data)  # a discrete schedule may end before
    gap = most / 2**halvings

    def compute(params, frozen, batch, keys, step):
        data = batch["image"]
        _check_rows(len(data), group)
        time_keys, eps_key, inputs_key, dropout_keys = split(keys, 4)
        ratios = _ratios(time_keys[::group], log_normal, most, gap)
        levels = [_level(net, sigma_data * ratio) for ratio in ratios]
        t, r, s = (NoiseLevel(*(jnp.repeat(of, group) for of in level)) for level in levels)
        eps = net.noise(eps_key, data)
        inputs = conditions(batch, inputs_key, net.null, label_dropout)

        def jump(params, start):
            told = inputs | {"interval": start.t - s.t}
            x = add_noise(data, eps, start)
            return add_noise(*net.predict(params, x, start, told, dropout_keys), s)

        sets = jump(params, t), held(jump(held(params), r))
        size = data[0].size
        reach = jnp.maximum(_reach(net, levels[0], levels[2]), 1e-6)
        kernel = _laplace(size * reach)
        apart = _discrepancy(*(y.reshape(-1, group, size) for y in sets), kernel)
        value = jnp.mean(_weight(ratios[0], bias, power) * apart)
        return value, {"loss": value, "mse_jumps": jnp.mean((sets[0] - sets[1]) ** 2)}

    return Loss(compute, group=group)


def _discrepancy(x: Array, y: Array, kernel: Callable[[Array], Array]) -> Array:
    """The squared distance of two sets by a kernel (MMD), [G].

    Args:
        x: [G, M, D].
        y: [G, M, D].
        kernel: of squared distances [G, M, M].
    """

    def mean(a, b):
        return jnp.mean(kernel(jnp.sum((a[:, :, None] - b[:, None]) ** 2, axis=-1)), axis=(1, 2))

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def _laplace(width: Array) -> Callable[[Array], Array]:
    """`exp(-distance / width)` with widths [G], less 1, which cancels."""
    return lambda squared: jnp.expm1(
        -jnp.sqrt(jnp.maximum(squared, NEAREST)) / width[:, None, None]
    )


def _reach(net: Net, t: NoiseLevel, s: NoiseLevel) -> Array:
    """How much a jump from t to s moves by one of the network's output, [G]."""
    one = jnp.ones_like(t.sigma)
    return jnp.abs(add_noise(*predict(net.parameterization, 0 * one, t, one), s))


def _weight(ratio: Array, bias: float, power: float) -> Array:
    """w in terms of R alone, finite at both ends."""
    low = np.exp(bias) * ratio
    return low * (1 + ratio) ** (4 - power) / ((1 + low * ratio) * (1 + ratio**2))


def _ratios(
    keys: Array, log_normal: tuple[float, float] | None, most: float, gap: float
) -> tuple[Array, Array, Array]:
    """R of t, r and s, [G] each: `s <= r <= t`."""
    u = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
    parts = u[:, 0], u[:, 0] * u[:, 1]  # of the distribution up to its end: the second is below
    if log_normal is None:
        t, s = (part * most / (1 + most) for part in parts)
        t, s = t / (1 - t), s / (1 - s)
    else:
        mean, std = log_normal
        end = norm.cdf((np.log(most) - mean) / std)
        t, s = (jnp.exp(mean + std * norm.ppf(end * part)) for part in parts)
    return t, jnp.maximum(t - gap, s), s


def _level(net: Net, ratio: Array) -> NoiseLevel:
    return net.schedule.level(net.schedule.time_of(-jnp.log(ratio)))


def _check_rows(rows: int, group: int) -> None:
    if rows % group:
        raise ValueError(
            f"config.loss.group must divide the {rows} rows that are taken at a time, got {group}"
        )


def _check(group, log_normal, most, halvings, bias, power, sigma_data, label_dropout) -> None:
    check_dropout(label_dropout)
    check_range("config.loss.group", group, "[1, inf)", "4 is usual", whole=True)
    check_range("config.loss.most", most, "(0, inf)", "160 is usual")
    check_range("config.loss.halvings", halvings, "[0, 30]", "12 is usual", whole=True)
    check_range("config.loss.bias", bias, "[-50, 50]", "4 is usual")
    check_range("config.loss.power", power, "[0, 4]", "1 or 2 is usual")
    check_range("config.loss.sigma_data", sigma_data, "(0, 1000]", "0.5 is usual")
    if log_normal is None:
        return
    if not isinstance(log_normal, (list, tuple)) or len(log_normal) != 2:
        raise ValueError(
            f"config.loss.log_normal must be (mean, std) or None, got {log_normal}; (-1.1, 2) is "
            "usual"
        )
    check_range("the mean of config.loss.log_normal", log_normal[0], "[-50, 50]", "-1.1 is usual")
    check_range("the std of config.loss.log_normal", log_normal[1], "(0, 50]", "2 is usual")
