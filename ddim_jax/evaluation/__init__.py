"""Measures quality: distances between sets of pictures, likelihood, quality against evaluations.

    features, feature_networks    pictures to vectors; loads the networks that do it by name
    digits, inception             the two networks (`inception_network.py` is the second's layers)
    metrics, references           distances between sets of vectors; statistics of data as files
    scores                        all metrics of a set of samples, and where the numbers come from
    sweep, shards                 the cells of a sweep and their samples on disk
    results, plots                files and plots of a sweep
    density, bound                bits per dimension by probability flow and by variational bound

Commands:

    python -m ddim_jax.evaluation.tradeoff        measures quality against network evaluations
    python -m ddim_jax.evaluation.times           searches the times of a few-step sampler
    python -m ddim_jax.evaluation.likelihood      measures bits per dimension
    python -m ddim_jax.evaluation.straightness    measures how straight the paths of a flow are
    python -m ddim_jax.evaluation.sanity_check    checks that a distance ranks altered pictures well
    python -m ddim_jax.evaluation.own_features    trains a feature network on one's own pictures
    python -m ddim_jax.evaluation.digits          trains the digit classifier
    python -m ddim_jax.evaluation.inception       converts the weights of the FID network
"""
