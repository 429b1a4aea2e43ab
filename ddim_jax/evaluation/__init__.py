"""Measures quality: distances between sets of pictures, likelihood, quality against evaluations.

    features, feature_networks    pictures to vectors; loads the networks that do it by name
    digits, inception             two of them (`inception_network.py` is the second's layers)
    emoji_encoder, emoji_damage   a third, and how pictures are damaged while it learns
    gallery                       real pictures by name and style, to look for an asked one
    asked                         what samples are asked for: classes, or texts of data
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
    python -m ddim_jax.evaluation.emoji           trains the emoji encoder
    python -m ddim_jax.evaluation.retrieval       says how often the asked emoji is drawn
    python -m ddim_jax.evaluation.inception       converts the weights of the FID network
"""
