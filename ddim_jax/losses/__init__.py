"""Training methods, one file each; every one makes a `Loss` from a `Net`.

    diffusion               denoising; flow matching; reflow, on pairs
    guided                  a student of a guided teacher, or of one that predicts something else
    progressive             one step of the student for two of the teacher
    consistency             CD, CT, iCT, ECT
    continuous_consistency  sCM
    shortcut, mean_flow     flows that are told how far to jump
    flow_map                the same on any schedule, by LSD, ESD or PSD
    moment_matching         IMM: such jumps, by the distribution of groups of them
    distribution_matching   DMD2, SiD, f-distill: a student against a critic
    autoencoder             pictures to latents and back

`time_samplers` and `level_pairs` draw the noise levels at which a loss is evaluated, `weightings`
weigh its error there, `guides` guide a teacher, `lpips` is a learned distance of images.
"""

from collections.abc import Callable

from ddim_jax.losses.autoencoder import autoencoder
from ddim_jax.losses.consistency import consistency
from ddim_jax.losses.continuous_consistency import continuous_consistency
from ddim_jax.losses.diffusion import diffusion
from ddim_jax.losses.distribution_matching import PARTS, distribution_matching
from ddim_jax.losses.flow_map import flow_map
from ddim_jax.losses.guided import guided
from ddim_jax.losses.guides import GUIDES
from ddim_jax.losses.level_pairs import PAIRS, POINTS, LevelPairs, adaptive_decay
from ddim_jax.losses.loss import Loss, Net, Parts
from ddim_jax.losses.mean_flow import mean_flow
from ddim_jax.losses.moment_matching import moment_matching
from ddim_jax.losses.progressive import progressive
from ddim_jax.losses.shortcut import shortcut
from ddim_jax.losses.time_samplers import TIMES
from ddim_jax.losses.weightings import WEIGHTINGS, Weighting

LOSSES: dict[str, Callable[..., Loss]] = {
    "diffusion": diffusion,
    "guided": guided,
    "progressive": progressive,
    "consistency": consistency,
    "continuous_consistency": continuous_consistency,
    "shortcut": shortcut,
    "mean_flow": mean_flow,
    "flow_map": flow_map,
    "moment_matching": moment_matching,
    "distribution_matching": distribution_matching,
    "autoencoder": autoencoder,
}
"""Losses by the name that configs use; each is made from a `Net` and its options."""
JUMPING = ("shortcut", "mean_flow", "flow_map", "moment_matching")
"""Those whose network is told how far to jump, the input "interval"."""

__all__ = [
    "GUIDES", "JUMPING", "LOSSES", "PAIRS", "PARTS", "POINTS", "TIMES", "WEIGHTINGS", "LevelPairs",
    "Loss", "Net", "Parts", "Weighting", "adaptive_decay", *LOSSES,
]  # fmt: skip
