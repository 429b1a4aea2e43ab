"""Shrinks any config so that it runs in seconds: the same parts, at the smallest sizes."""

import ml_collections

FRAMES = 3
"""Of clips."""
TOKENS = 530
"""A vocabulary that the captions of digits fill."""


def tiny(config: ml_collections.ConfigDict, levels: int = 2) -> ml_collections.ConfigDict:
    """The config with a network of 1 or 2 small levels on 8 x 8 digits, 2 steps of batch 4.

    In colour digits are 16 x 16, whose latents are 8 x 8. Of several stages the first two are left.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        channels = 3 if "autoencoder_kl" in (config.model.get("name"), _codec(config)) else 1
        side = 16 if channels == 3 else 8  # latents of 8 x 8
        config.data.update(name="digits", image_shape=(side, side, channels), resize=side)
        if config.data.get("frames"):
            side = max(side, 12)
            shape = (side, side, channels)
            config.data.update(name="moving_digits", image_shape=shape, resize=side)
            config.data.frames = min(config.data.frames, FRAMES)
        config.data.channels = channels
        if config.model.get("name", "unet") in ("unet", "video_unet"):
            _tiny_unet(config.model, levels)
        if config.model.get("name") in ("dit", "video_dit"):
            config.model.update(width=16, depth=1, heads=2, num_classes=10, remat="none")
            if not config.get("codec"):
                config.model.out_channels = channels
        for section in (config.model, config.get("codec") or {}):
            if section.get("name") == "autoencoder_kl":
                section.update(widths=(8, 8), groups=4)
        if config.model.get("vocabulary"):  # of tokens that the network learns itself
            tokens = dict(config.text.encoders[0], vocabulary=TOKENS, end=TOKENS - 1)
            config.text.encoders = (tokens,)
            config.model.update(vocabulary=TOKENS, text_features=8)
        if config.model.get("name") == "text_unet":
            config.model.update(widths=(8,), depths=(1,), heads=(2,), num_blocks=1, groups=4)
        config.train.update(steps=2, batch_size=4, log_every=1, checkpoint_every=2, sample_every=2)
        config.optimizer.warmup_steps = 1
        config.sample.update(steps=min(2, config.sample.get("steps", 2)), num_samples=2)
        if config.loss.get("group"):
            config.loss.group = 2  # two devices, of two images each
        if config.get("stages"):
            config.stages = [_tiny_stage(stage) for stage in config.stages[:2]]
    return without_lpips(config)


def _codec(config: ml_collections.ConfigDict) -> str | None:
    return (config.get("codec") or {}).get("name")


def _tiny_unet(model: ml_collections.ConfigDict, levels: int) -> None:
    """Shrinks a section; one shape for all, so that configs share programs where they can."""
    model.out_channels = 1
    if model.num_classes is None:
        model.num_classes = 10
    if model.get("time_heads"):
        model.update(num_classes=10, time_heads=2)
    model.update(channels=8, channel_mults=(1, 2)[:levels], num_blocks=1, patch_size=1)
    model.remat = "none"
    if model.attention_resolutions:
        model.attention_resolutions = (8 // 2 ** (levels - 1),)  # the last level's
    if model.get("head_channels"):
        model.head_channels = 8


def without_lpips(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with the default distance instead of LPIPS, whose weights are not here."""
    with config.unlocked():
        for section in (config, *config.get("stages", ())):
            if str(section.get("loss", {}).get("distance")).startswith("lpips"):
                del section["loss"]["distance"]
    return config


def _tiny_stage(stage: dict) -> dict:
    """A stage without its own lengths, of few pairs."""
    stage = {name: value for name, value in stage.items() if name not in ("train", "optimizer")}
    if "frames" in stage.get("data", {}):
        stage["data"] = dict(stage["data"], frames=FRAMES)
    if "pairs" in stage:
        stage["pairs"] = dict(count=8, solver="ddim", steps=2, batch_size=4)
    return stage
