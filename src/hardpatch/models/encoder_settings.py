"""Settings of an encoder, which checkpoints hold beside its weights, and the encoder built from them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hardpatch.models.block import Block, LayerScale
from hardpatch.models.encoder import Encoder
from hardpatch.models.transfer import add_relative_bias
from hardpatch.models.variant import Variant


def encoder_settings(encoder: Encoder) -> dict[str, Any]:
    """Return the settings from which :func:`build_encoder` builds an encoder that can load the weights of this one.

    They are plain values, to be saved beside the weights of a fine-tuned network.
    """
    block, last = encoder.blocks[0], encoder.blocks[-1]
    assert isinstance(block, Block)
    assert isinstance(last, Block)
    if encoder.positions is None:  # the bias is shared, or each block has its own; rotary ones are of the variant
        positions = None if encoder.variant.rope_theta is not None else "relative"
    else:
        positions = "learned" if "positions" in encoder.state_dict() else "sincos"
    return {
        "image_size": [side * encoder.patch_size for side in encoder.grid],
        "patch_size": encoder.patch_size,
        "channels": encoder.channels,
        "width": encoder.width,
        "depth": len(encoder.blocks),
        "heads": block.attn.heads,
        "mlp_ratio": mlp_ratio(block.mlp.fc2.in_features, encoder.width),
        "positions": positions,
        "layer_scale": 1.0 if isinstance(block.ls1, LayerScale) else None,
        "drop_path": last.drop_path,
        **({"variant": changes} if (changes := encoder.variant.changes()) else {}),
        **({} if block.relative_bias is None else {"block_bias_grid": list(block.relative_bias.grid)}),
    }


def build_encoder(settings: Mapping[str, Any]) -> Encoder:
    """Build an encoder without mask token from the result of :func:`encoder_settings`.

    With positions ``learned`` the buffer ``positions [N, D]`` is part of the ``state_dict``.

    Raises:
        ValueError: if the patch size does not divide the image size, the heads the width, or 4 the width.
    """
    settings = dict(settings)
    bias_grid = settings.pop("block_bias_grid", None)  # only after a transfer
    positions = settings["positions"]
    relative = positions == "relative"
    encoder = Encoder(
        **{
            **settings,
            "image_size": tuple(settings["image_size"]),
            "positions": "relative" if relative else None if positions is None else "sincos",
            "drop_masked": not relative,
            "variant": Variant(**settings.get("variant", {})),
        }
    )
    encoder.mask_token = None
    if bias_grid is not None:
        encoder.relative_bias = None
        add_relative_bias(encoder, (bias_grid[0], bias_grid[1]))
    if positions == "learned":
        learn_positions(encoder, torch.zeros(encoder.grid[0] * encoder.grid[1], encoder.width))
    return encoder


def absorb_class_position(encoder: Encoder) -> None:
    """Add the learned position of the class token to the class token; the result is the same.

    The positions of the patches become a buffer, as :func:`build_encoder` makes them. An encoder whose positions are
    not learned stays as it is.
    """
    if encoder.class_position is None:
        return
    assert encoder.positions is not None
    positions = encoder.positions.detach()
    with torch.no_grad():
        encoder.cls_token.add_(encoder.class_position)
    encoder.class_position = None
    del encoder.positions  # a parameter cannot be overwritten by a buffer
    learn_positions(encoder, positions)


def learn_positions(encoder: Encoder, positions: Tensor) -> None:
    """Set learned ``positions [N, D]``; unlike computed ones they are saved with the weights of the encoder."""
    encoder.register_buffer("positions", positions, persistent=True)


def mlp_ratio(hidden: int, width: int) -> float:
    """Return a ratio for which ``int(width * ratio)`` is exactly ``hidden``, in spite of rounding."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width
