"""Moved in version 0.2 to `ddim_jax.checkpoints`; the command still runs from here until 0.3."""

if __name__ != "__main__":
    raise ImportError(
        "ddim_jax.models.pretrained is now ddim_jax.checkpoints: ddim_jax.load(name) gives a "
        "Model, and ddim_jax.checkpoints.save(path, model) writes one"
    )

from ddim_jax.checkpoints.__main__ import main  # noqa: E402

main()
