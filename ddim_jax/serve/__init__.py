"""A server whose requests share evaluations of a network: `python -m ddim_jax.serve`.

    engine = Engine({"digits": ddim_jax.load("digits")}).start()
    job = drawing_job(engine.models["digits"], Asked(label=3, solver="unipc_2", steps=8))
    pictures = engine.submit(job).result()

A request is as many slots as it has pictures; a slot has a row of its own of a table of its own
(`export/row.py`), so that requests of different solvers, steps and guidance scales share one
evaluation. It joins at the next evaluation and leaves when its table is done. Nothing is compiled
after the start, whatever is asked.
"""
