"""How large a study is: the paper's runs, runs for one GPU, or runs that prove the plumbing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hardpatch.pretrain import config, recipes
from hardpatch.pretrain.sections import RunConfig
from hardpatch.study.rows import Row, Table

Settings = Mapping[str, Any]
"""Values by dotted name, as in ``{"optim.warmup": 0.1}``."""


@dataclass(frozen=True)
class Scale:
    """Recipes, and what differs from them."""

    about: str
    recipes: Mapping[str, str]
    """By host; that of mae is for hosts without one."""
    settings: Settings = field(default_factory=dict)
    hosts: Mapping[str, Settings] = field(default_factory=dict)
    """What a host needs beside the recipe."""
    large: Settings = field(default_factory=dict)
    """For rows with a larger encoder."""
    tokenizer: Mapping[str, int] = field(default_factory=dict)
    """How BEiT's visual tokens are made: a :class:`~hardpatch.pretrain.tokenizer.TokenizerRun`."""
    finetune: Settings = field(default_factory=dict)
    """Of :class:`~hardpatch.finetune.settings.FinetuneRun`, beside the name of a preset."""
    data: str | None = None
    """The images, unless others are given; None where they must be."""
    val: str | None = None
    """Labeled images to be judged on, likewise."""


# The hosts' own settings that hold at any size; what the size of the images decides follows in each scale.
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
        # DALL-E's shape, of which --tokenizer takes the weights
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
        about="ViT-tiny with 4-px patches at 32 px, 100 epochs; made for CIFAR-10 on one GPU",
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
        about="two blocks of 32 on the embedded set, 20 steps; proves the plumbing, its figures mean nothing",
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
    row: Row,
    scale: Scale,
    *,
    data: str | None = None,
    settings: Sequence[str] = (),
    given: Settings | None = None,
) -> RunConfig:
    """The run of a row.

    What comes later prevails: the scale's recipe for the row's host and what the scale changes in it, ``settings``,
    the table's base, the row's own, ``given``. A longer schedule keeps the length of warm-ups in epochs.

    Args:
        data: images in place of the scale's.
        settings: command-line arguments of the user's, such as ``["--epochs", "20"]``.
        given: further values, such as the file of a tokenizer.

    Raises:
        UserError: for settings that do not exist or do not go together.
    """
    own = {**table.base, **row.settings}
    host = own.get("method.host", "mae")
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
    values = merged(config.to_dict(run), own, given or {})
    if row.length != 1.0:
        longer = {"optim.warmup": run.optim.warmup, "method.momentum_warmup": run.method.momentum_warmup}
        values = merged(values, {name: share / row.length for name, share in longer.items()})
        values["steps"] = None if run.steps is None else round(run.steps * row.length)
        values["epochs"] = None if run.epochs is None else run.epochs * row.length
    return config.build(values)


def merged(values: Mapping[str, Any], *changes: Settings) -> dict[str, Any]:
    """Nested ``values`` with what the changes say, the later ones prevailing."""
    result = dict(values)
    for change in changes:
        for name, value in change.items():
            section, _, setting = name.rpartition(".")
            if section:
                result[section] = {**result.get(section, {}), setting: value}
            else:
                result[setting] = value
    return result
