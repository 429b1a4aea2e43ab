"""The list of commands: `python -m ddim_jax COMMAND ...`, or `ddim-jax COMMAND ...`."""

import importlib
import sys

from ddim_jax import interrupts

COMMANDS = {
    # name: (module with main(argv), what it does)
    "sample": ("ddim_jax.commands.sample", "draw pictures from a checkpoint"),
    "train": ("ddim_jax.commands.train", "train or distil the model of a config"),
    "plan": ("ddim_jax.commands.train", "what a train step needs on devices that are not here"),
    "export": ("ddim_jax.checkpoints.__main__", "write a checkpoint as one file, or for diffusers"),
    "deploy": ("ddim_jax.export.__main__", "write a model as StableHLO, ONNX, LiteRT, a web page"),
    "serve": ("ddim_jax.serve.__main__", "draw for clients over HTTP, many at a time"),
    "demo": ("ddim_jax.demo", "show a page that draws, inverts, completes, interpolates"),
    "edit": ("ddim_jax.edit", "invert, interpolate, inpaint, translate pictures"),
    "fit": ("ddim_jax.strides.fit", "learn strides for a solver and a number of steps"),
    "tradeoff": ("ddim_jax.evaluation.tradeoff", "plot quality against network evaluations"),
    "times": ("ddim_jax.evaluation.times", "search the times of a few-step sampler by quality"),
    "likelihood": ("ddim_jax.evaluation.likelihood", "measure bits per dimension"),
    "straightness": ("ddim_jax.evaluation.straightness", "measure how straight a flow's paths are"),
    "latents": ("ddim_jax.data.latents", "encode a data set to latents, once"),
    "features": ("ddim_jax.evaluation.own_features", "train a feature network on own pictures"),
    "retrieval": ("ddim_jax.evaluation.retrieval", "say how often the asked emoji is drawn"),
    "selfcheck": ("ddim_jax.selfcheck", "check this installation, for an issue about it"),
    "sanity": ("ddim_jax.evaluation.sanity_check", "check a distance on real and damaged pictures"),
}
"""Commands by name."""


def usage() -> str:
    """The commands, a line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ddim-jax COMMAND [flags]      (or python -m ddim_jax COMMAND [flags])",
            "",
            *lines,
            "",
            "ddim-jax COMMAND --help lists the flags of a command.",
        ]
    )


def main(argv: list[str] | None = None) -> None:
    """Runs the command that the first argument names."""
    if argv is None:
        interrupts.begin()  # before the imports that take seconds
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("--help", "-h", "help"):
        print(usage())
        return
    if name not in COMMANDS:
        sys.exit(f"ddim-jax: no command {name!r}\n\n{usage()}")
    if name == "plan" and not {"-h", "--help"} & set(rest):
        if not rest or rest[0].startswith("-"):
            sys.exit("ddim-jax plan: say the devices first, like ddim-jax plan v5e:4x4")
        rest = [f"--plan={rest[0]}", *rest[1:]]
    sys.argv = [f"ddim-jax {name}", *rest]  # by which argparse and absl call the command
    command = importlib.import_module(COMMANDS[name][0])
    sys.modules["__main__"].__doc__ = command.__doc__  # with which absl's --help begins
    command.main(rest)


if __name__ == "__main__":
    main()
