"""Strides: which times a sampler visits, `(schedule, steps, **options) -> times[steps + 1]`."""

from ddim_jax.strides.fixed import STRIDES, karras, log_snr, quadratic, uniform

__all__ = ["STRIDES", "karras", "log_snr", "quadratic", "uniform"]
