"""Another name of `sanity_check`, which `python -m ddim_jax.evaluation.ruler` still runs."""

from ddim_jax.evaluation.sanity_check import main

if __name__ == "__main__":
    main()
