"""Draws samples: `python sample.py [--checkpoint=runs/digits] [--solver=ddim] [--steps=20] ...`.

Without --checkpoint it draws digits from the model that comes with the package.
`ddim_jax/commands/sample.py` has the flags, `ddim_jax/model.py` draws.
"""

from ddim_jax import interrupts

if __name__ == "__main__":
    interrupts.begin()  # before the imports that take seconds
    from ddim_jax.commands import sample

    sample.main()
