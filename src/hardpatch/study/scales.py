"""Scales of a study: the paper's runs, runs for one GPU or a laptop, or runs that only check that all works."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from hardpatch.configuration import config
from hardpatch.configuration.sections import RunConfig
from hardpatch.pretrain import recipes
from hardpatch.study.rows import Measure, StudyRow, Table
from hardpatch.study.scale_settings import BEIT, CPU, IBOT, MICRO_DETECT, MICRO_SEGMENT, SIMMIM, Settings
from hardpatch.yaml_text import flat


@dataclass(frozen=True, eq=False)  # hashed by identity
class Scale:
    """Recipes by host, and the settings that differ from them."""

    about: str
    encoders: tuple[str, str]
    """Names of its encoder and of its larger encoder."""
    recipes: Mapping[str, Mapping[float, str]]
    """Recipes by host and length (a multiple of 200 effective epochs); hosts without one take that of mae."""
    large_recipes: Mapping[str, Mapping[float, str]] = field(default_factory=dict)
    """Recipes of the larger encoder, likewise; hosts without one take the recipe of the other encoder."""
    settings: Settings = field(default_factory=dict)
    hosts: Mapping[str, Settings] = field(default_factory=dict)
    """Further settings by host."""
    host_lengths: Mapping[str, float] = field(default_factory=dict)
    """Length of a host's runs as a multiple of the others', where crops make one epoch worth several."""
    large: Settings = field(default_factory=dict)
    """Settings of the larger encoder."""
    large_hosts: Mapping[str, Settings] = field(default_factory=dict)
    """Further settings of the larger encoder by host."""
    always: tuple[Measure, ...] = ("knn", "linear")
    """Measurements that every pre-trained row has, whatever the columns of its table."""
    optional: tuple[Measure, ...] = ()
    """Measurements that are too long for this scale, unless ``--measures`` asks for them."""
    not_run: Mapping[str, str] = field(default_factory=dict)
    """Why a row is not run at this scale, by ``TABLE: ROW``."""
    stand_in: bool = True
    """True if a supervised ViT of this scale stands in for DINO and CLIP in rows of its own."""
    linear: Literal["quick", "paper"] = "quick"
    """Protocol of the linear probe."""
    tokenizer: Mapping[str, int] = field(default_factory=dict)
    """Fields of :class:`~hardpatch.pretrain.tokenizer_settings.TokenizerSettings` that trains BEiT's visual tokens."""
    finetune: Settings = field(default_factory=dict)
    """A preset of the verb, and fields of :class:`~hardpatch.finetune.settings.FinetuneSettings` that override it."""
    finetune_large: Settings = field(default_factory=dict)
    """Further fields for the larger encoder."""
    supervised: Settings = field(default_factory=dict)
    """Likewise, for training under labels from random weights: scratch rows and Table D."""
    detect: Settings = field(default_factory=dict)
    """Likewise, of :class:`~hardpatch.detect.settings.DetectSettings`."""
    segment: Settings = field(default_factory=dict)
    """Likewise, of :class:`~hardpatch.segment.settings.SegmentSettings`, with the steps of Table 5."""
    data: str | None = None
    """Default images to train on; None if the user must name them."""
    val: str | None = None
    """Default labeled images to evaluate on, likewise."""


SCALES = {
    "paper": Scale(
        about="ViT-B/16 and ViT-L/16 on ImageNet-1K with the paper's settings, 200 effective epochs unless a row says",
        encoders=("ViT-B", "ViT-L"),
        recipes={
            "mae": {1: "imagenet_base_200", 4: "imagenet_base_800"},
            "simmim": {4: "hpm_simmim_imagenet_base_800"},
            "beit": {1: "hpm_beit_imagenet_base_200", 4: "hpm_beit_imagenet_base_800"},
            "ibot": {1: "hpm_ibot_imagenet_base_50", 8: "hpm_ibot_imagenet_base_400"},
        },
        large_recipes={"mae": {1: "imagenet_large_200", 4: "imagenet_large_800"}},
        large={"model.size": "large"},
        large_hosts={"beit": {"model.layer_scale": 1e-5}},
        always=(),
        stand_in=False,
        linear="paper",
        finetune={"preset": "paper"},
        finetune_large={"epochs": 50.0},
        supervised={"preset": "paper", "layer_decay": 0.8},  # "simply follow the fine-tuning setting" (Section D)
        detect={"preset": "hpm"},
        segment={"preset": "hpm", "steps": 80_000},
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
        encoders=("ViT-tiny", "ViT-small"),
        recipes={"mae": {1: "cifar10_tiny"}},
        settings={"epochs": 100},
        host_lengths={"ibot": 0.25},
        large={"model.size": "small"},
        finetune={"preset": "small", "epochs": 50.0},
        supervised={"preset": "small", "epochs": 100.0},
        detect={"preset": "small"},
        segment={"preset": "small"},
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
    "cpu": Scale(
        about="4 blocks of width 96, 64 patches, decoders of 2 blocks of width 48, 51,200 images; for a laptop",
        encoders=("width 96", "width 144"),
        recipes={"mae": {1: "tiny_imagenet_small"}},
        settings=CPU,
        host_lengths={"ibot": 0.25},
        large={"model.width": 144, "model.heads": 6},
        optional=("finetune", "detect", "segment", "segment_160k"),
        not_run={
            "tableS4: 8 blocks": "scale cpu has decoders of 2 blocks",
            "tableS4: 12 blocks": "scale cpu has decoders of 2 blocks",
        },
        finetune={"preset": "tiny", "epochs": 5.0, "warmup_epochs": 1.0},
        supervised={"preset": "tiny", "epochs": 5.0, "warmup_epochs": 1.0},
        detect={"preset": "small"},
        segment={"preset": "small"},
        tokenizer={"steps": 400, "image_size": 64, "patch_size": 8, "batch_size": 64},
        hosts={
            "simmim": {**SIMMIM, "method.mask_unit": 16},
            "beit": BEIT,
            "ibot": {
                **IBOT,
                "ibot.local_crops": 4,
                "ibot.local_size": 32,
                "ibot.outputs": 256,
                "ibot.head_hidden": 256,
                "ibot.head_bottleneck": 64,
                "method.momentum_start": 0.98,
            },
        },
    ),
    "micro": Scale(
        about="4 blocks of width 32 on the embedded set, 20 steps; a test that all runs, its numbers mean nothing",
        encoders=("width 32", "width 48"),
        recipes={"mae": {1: "demo"}},
        settings={
            "model.width": 32,
            "model.depth": 4,
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
        supervised={"preset": "tiny", "epochs": 0.1, "warmup_epochs": 0.01, "workers": 0},
        detect=MICRO_DETECT,
        segment=MICRO_SEGMENT,
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
    large: bool = False,
    data: str | None = None,
    settings: Sequence[str] = (),
    overrides: Settings | None = None,
) -> RunConfig:
    """Return the pre-training run of a row.

    Later settings override earlier ones: the scale's recipe for the row's host and length, the scale's changes to it,
    ``settings``, the table's base, the row's own settings, ``overrides``. A training of another length than its recipe
    keeps the length of its warm-ups in epochs.

    Args:
        table: the table, for the settings of all its rows.
        row: the row.
        scale: the recipes to start from.
        large: True for the scale's larger encoder.
        data: images to train on instead of the scale's.
        settings: the user's command-line arguments, such as ``["--epochs", "20"]``.
        overrides: further settings, such as the file of a tokenizer.

    Raises:
        UserError: for settings that do not exist or cannot be combined.
    """
    row_settings = {**table.base, **row.settings, **(overrides or {})}
    host = row_settings.get("method.host", "mae")
    run, recipe_length = _host_run(scale, host, row.length, data, tuple(settings), large=large)
    if row.decoder_width != 1.0:
        row_settings["model.decoder_width"] = round(run.model.decoder_width * row.decoder_width)
    length = row.length / recipe_length * scale.host_lengths.get(host, 1.0)
    if length != 1.0:
        row_settings |= _resized(run, length)
    values = config.to_dict(run)
    known = flat(values)
    if all(name in known and known[name] == value for name, value in row_settings.items()):  # building is slow
        return run
    return config.build(merged(values, row_settings))


@lru_cache
def _host_run(
    scale: Scale, host: str, length: float, data: str | None, settings: tuple[str, ...], *, large: bool
) -> tuple[RunConfig, float]:
    """Return HPM over a host with the scale's and the user's settings, and the length of the recipe it is from."""
    by_length = scale.recipes.get(host, scale.recipes["mae"])
    by_length = scale.large_recipes.get(host, by_length) if large else by_length
    recipe_length = length if length in by_length else min(by_length)
    values = recipes.read(by_length[recipe_length])
    if {"steps", "epochs"} & set(scale.settings):
        values = {name: value for name, value in values.items() if name not in ("steps", "epochs")}
    values = merged(
        values,
        {"method.host": host, "data.path": data or scale.data, "verdict.checks": 0},  # the table measures all rows
        scale.settings,
        scale.hosts.get(host, {}),
        {**scale.large, **scale.large_hosts.get(host, {})} if large else {},
    )
    return config.build(values, settings), recipe_length


def _resized(run: RunConfig, length: float) -> dict[str, Any]:
    """Return the settings of ``run`` at a multiple of its length, with warm-ups of as many epochs as before."""
    shares = {"optim.warmup": run.optim.warmup}
    if run.method.momentum_warmup < 1.0:  # 1 is the whole training, whatever its length
        shares["method.momentum_warmup"] = run.method.momentum_warmup
    return {
        **{name: min(1.0, share / length) for name, share in shares.items()},
        "steps": None if run.steps is None else round(run.steps * length),
        "epochs": None if run.epochs is None else run.epochs * length,
    }


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
