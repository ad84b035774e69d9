"""Scales of a study: the paper's runs, runs for one GPU, or runs that only check that everything works."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hardpatch.pretrain import config, recipes
from hardpatch.pretrain.sections import RunConfig
from hardpatch.study.rows import StudyRow, Table

Settings = Mapping[str, Any]
"""Values by dotted name, as in ``{"optim.warmup": 0.1}``."""


@dataclass(frozen=True)
class Scale:
    """Recipes by host, and the settings that differ from them."""

    about: str
    recipes: Mapping[str, str]
    """Recipe names by host; hosts without one take that of mae."""
    settings: Settings = field(default_factory=dict)
    hosts: Mapping[str, Settings] = field(default_factory=dict)
    """Further settings by host."""
    large: Settings = field(default_factory=dict)
    """Settings of rows with a larger encoder."""
    tokenizer: Mapping[str, int] = field(default_factory=dict)
    """Fields of :class:`~hardpatch.pretrain.tokenizer_settings.TokenizerSettings` that trains BEiT's visual tokens."""
    finetune: Settings = field(default_factory=dict)
    """A fine-tuning preset, and fields of :class:`~hardpatch.finetune.settings.FinetuneSettings` that override it."""
    data: str | None = None
    """Default images to train on; None if the user must name them."""
    val: str | None = None
    """Default labeled images to evaluate on, likewise."""


# Settings of the hosts that hold at any image size. Those that depend on it follow in each scale.
SIMMIM: Settings = {
    "model.positions": "relative",
    "model.layer_scale": 0.1,
    "method.mask_ratio": 0.6,
    "optim.betas": [0.9, 0.999],
}
BEIT: Settings = {
    "model.positions": "relative",
    "model.layer_scale": 0.1,
    "method.mask": "block",
    "method.mask_ratio": 0.4,
    "optim.betas": [0.9, 0.98],
    "optim.clip": 3.0,
}
IBOT: Settings = {
    "method.mask": "block",
    "method.mask_ratio": 0.3,
    "method.mask_ratio_spread": 0.2,
    "method.momentum_start": 0.996,
    "method.momentum_end": 1.0,
    "method.momentum_warmup": 1.0,
    "method.momentum_schedule": "cosine",
    "data.crop_scale": [0.32, 1.0],
    "ibot.teacher_temperature_warmup": 0.1,
    "ibot.frozen_last_layer": 0.01,
    "optim.weight_decay": 0.04,
    "optim.weight_decay_end": 0.4,
    "optim.betas": [0.9, 0.999],
    "optim.warmup": 0.1,
    "optim.clip": 3.0,
}

SCALES = {
    "paper": Scale(
        about="ViT-B/16 on ImageNet-1K, 200 epochs, and the recipes of other hosts",
        recipes={
            "mae": "imagenet_base_200",
            "simmim": "hpm_simmim_imagenet_base_800",
            "beit": "hpm_beit_imagenet_base_800",
            "ibot": "hpm_ibot_imagenet_base_400",
        },
        large={"model.size": "large", "optim.warmup": 0.2},
        finetune={"preset": "paper"},
        # the architecture of DALL-E's encoder, whose weights --tokenizer also takes
        tokenizer={
            "steps": 50_000,
            "image_size": 112,
            "patch_size": 8,
            "vocabulary": 8192,
            "width": 256,
            "batch_size": 512,
        },
    ),
    "tiny": Scale(
        about="ViT-tiny with 4-px patches at 32 px, 100 epochs; meant for CIFAR-10 on one GPU",
        recipes={"mae": "cifar10_tiny"},
        settings={"epochs": 100},
        large={"model.size": "small"},
        finetune={"preset": "small", "epochs": 50.0},
        tokenizer={"steps": 4000, "image_size": 32, "patch_size": 4},
        hosts={
            "simmim": {**SIMMIM, "method.mask_unit": 8},
            "beit": BEIT,
            "ibot": {
                **IBOT,
                "ibot.local_crops": 4,
                "ibot.local_size": 16,
                "ibot.outputs": 1024,
                "ibot.head_hidden": 512,
                "ibot.head_bottleneck": 128,
            },
        },
    ),
    "micro": Scale(
        about="2 blocks of width 32 on the embedded set, 20 steps; a test that all runs, its numbers mean nothing",
        recipes={"mae": "demo"},
        settings={
            "model.width": 32,
            "model.depth": 2,
            "model.heads": 2,
            "model.decoder_width": 16,
            "model.decoder_depth": 1,
            "model.decoder_heads": 2,
            "data.workers": 0,
            "train.log_every": 10,
            "steps": 20,
            "batch_size": 32,
        },
        large={"model.width": 48, "model.heads": 3},
        finetune={"preset": "tiny", "epochs": 0.1, "warmup_epochs": 0.01, "workers": 0},
        tokenizer={
            "steps": 30,
            "image_size": 32,
            "patch_size": 4,
            "vocabulary": 32,
            "width": 16,
            "batch_size": 32,
        },
        hosts={
            "simmim": {**SIMMIM, "method.mask_unit": 8},
            "beit": BEIT,
            "ibot": {
                **IBOT,
                "ibot.local_crops": 2,
                "ibot.local_size": 16,
                "ibot.outputs": 64,
                "ibot.head_hidden": 32,
                "ibot.head_bottleneck": 16,
            },
        },
        data="demo:train",
        val="demo:test",
    ),
}


def configure(
    table: Table,
    row: StudyRow,
    scale: Scale,
    *,
    data: str | None = None,
    settings: Sequence[str] = (),
    overrides: Settings | None = None,
) -> RunConfig:
    """Return the pre-training run of a row.

    Later settings override earlier ones: the scale's recipe for the row's host, the scale's changes to it,
    ``settings``, the table's base, the row's own settings, ``overrides``. A longer training keeps the length of its
    warm-ups in epochs.

    Args:
        table: the table, for the settings of all its rows.
        row: the row.
        scale: the recipes to start from.
        data: images to train on instead of the scale's.
        settings: the user's command-line arguments, such as ``["--epochs", "20"]``.
        overrides: further settings, such as the file of a tokenizer.

    Raises:
        UserError: for settings that do not exist or cannot be combined.
    """
    row_settings = {**table.base, **row.settings}
    host = row_settings.get("method.host", "mae")
    values = recipes.read(scale.recipes.get(host, scale.recipes["mae"]))
    if {"steps", "epochs"} & set(scale.settings):
        values = {name: value for name, value in values.items() if name not in ("steps", "epochs")}
    values = merged(
        values,
        {"method.host": host, "data.path": data or scale.data},
        scale.settings,
        scale.hosts.get(host, {}),
        scale.large if row.large else {},
    )
    run = config.build(values, settings)
    values = merged(config.to_dict(run), row_settings, overrides or {})
    if row.length != 1.0:
        warmups = {"optim.warmup": run.optim.warmup, "method.momentum_warmup": run.method.momentum_warmup}
        values = merged(values, {name: share / row.length for name, share in warmups.items()})
        values["steps"] = None if run.steps is None else round(run.steps * row.length)
        values["epochs"] = None if run.epochs is None else run.epochs * row.length
    return config.build(values)


def merged(values: Mapping[str, Any], *changes: Settings) -> dict[str, Any]:
    """Return nested ``values`` with changes by dotted name applied in order."""
    result = dict(values)
    for change in changes:
        for name, value in change.items():
            section, _, setting = name.rpartition(".")
            if section:
                result[section] = {**result.get(section, {}), setting: value}
            else:
                result[setting] = value
    return result
