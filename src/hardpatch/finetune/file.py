"""Networks that a training of a classifier starts from, and those that it leaves on the disk."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hardpatch.configuration.sections import RunConfig
from hardpatch.data.reading import read_reading
from hardpatch.data.sources import Source
from hardpatch.data.survey import adapted
from hardpatch.errors import UserError
from hardpatch.finetune.model import Classifier
from hardpatch.finetune.scratch import random_encoder
from hardpatch.finetune.settings import FinetuneSettings
from hardpatch.finetune.trainer import KIND
from hardpatch.interchange.backbone import load_backbone
from hardpatch.interchange.load import read_newest
from hardpatch.models.encoder_settings import build_encoder
from hardpatch.models.transfer import interpolated, unshare_relative_bias
from hardpatch.train import checkpoint
from hardpatch.weights import check_normalization, described, fitted, stored_tensors

log = logging.getLogger("hardpatch")


class LoadedClassifier(NamedTuple):
    """A fine-tuned network, the names of its classes, and its image size."""

    model: Classifier
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    """(height, width) of the images that it was trained on, in pixels"""


def load_classifier(path: str | Path) -> LoadedClassifier:
    """Load a fine-tuned network in eval mode.

    ``model(model.normalize(images))`` classifies images, uint8 ``[B, C, H, W]``: scores ``[B, classes]``.

    Args:
        path: a run folder of ``finetune`` or ``train_linear_probe`` (its newest checkpoint; its probe or its best
            weights if those were kept), a checkpoint's folder, or a file. If the run has a moving average of its
            weights, that is loaded.

    Raises:
        UserError: if there is no such file, or it holds another kind of network.
    """
    return read_newest(path, _load_classifier)


def _load_classifier(file: Path) -> LoadedClassifier:
    metadata = (checkpoint.read_metadata(file) if file.suffix == ".safetensors" else None) or {}
    if metadata.get("kind") != KIND:
        raise UserError(f"RUN: expected a network of hardpatch finetune, {file} is of another kind")
    averaged = any(name.startswith("teacher.") for name in stored_tensors(file))

    def build() -> Classifier:
        check_normalization(metadata)
        return Classifier(
            build_encoder(metadata["encoder"]),
            len(metadata["classes"]),
            mean=metadata["mean"],
            std=metadata["std"],
            reading=read_reading(metadata),
            drop_path=metadata["finetune"]["drop_path"],
            frozen=metadata["finetune"].get("frozen", False),
            pool=metadata["finetune"].get("pool", "mean"),
            units=units_of(metadata),
        )

    model = fitted(build, file, metadata, "teacher." if averaged else "student.")
    model.task = str(metadata.get("task", "classes"))
    with described(file):
        size = (int(metadata["image_size"][0]), int(metadata["image_size"][1]))
        return LoadedClassifier(model.eval(), tuple(map(str, metadata["classes"])), size)


def units_of(metadata: Mapping[str, Any]) -> tuple[list[float], list[float]] | None:
    """Return mean and standard deviation of the targets of a regression; None for another task."""
    return (metadata["target_mean"], metadata["target_std"]) if metadata.get("task") == "regression" else None


def initial_classifier(
    settings: FinetuneSettings,
    run: str | Path | RunConfig,
    train: Source,
    classes: int,
    units: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Classifier:
    """Build the network that a run starts from.

    Args:
        settings: of the run.
        run: weights of the encoder, or the settings of a pre-training run, whose encoder starts from random weights.
        train: images, for the channel statistics that such settings may ask for.
        classes: number of classes.
        units: mean and standard deviation of the targets of a regression.

    Raises:
        UserError: if the weights cannot be loaded or the image size does not fit.
    """
    if isinstance(run, RunConfig):
        encoder, mean, std, reading = random_encoder(replace(run, seed=settings.seed), train)
    else:
        encoder, mean, std, reading = load_backbone(run, **settings.backbone)
    unshare_relative_bias(encoder)
    resized = [] if settings.crop_size is None else interpolated(encoder, settings.crop_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        try:
            classifier = Classifier(
                encoder,
                classes,
                mean=mean,
                std=std,
                reading=adapted(reading, train, "--train"),
                image_size=settings.crop_size,
                drop_path=settings.drop_path,
                frozen=settings.frozen,
                pool=settings.pool,
                units=units,
            )
        except ValueError as error:
            raise UserError(f"--image_size: {error}") from None
    for line in resized:
        log.info(line)
    return classifier
