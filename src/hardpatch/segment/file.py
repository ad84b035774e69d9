"""Trained segmenters as files: UperNet with its encoder, class names and settings of inference."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hardpatch import __version__
from hardpatch.data.reading import read_reading
from hardpatch.errors import UserError
from hardpatch.files import atomic_path
from hardpatch.interchange.finetuned import SEGMENTER_METADATA, read_finetuned
from hardpatch.interchange.load import read_newest
from hardpatch.models.encoder_settings import build_encoder, encoder_settings
from hardpatch.models.transfer import train_positions, trains_positions
from hardpatch.pickles import save_tensors
from hardpatch.segment.measure import Inference
from hardpatch.segment.model import UperNet
from hardpatch.weights import check_normalization, described, fitted


class Segmenter(NamedTuple):
    """Result of :func:`load_segmenter`."""

    model: UperNet
    """in eval mode and without gradients"""
    classes: tuple[str, ...]
    inference: Inference
    """settings of its evaluation, for :func:`hardpatch.segment.measure.predict_logits`"""


def describe(model: UperNet, classes: Sequence[str], inference: Inference) -> dict[str, Any]:
    """Return plain values from which :func:`rebuild` builds the same network."""
    return {
        "encoder": encoder_settings(model.encoder),
        "train_positions": trains_positions(model.encoder),
        "mean": model.mean.flatten().tolist(),
        "std": model.std.flatten().tolist(),
        "reading": model.reading.to_dict(),
        "channels": model.channels,
        "blocks": list(model.blocks),
        "classes": list(classes),
        "inference": asdict(inference),
    }


def rebuild(metadata: Mapping[str, Any], **options: float) -> UperNet:
    """Build the network of :func:`describe` with new weights; ``options`` are further arguments of UperNet."""
    encoder = build_encoder(metadata["encoder"])
    if metadata.get("train_positions"):  # absent in files of earlier versions
        train_positions(encoder)
    return UperNet(
        encoder,
        len(metadata["classes"]),
        mean=metadata["mean"],
        std=metadata["std"],
        reading=read_reading(metadata),
        channels=metadata["channels"],
        blocks=metadata["blocks"],
        **options,
    )


def save_segmenter(path: Path, model: UperNet, classes: Sequence[str], inference: Inference) -> None:
    """Write the weights and everything that is needed to rebuild the network, completely or not at all."""
    metadata = {"hardpatch": __version__, **describe(model, classes, inference)}
    state = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    with atomic_path(path) as partial:
        save_tensors(state, partial, {SEGMENTER_METADATA: json.dumps(metadata)})


def load_segmenter(path: str | Path, *, device: str | torch.device = "cpu") -> Segmenter:
    """Load the segmenter of a run folder of ``hardpatch segment``, or of a weights file in it.

    The folder of a run that has not ended gives its newest checkpoint.

    Raises:
        UserError: if the file is missing or of another kind.
    """
    return read_newest(path, lambda file: _load_segmenter(file, device))


def _load_segmenter(file: Path, device: str | torch.device) -> Segmenter:
    found = read_finetuned(file)
    if found is None or found.kind != "segmenter":
        raise UserError(f"RUN: {file} is not a segmenter; expected a file that hardpatch segment wrote")
    metadata = found.metadata
    model = fitted(partial(_rebuilt, metadata), file, metadata, found.prefix)
    with described(file):
        values = metadata["inference"]
        inference = Inference(values["short_side"], values["mode"], tuple(values["window"]), tuple(values["stride"]))
    return Segmenter(model.requires_grad_(False).eval().to(device), found.classes, inference)


def _rebuilt(metadata: Mapping[str, Any]) -> UperNet:
    check_normalization(metadata)
    return rebuild(metadata)
