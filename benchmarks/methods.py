"""What an update of each training method costs, read from traced train steps.

    python -m benchmarks.methods

Nothing is run: each method trains the bundled digits network from itself, and the products of its
step are counted. In units of one evaluation of a sample, where plain training takes 3: forward once
and backward twice. Numbers that are kept are those of the parameters, the optimizer's moments,
moving averages, teachers and critics, in units of the network's.
"""

import jax
import numpy as np

from configs import digits
from ddim_jax import checkpoints, parallel, program_cost
from ddim_jax.model import Model
from ddim_jax.training import loop, method

GRID = dict(name="grid", sigma_min=0.0)
FLOW = dict(schedule=dict(name="rectified_flow"), prediction=dict(name="flow"))
DISTIL = dict(name="flow_map", distil=True)
MATCHING = dict(name="distribution_matching")
CLASSIFIER_FREE = dict(guide=dict(name="classifier_free", scale=1.5))
CASES = {
    "`diffusion`, and reflow": (dict(name="diffusion"), (), {}),
    "`guided`": (dict(name="guided", guidance=(1.0, 4.0)), ("guidance",), {}),
    "`progressive`": (dict(name="progressive", steps=4), (), {}),
    "`consistency` from data": (dict(name="consistency", pairs=GRID), (), {}),
    "`consistency`, distilled": (
        dict(name="consistency", pairs=GRID, distil=True, target_decay=0.9), (), {},
    ),
    "the same, of a guided teacher": (
        dict(name="consistency", pairs=GRID, distil=True, target_decay=0.9), (), CLASSIFIER_FREE,
    ),
    "`continuous_consistency`": (dict(name="continuous_consistency", distil=True), (), {}),
    "`shortcut`": (dict(name="shortcut"), ("interval",), FLOW),
    "`mean_flow`": (dict(name="mean_flow"), ("interval",), FLOW),
    "the same, guided inside": (
        dict(name="mean_flow", omega=0.6, kappa=0.5, label_dropout=0.1), ("interval",), FLOW,
    ),
    "`mean_flow`, improved": (dict(name="mean_flow", improved=True), ("interval",), FLOW),
    "`flow_map`, lsd, distilled": (DISTIL | dict(kind="lsd"), ("interval",), {}),
    "`flow_map`, esd (AYF), distilled": (DISTIL | dict(kind="esd"), ("interval",), {}),
    "`flow_map`, psd, distilled": (DISTIL | dict(kind="psd"), ("interval",), {}),
    "`flow_map`, lsd, from data": (dict(name="flow_map", kind="lsd"), ("interval",), {}),
    "`moment_matching`": (dict(name="moment_matching"), ("interval",), {}),
    "`distribution_matching`, dmd": (MATCHING, (), {}),
    "the same, of a guided teacher ": (MATCHING | dict(guidance_scale=1.5), (), {}),
    "the same, with a head": (MATCHING | dict(guidance_scale=1.5, gan=0.01), (), {}),
    "`distribution_matching`, sid": (MATCHING | dict(objective="sid"), (), {}),
}  # fmt: skip
"""Name -> loss, inputs of the student beside its teacher's, other fields of the config."""


def config_of(loss: dict, scalars: tuple, fields: dict):
    """The config of a method that starts from the bundled network."""
    config = digits.get_config()
    with config.unlocked():
        config.start_from, config.loss = "digits", loss
        config.model.scalars = scalars
        config.update(fields)
        config.sample = dict(
            num_samples=1, solver="consistency", solver_options=dict(sigma_min=0.0),
            stride="uniform", steps=1,
        )  # fmt: skip
        if scalars:
            config.sample = dict(num_samples=1, solver="ddim", steps=1)
    return config


def cost(name: str, start: Model) -> tuple[float, float]:
    """Evaluations of a sample, and numbers kept over those of the network."""
    config, mesh = config_of(*CASES[name]), parallel.make_mesh(jax.devices()[:1])
    built = method.build(config, start, mesh)
    state = loop.abstract_state(config, built, start, mesh)
    rows = config.train.batch_size
    batch = {"image": jax.ShapeDtypeStruct((rows, *built.model.sample_shape), np.uint8)}
    batch["label"] = jax.ShapeDtypeStruct((rows,), np.int32)
    flops = program_cost.product_flops(built.step.trace(state, batch).jaxpr)
    floats = [leaf.size for leaf in jax.tree.leaves(state) if leaf.dtype == np.float32]
    return flops / rows / evaluation(start), sum(floats) / count(start.params)


def evaluation(model: Model) -> int:
    """Operations of the products of one evaluation of one sample."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    traced = jax.make_jaxpr(model.apply)(shapes, *model.example())
    return program_cost.product_flops(traced)


def count(tree) -> int:
    """How many numbers a tree holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def main() -> None:
    """Prints the table."""
    start = checkpoints.load("digits")
    print("| method | evaluations | numbers kept |\n|---|---|---|")
    for name in CASES:
        evaluations, kept = cost(name, start)
        print(f"| {name.strip()} | {evaluations:.1f} | {kept:.1f} |", flush=True)


if __name__ == "__main__":
    main()
