"""Encoders rebuilt from their own settings, which a checkpoint holds beside the weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hardpatch.models.block import Block, LayerScale
from hardpatch.models.encoder import Encoder


def encoder_settings(encoder: Encoder) -> dict[str, Any]:
    """Plain values from which :func:`build_encoder` makes an encoder of the same shape, whose ``load_state_dict`` takes
    the ``state_dict`` of this one: what to save beside the weights of a fine-tuned network.
    """
    block, last = encoder.blocks[0], encoder.blocks[-1]
    assert isinstance(block, Block)
    assert isinstance(last, Block)
    if encoder.relative_bias is not None:
        positions = "relative"
    else:
        positions = "learned" if "positions" in encoder.state_dict() else "sincos"
    return {
        "image_size": [side * encoder.patch_size for side in encoder.grid],
        "patch_size": encoder.patch_size,
        "channels": encoder.channels,
        "width": encoder.width,
        "depth": len(encoder.blocks),
        "heads": block.attn.heads,
        "mlp_ratio": mlp_ratio(block.mlp.fc1.out_features, encoder.width),
        "positions": positions,
        "layer_scale": 1.0 if isinstance(block.ls1, LayerScale) else None,
        "drop_path": last.drop_path,
    }


def build_encoder(settings: Mapping[str, Any]) -> Encoder:
    """A new encoder that keeps all patches, from :func:`encoder_settings`.

    With positions ``learned`` the buffer ``positions [N, D]`` is part of the ``state_dict``.

    Raises:
        ValueError: if the sizes do not fit each other.
    """
    positions = settings["positions"]
    relative = positions == "relative"
    encoder = Encoder(
        **{
            **settings,
            "image_size": tuple(settings["image_size"]),
            "positions": "relative" if relative else "sincos",
            "drop_masked": not relative,
        }
    )
    encoder.mask_token = None
    if positions == "learned":
        learn_positions(encoder, torch.zeros(encoder.grid[0] * encoder.grid[1], encoder.width))
    return encoder


def learn_positions(encoder: Encoder, positions: Tensor) -> None:
    """Give the encoder ``positions [N, D]`` that cannot be computed anew, and so are saved with its weights."""
    encoder.register_buffer("positions", positions, persistent=True)


def mlp_ratio(hidden: int, width: int) -> float:
    """What ``int(width * ratio)`` turns into ``hidden`` again, whatever the rounding."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width
