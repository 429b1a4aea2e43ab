"""Few-step diffusion in JAX."""
