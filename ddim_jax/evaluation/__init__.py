"""Quality, measured: features, distances, likelihood, and the curve of quality against evaluations.

`features.py` turns pictures into vectors, `metrics.py` compares sets of vectors, `likelihood.py`
gives bits per dimension, `cells.py` draws the samples of a sweep in shards, and

    python -m ddim_jax.evaluation.tradeoff

puts them together.
"""
