"""Trained segmenters as files: an UperNet with its encoder, the names of its classes and how it looks at images."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from hardpatch import __version__
from hardpatch.errors import UserError
from hardpatch.interchange.backbone import build_encoder, encoder_settings
from hardpatch.segment.measure import Inference
from hardpatch.segment.model import UperNet

FILE = "segmenter.safetensors"
METADATA = "hardpatch_segmenter"
"""The entry in a file's metadata that tells it from a run's weights."""


class Segmenter(NamedTuple):
    """What :func:`load_segmenter` finds."""

    model: UperNet
    """in eval mode and without gradients"""
    classes: tuple[str, ...]
    inference: Inference
    """how it was judged; :func:`hardpatch.segment.measure.predict_logits` takes it"""


def save_segmenter(path: Path, model: UperNet, classes: Sequence[str], inference: Inference) -> None:
    """Write the weights and all that is needed to rebuild the network, whole or not at all."""
    metadata = {
        "hardpatch": __version__,
        "encoder": encoder_settings(model.encoder),
        "mean": model.mean.flatten().tolist(),
        "std": model.std.flatten().tolist(),
        "channels": model.channels,
        "blocks": model.blocks,
        "classes": list(classes),
        "inference": asdict(inference),
    }
    partial = path.with_name(f".{path.name}.partial")
    state = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(state, partial, {METADATA: json.dumps(metadata)})
    partial.replace(path)


def load_segmenter(path: str | Path, *, device: str | torch.device = "cpu") -> Segmenter:
    """The segmenter of a folder made by ``hardpatch segment``, or of its ``segmenter.safetensors``.

    Raises:
        UserError: if there is none.
    """
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    try:
        with safe_open(file, "pt") as content:
            told = (content.metadata() or {}).get(METADATA)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is no segmenter: {error}") from None
    if told is None:
        raise UserError(f"{file} is no segmenter; expected a file that hardpatch segment wrote")
    metadata = json.loads(told)
    model = UperNet(
        build_encoder(metadata["encoder"]),
        len(metadata["classes"]),
        mean=metadata["mean"],
        std=metadata["std"],
        channels=metadata["channels"],
        blocks=metadata["blocks"],
    )
    model.load_state_dict(load_file(file))
    how = metadata["inference"]
    inference = Inference(how["short_side"], how["mode"], tuple(how["window"]), tuple(how["stride"]))
    return Segmenter(model.requires_grad_(False).eval().to(device), tuple(metadata["classes"]), inference)
