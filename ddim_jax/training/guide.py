"""How a run's teacher is guided, as `config.guide` says: checks, and what it is guided away from.

    config.guide = dict(name="classifier_free", scale=1.5)      in two evaluations
    config.guide = dict(name="classifier_free")                 by config.loss.guidance, row by row
    config.guide = dict(name="autoguidance", weak="runs/short", scale=2.0)

Every loss that has a teacher takes it so, see `losses/guides.py`. Where the scale is the row's, a
student with `scalars=("guidance",)` is told it, and another learns the mean over the range.
"""

import ml_collections

from ddim_jax import abilities, checkpoints, losses
from ddim_jax.model import Model
from ddim_jax.names import make
from ddim_jax.training.teacher import check_same


def weak_of(config: ml_collections.ConfigDict, teacher: Model | None) -> Model | None:
    """The model away from which a teacher is guided, if `config.guide` names one.

    Raises:
        FileNotFoundError: there is no such network.
        ValueError: none is named where one is needed; it is damaged, or of other images, classes or
            another schedule than the teacher.
    """
    guide = config.get("guide") or {}
    if guide.get("name") != "autoguidance" or teacher is None:
        return None
    if not (isinstance(guide.get("weak"), str) and guide.weak):
        raise ValueError(
            "config.guide.name='autoguidance' needs a worse network to guide away from: name it "
            "with config.guide.weak, a workdir of fewer steps or a smaller network"
        )
    found = checkpoints.load(guide.weak, accelerated=False)
    check_same(config, found.config, "config.guide.weak")
    mine, theirs = (dict(model.config.schedule) for model in (teacher, found))
    if mine != theirs:
        raise ValueError(
            f"config.guide.weak is of the schedule {theirs}, the teacher of {mine}; choose another"
        )
    if set(teacher.inputs.declared) != set(found.inputs.declared):
        raise ValueError(
            f"config.guide.weak is told {sorted(found.inputs.declared)}, the teacher "
            f"{sorted(teacher.inputs.declared)}; choose another"
        )
    return found


def wrapped(
    config: ml_collections.ConfigDict, teacher: losses.Net, weak: losses.Net | None
) -> losses.Net:
    """A teacher, guided as a config says.

    Args:
        config: of the run.
        teacher: as it is.
        weak: what `weak_of` found.

    Raises:
        ValueError: an unknown name or option.
    """
    if not config.get("guide"):
        return teacher
    options = dict(config.guide)
    if weak is not None:
        options["weak"] = weak
    return make(losses.GUIDES, options, "guide", teacher)


def _check_null(config: ml_collections.ConfigDict, teacher: Model) -> None:
    """Raises ValueError for a teacher that is guided away from a null label it has not learnt."""
    guide, loss = config.get("guide"), config.loss
    by_loss = loss.get("guidance_scale") not in (None, 1)
    by_range = loss.name == "guided" and loss.get("guidance") is not None and not guide
    if not (by_loss or by_range or guide and guide.name == "classifier_free"):
        return
    guides = teacher.inputs.null and not teacher.inputs.takes("guidance")
    if guides and not abilities.knows_null(teacher):
        raise ValueError(
            f"{teacher.name} was trained without label dropout, so it has no null label to guide "
            "away from; leave out config.guide and config.loss.guidance_scale, or guide it by "
            "config.guide.name='autoguidance'"
        )


def check(config: ml_collections.ConfigDict, loss: losses.Loss, teacher: Model | None) -> None:
    """Raises ValueError where a teacher is not told the scale that its student learns, or twice."""
    guide, scales = config.get("guide"), config.loss.get("guidance")
    if guide and not loss.needs_teacher:
        raise ValueError(
            f"config.guide guides a teacher, and config.loss.name={config.loss.name!r} has none as "
            "it is set; leave it out, or set config.loss.distil=True where there is that option"
        )
    if not loss.needs_teacher or teacher is None:
        return
    _check_null(config, teacher)
    by_row, told = guide and guide.get("scale") is None, teacher.inputs.takes("guidance")
    if by_row and scales is None:
        raise ValueError(
            "config.guide without a scale guides each row by its own: set config.guide.scale, or "
            "config.loss.guidance=(1, 4)"
        )
    if by_row and told:
        raise ValueError(
            f"{teacher.name} is told its guidance scale: leave out config.guide, or set its scale"
        )
    guides = by_row or told or (config.loss.name == "guided" and not guide)
    if scales is not None and not guides:
        raise ValueError(
            f"config.loss.guidance={tuple(scales)} would not reach {teacher.name}, which is not "
            "told a scale: set config.guide={'name': 'classifier_free'}, or start from a network "
            "of a stage with config.loss.name='guided'"
        )
    one_copy = config.train.get("lora") and not config.get("teacher")
    if guide and guide.name == "autoguidance" and one_copy:
        raise ValueError(
            "config.train.lora changes the one teacher that it keeps, and config.guide."
            "name='autoguidance' needs two; leave out one of them"
        )
