"""Progressive distillation of networks of clips to few steps, which know first frames too.

    python train.py --config=distill_clips
    python train.py --config=distill_clips:emoji_video --config.data.name=npz:emoji_video.npz \\
        --workdir=runs/distill_emoji_video
    python sample.py --checkpoint=runs/distill_clips/4_step

Starts from `moving_digits`, for 16, 8 and 4 steps, or from `emoji_video`, for 4, guided in the
first stage alone: the students have the guidance inside. The one of `emoji_video` trains what that
trained last, attention over frames and low-rank changes. In a third of the clips some frames are
known, as in the teacher's training, so that the student goes on from a first frame and fills in
between.
"""

import importlib

import ml_collections

from ddim_jax.names import lookup

LENGTHS = {"moving_digits": {16: 400, 8: 400, 4: 2400}, "emoji_video": {4: 1500}}
"""Teacher -> steps of its students -> their training steps."""
GUIDE = dict(name="classifier_free", scale=1.5)


def get_config(teacher: str = "moving_digits") -> ml_collections.ConfigDict:
    """Salimans & Ho 2022, algorithm 2; linear decay in every stage."""
    lengths = lookup(LENGTHS, teacher, "teacher of clips")
    config = importlib.import_module(f"configs.{teacher}").get_config()
    clips, dropout = config.stages[-1], config.loss.label_dropout
    config.start_from = f"runs/{teacher}/{clips['name']}"
    with config.ignore_type():
        for section in ("data", "model", "schedule", "train"):
            config[section].update(clips.get(section, {}))
        if lora := config.train.get("lora"):
            lora.whole = ("*time_attention*", "frame_rate*")
    config.loss = dict(name="progressive", steps=max(lengths), known=1 / 3, label_dropout=dropout)
    config.optimizer = dict(name="adam", learning_rate=3e-4, decay="linear", clip_norm=1.0, b2=0.99)
    config.ema = dict(name="constant", decay=0.99)
    config.train.update(checkpoint_every=200, sample_every=1000)
    config.stages = halvings(lengths, GUIDE)
    config.sample.update(solver="ddim", guidance_scale=1.0)
    return config


def halvings(lengths: dict[int, int], guide: dict) -> list[dict]:
    """A stage for each student, steps -> training steps; the first has a guided teacher."""
    stages = [
        dict(
            name=f"{steps}_step",
            loss=dict(steps=steps),
            train=dict(steps=length),
            sample=dict(steps=steps),
        )
        for steps, length in lengths.items()
    ]
    return [stages[0] | dict(guide=guide), *stages[1:]]
