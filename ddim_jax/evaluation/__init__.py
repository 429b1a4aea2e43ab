"""Quality, measured: features, distances, likelihood, and the curve of quality against evaluations.

`features.py` turns pictures into vectors (`inception.py`, `digits.py` are the networks),
`metrics.py` compares sets of vectors, `scores.py` gathers every number with its origin, `cells.py`
draws the samples of a sweep in shards, `plots.py` shows them; `density.py` and `bound.py` give bits
per dimension. The commands:

    python -m ddim_jax.evaluation.tradeoff      quality against evaluations
    python -m ddim_jax.evaluation.ruler         whether the distance can be trusted
    python -m ddim_jax.evaluation.likelihood    bits per dimension
"""
