"""Trained segmenters as files: an UperNet with its encoder, the names of its classes and its way of inference."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from hardpatch import __version__
from hardpatch.errors import UserError
from hardpatch.models.encoder_settings import build_encoder, encoder_settings
from hardpatch.segment.measure import Inference
from hardpatch.segment.model import UperNet

FILE = "segmenter.safetensors"
METADATA = "hardpatch_segmenter"
"""Entry in a file's metadata that tells it from a run's weights."""


class Segmenter(NamedTuple):
    """Result of :func:`load_segmenter`."""

    model: UperNet
    """in eval mode and without gradients"""
    classes: tuple[str, ...]
    inference: Inference
    """as in its evaluation; :func:`hardpatch.segment.measure.predict_logits` takes it"""


def describe(model: UperNet, classes: Sequence[str], inference: Inference) -> dict[str, Any]:
    """Return plain values from which :func:`rebuild` makes the same network."""
    return {
        "encoder": encoder_settings(model.encoder),
        "mean": model.mean.flatten().tolist(),
        "std": model.std.flatten().tolist(),
        "channels": model.channels,
        "blocks": list(model.blocks),
        "classes": list(classes),
        "inference": asdict(inference),
    }


def rebuild(metadata: Mapping[str, Any], **options: float) -> UperNet:
    """Build the network of :func:`describe`, with new weights."""
    return UperNet(
        build_encoder(metadata["encoder"]),
        len(metadata["classes"]),
        mean=metadata["mean"],
        std=metadata["std"],
        channels=metadata["channels"],
        blocks=metadata["blocks"],
        **options,
    )


def save_segmenter(path: Path, model: UperNet, classes: Sequence[str], inference: Inference) -> None:
    """Write the weights and all that is needed to rebuild the network, whole or not at all."""
    metadata = {"hardpatch": __version__, **describe(model, classes, inference)}
    partial = path.with_name(f".{path.name}.partial")
    state = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(state, partial, {METADATA: json.dumps(metadata)})
    partial.replace(path)


def load_segmenter(path: str | Path, *, device: str | torch.device = "cpu") -> Segmenter:
    """Load the segmenter of a folder made by ``hardpatch segment``, or of its ``segmenter.safetensors``.

    Raises:
        UserError: if there is none.
    """
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    try:
        with safe_open(file, "pt") as content:
            text = (content.metadata() or {}).get(METADATA)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is no segmenter: {error}") from None
    if text is None:
        raise UserError(f"{file} is no segmenter; expected a file that hardpatch segment wrote")
    metadata = json.loads(text)
    model = rebuild(metadata)
    model.load_state_dict(load_file(file))
    values = metadata["inference"]
    inference = Inference(values["short_side"], values["mode"], tuple(values["window"]), tuple(values["stride"]))
    return Segmenter(model.requires_grad_(False).eval().to(device), tuple(metadata["classes"]), inference)
