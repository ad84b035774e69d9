"""Trained detectors, as the checkpoints of their runs hold them."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import nn

from hardpatch.data.reading import read_reading
from hardpatch.detect.settings import BEFORE, DetectSettings
from hardpatch.detect.trainer import KIND, build
from hardpatch.errors import UserError
from hardpatch.interchange.backbone import Backbone
from hardpatch.interchange.load import read_newest
from hardpatch.models.encoder_settings import build_encoder
from hardpatch.train import checkpoint
from hardpatch.train.settings import changed
from hardpatch.weights import described


class Detector(NamedTuple):
    """Trained detector, and the meaning of its labels."""

    model: nn.Module
    """:func:`~hardpatch.detect.model.mask_rcnn` in eval mode; images must fit ``image_size``"""
    categories: dict[int, str]
    """names by category id, in the order of the labels, which run from 1"""
    image_size: int
    """side of the canvas, pixels"""


def load_detector(run: str | Path, device: str | torch.device = "cpu") -> Detector:
    """Load the detector of a run folder of ``hardpatch detect``, or of a weights file in it.

    Args:
        run: the folder, whose newest checkpoint is loaded, or the file.
        device: where the detector is put.

    Raises:
        UserError: if there is no detector.
    """
    return read_newest(run, lambda file: _load_detector(file, device))


def _load_detector(file: Path, device: str | torch.device) -> Detector:
    metadata = _metadata(file)
    with described(file):
        names = {f.name for f in fields(DetectSettings)}
        values = BEFORE | {name: value for name, value in metadata["detect"].items() if name in names}
        if values.get("steps"):  # an earlier version saved epochs beside them, which it did not use
            values["epochs"] = None
        settings = changed(DetectSettings(), values)
        categories = {int(number): str(name) for number, name in metadata["categories"]}
        model = build(backbone_of(metadata), settings, len(categories), masks=metadata.get("masks", True)).to(device)
        model.load_state_dict(checkpoint.with_prefix(load_file(file), "student."))
    return Detector(model.eval(), categories, settings.image_size)


def saved_metadata(saved: Path) -> dict[str, Any]:
    """Read the metadata of a checkpoint; UserError if it is not a detector's."""
    return _metadata(saved / checkpoint.WEIGHTS)


def _metadata(file: Path) -> dict[str, Any]:
    metadata = (checkpoint.read_metadata(file) if file.suffix == ".safetensors" else None) or {}
    if metadata.get("kind") != KIND:
        raise UserError(f"RUN: expected a run made by hardpatch detect, {file} is of another kind")
    if "detect" not in metadata:  # written by an earlier version
        metadata["detect"] = metadata.get("run", {})
    return metadata


def backbone_of(metadata: Mapping[str, Any]) -> Backbone:
    """Build the encoder that a checkpoint describes, with new weights."""
    encoder = build_encoder(metadata["encoder"])
    return Backbone(encoder, tuple(metadata["mean"]), tuple(metadata["std"]), read_reading(metadata))
