"""Strides: which times a sampler visits, `(schedule, steps, **options) -> times[steps + 1]`."""

from ddim_jax.strides.fixed import STRIDES, karras, log_snr, quadratic, uniform


def get(name: str):
    """The stride called `name`.

    Raises:
        ValueError: there is none; lists those there are.
    """
    if name not in STRIDES:
        raise ValueError(f"unknown stride {name!r}; the strides are {', '.join(STRIDES)}")
    return STRIDES[name]


__all__ = ["STRIDES", "get", "karras", "log_snr", "quadratic", "uniform"]
