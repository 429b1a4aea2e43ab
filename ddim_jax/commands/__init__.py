"""The commands `sample` and `train`; `ddim_jax/__main__.py` lists all, the others among them."""
