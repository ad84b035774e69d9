"""Settings of the ImageNet recipes, beside those of the papers and of their authors' code."""

from dataclasses import asdict
from typing import Any

import pytest

from hardpatch.configuration import config
from hardpatch.configuration.sections import RunConfig
from hardpatch.pretrain import recipes

# Table S1 of the paper, Sec. 3.4 and the reference code; MAE's ViT-B/16.
HPM = {
    "method.host": "mae",
    "method.mask": "random",
    "method.mask_ratio": 0.75,
    "method.alpha_start": 0.0,
    "method.alpha_end": 0.5,
    "method.momentum_start": 0.999,
    "method.momentum_end": 0.9999,
    "model.decoder_depth": 8,
    "model.decoder_width": 512,
    "data.crop_scale": (0.2, 1.0),
    "data.color_jitter": 0.0,
    "optim.base_lr": 1.5e-4,
    "optim.betas": (0.9, 0.95),
    "optim.weight_decay": 0.05,
    "optim.clip": 5.0,
    "optim.schedule": "cosine",
    "batch_size": 4096,
}
# UM-MAE's scripts; they pass no norm to clip at.
UM_MAE = {
    "method.host": "mae",
    "method.mask": "grid",
    "method.mask_ratio": 0.75,
    "method.secondary_ratio": 0.25,
    "method.target": "normalized_pixels",
    "method.predicting_loss": "none",
    "model.decoder_depth": 2,
    "model.decoder_width": 512,
    "data.crop_scale": (0.2, 1.0),
    "optim.base_lr": 1.5e-4,
    "optim.betas": (0.9, 0.95),
    "optim.weight_decay": 0.05,
    "optim.clip": None,
    "batch_size": 4096,
}
# SimMIM's configuration of ViT-B for 800 epochs: 1e-4 for 512 images, divided by ten at epoch 700.
SIMMIM = {
    "method.host": "simmim",
    "method.mask_unit": 32,
    "method.mask_ratio": 0.6,
    "model.positions": "relative",
    "model.layer_scale": 0.1,
    "model.drop_path": 0.1,
    "data.crop_scale": (0.67, 1.0),
    "optim.lr": 4e-4,
    "optim.schedule": "step",
    "optim.step_at": 700 / 800,
    "optim.step_factor": 0.1,
    "optim.betas": (0.9, 0.999),
    "optim.weight_decay": 0.05,
    "optim.clip": 5.0,
    "batch_size": 2048,
}
# BEiT's README and script, and Appendix on pre-training: 75 of 196 patches, color jitter.
BEIT = {
    "method.host": "beit",
    "method.mask": "block",
    "model.positions": "relative",
    "model.layer_scale": 0.1,
    "model.drop_path": 0.1,
    "data.crop_scale": (0.08, 1.0),
    "data.color_jitter": 0.4,
    "optim.lr": 1.5e-3,
    "optim.min_lr": 1e-5,
    "optim.schedule": "cosine",
    "optim.betas": (0.9, 0.98),
    "optim.weight_decay": 0.05,
    "optim.clip": 3.0,
    "batch_size": 2048,
}
# iBOT's paper, script and the arguments of its ViT-B/16.
IBOT = {
    "method.host": "ibot",
    "model.positions": "learned",
    "method.mask": "block",
    "method.mask_ratio": 0.3,
    "method.mask_ratio_spread": 0.2,
    "method.momentum_start": 0.996,
    "method.momentum_end": 1.0,
    "method.momentum_warmup": 1.0,
    "method.momentum_schedule": "cosine",
    "model.drop_path": 0.1,
    "data.crop_scale": (0.32, 1.0),
    "ibot.local_crops": 10,
    "ibot.local_size": 96,
    "ibot.local_scale": (0.05, 0.32),
    "ibot.outputs": 8192,
    "ibot.head_hidden": 2048,
    "ibot.head_bottleneck": 256,
    "optim.base_lr": 7.5e-4,
    "optim.min_lr": 2e-6,
    "optim.schedule": "cosine",
    "optim.betas": (0.9, 0.999),
    "optim.weight_decay": 0.04,
    "optim.weight_decay_end": 0.4,
    "batch_size": 1024,
}
SOURCES: dict[str, tuple[dict[str, Any], int, dict[str, float]]] = {
    "imagenet_base_200": (HPM, 200, {"optim.warmup": 10, "method.momentum_warmup": 100}),
    "imagenet_base_800": (HPM, 800, {"optim.warmup": 10, "method.momentum_warmup": 100}),
    "imagenet_large_200": (HPM | {"model.size": "large"}, 200, {"optim.warmup": 40, "method.momentum_warmup": 100}),
    "imagenet_large_800": (HPM | {"model.size": "large"}, 800, {"optim.warmup": 40, "method.momentum_warmup": 100}),
    "ummae_imagenet_base_200": (UM_MAE, 200, {"optim.warmup": 10}),
    "simmim_imagenet_base_800": (SIMMIM, 800, {"optim.warmup": 10}),
    "hpm_simmim_imagenet_base_800": (SIMMIM, 800, {"optim.warmup": 10, "method.momentum_warmup": 100}),
    "beit_imagenet_base_800": (BEIT, 800, {"optim.warmup": 10}),
    "beit_imagenet_base_200": (BEIT, 200, {"optim.warmup": 10}),
    "hpm_beit_imagenet_base_200": (BEIT, 200, {"optim.warmup": 10, "method.momentum_warmup": 100}),
    "ibot_imagenet_base_400": (
        IBOT,
        400,
        {"optim.warmup": 10, "ibot.teacher_temperature_warmup": 50, "ibot.frozen_last_layer": 3},
    ),
    "hpm_ibot_imagenet_base_50": (
        IBOT,
        50,
        {"optim.warmup": 10, "ibot.teacher_temperature_warmup": 30, "ibot.frozen_last_layer": 3},
    ),
}
"""Recipe, settings of its source, its epochs, and the lengths in epochs of what happens at the beginning."""


def value(run: RunConfig, name: str) -> Any:
    section, _, setting = name.rpartition(".")
    values = asdict(run)
    return values[section][setting] if section else values[setting]


@pytest.mark.parametrize("name", SOURCES)
def test_a_recipe_has_the_settings_of_its_source(name: str) -> None:
    settings, epochs, lengths = SOURCES[name]
    run = config.build(recipes.read(name))
    assert {setting: value(run, setting) for setting in settings} == settings
    assert run.epochs == epochs
    assert {setting: value(run, setting) * epochs for setting in lengths} == pytest.approx(lengths)
    assert (run.image_size, run.model.patch_size) == ((224, 224), 16)


def test_masked_patches_of_the_recipes() -> None:
    counts = {"beit_imagenet_base_200": 75, "simmim_imagenet_base_800": 30, "attmask_imagenet_base_400": 53}
    for name, masked in counts.items():
        run = config.build(recipes.read(name))
        assert run.masking.counts(run.method.mask_ratio, 0.0)[0] == masked


def test_only_the_runs_of_the_paper_name_it() -> None:
    """The paper trains MAE's sizes for 200 and 800 epochs, BEiT for 200 and iBOT for 50, all on ImageNet."""
    named = {name for name in recipes.names() if "(paper, " in recipes.text(name)}
    own = {name for name in recipes.names() if name.startswith("imagenet_")}
    hosts = {"beit_imagenet_base_200", "ibot_imagenet_base_50"}
    assert named == own | hosts | {f"hpm_{name}" for name in hosts}
