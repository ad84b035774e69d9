"""Pre-trained encoder for further training, from a run or from another library's Vision Transformer."""

from pathlib import Path
from typing import NamedTuple

import torch

from hardpatch.choices import WeightsName
from hardpatch.data.reading import RGB, Reading
from hardpatch.interchange.load import load
from hardpatch.methods.hpm import HPM
from hardpatch.models.block import Block
from hardpatch.models.encoder import Encoder
from hardpatch.models.encoder_settings import absorb_class_position, build_encoder, encoder_settings


class Backbone(NamedTuple):
    """Encoder and the normalization of its images."""

    encoder: Encoder
    """trainable, in train mode, on all patches: ``[B, C, H, W]`` -> ``[B, 1 + N, D]``"""
    mean: tuple[float, ...]
    """of each channel, for pixels in [0, 1]"""
    std: tuple[float, ...]
    """likewise"""
    reading: Reading = RGB
    """channels, type and range of its pixels"""


def load_backbone(
    path: str | Path,
    weights: WeightsName = "auto",
    *,
    drop_path: float = 0.0,
    heads: int | None = None,
    image_size: tuple[int, int] | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Backbone:
    """Load the encoder of pre-trained weights for fine-tuning.

    Args:
        path: anything that :func:`~hardpatch.interchange.load.load` reads.
        weights: student or teacher of a run, a reference or a DINO checkpoint; random is an encoder of the same shape
            with new weights.
        drop_path: drop probability of the last block, rising linearly from 0 in the first.
        heads: as of :func:`~hardpatch.interchange.load.load`.
        image_size: likewise.
        seed: of random weights.
        device: where to put it.

    Returns:
        The encoder and the run's normalization; for other files ImageNet's, or 0.5 if there are not three channels.

    Raises:
        UserError: if there is nothing to load, the file has parts that the encoder lacks, or it could run code.
    """
    part: WeightsName = "auto" if weights == "random" else weights
    # a decoder is left out, so that the number of its heads need not be known
    backbone = _from_model(load(path, part, heads=heads, decoder_heads=1, image_size=image_size), drop_path)
    if weights == "random":
        settings = encoder_settings(backbone.encoder)
        if settings["positions"] == "learned":
            settings["positions"] = "sincos"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone = backbone._replace(encoder=build_encoder(settings))
    return backbone._replace(encoder=backbone.encoder.to(device))


def _from_model(model: HPM, drop_path: float) -> Backbone:
    encoder = model.host.encoder
    encoder.mask_token = None
    absorb_class_position(encoder)
    depth = len(encoder.blocks)
    for number, block in enumerate(encoder.blocks):
        assert isinstance(block, Block)
        block.drop_path = drop_path * number / max(depth - 1, 1)
    encoder = encoder.requires_grad_(True).train()
    return Backbone(encoder, tuple(model.mean.tolist()), tuple(model.std.tolist()), model.reading)
