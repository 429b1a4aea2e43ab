"""Shrinks any config so that it runs in seconds: the same parts, at the smallest sizes."""

import ml_collections


def tiny(config: ml_collections.ConfigDict, levels: int = 2) -> ml_collections.ConfigDict:
    """The config with a network of 1 or 2 small levels on 8 x 8 digits, 2 steps of batch 4.

    Of several stages the first two are left.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.update(name="digits", image_shape=(8, 8, 1), resize=8)
        config.model.out_channels = 1
        if config.model.num_classes is None:
            config.model.num_classes = 10
        # one shape for all, so that configs share compiled programs where they can
        config.model.update(channels=8, channel_mults=(1, 2)[:levels], num_blocks=1, patch_size=1)
        config.model.remat = "none"
        if config.model.attention_resolutions:
            config.model.attention_resolutions = (8 // 2 ** (levels - 1),)  # the last level's
        if config.model.get("head_channels"):
            config.model.head_channels = 8
        config.train.update(steps=2, batch_size=4, log_every=1, checkpoint_every=2, sample_every=2)
        config.optimizer.warmup_steps = 1
        config.sample.update(steps=2, num_samples=2)
        if config.get("stages"):
            config.stages = [_tiny_stage(stage) for stage in config.stages[:2]]
    return without_lpips(config)


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
    if "pairs" in stage:
        stage["pairs"] = dict(count=8, solver="ddim", steps=2, batch_size=4)
    return stage
