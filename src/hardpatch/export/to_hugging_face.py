"""Convert an encoder to Hugging Face's ViTModel, and a whole MAE to its ViTMAEForPreTraining.

The library itself is not needed. The keys are those of its published checkpoints, which all its versions read.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hardpatch.errors import UserError
from hardpatch.measure.labels import crop_fraction
from hardpatch.methods.mae import MAE
from hardpatch.models.block import Block, LayerScale
from hardpatch.models.encoder import Encoder
from hardpatch.models.encoder_settings import encoder_settings


class HuggingFaceModel(NamedTuple):
    """Model in the format of Hugging Face."""

    config: dict[str, Any]
    """content of ``config.json``"""
    state: dict[str, Tensor]
    """weights"""


def vit(encoder: Encoder) -> HuggingFaceModel:
    """Convert to ``ViTModel``, which has no layer scale: it is multiplied into the preceding weights.

    Raises:
        UserError: if the encoder has relative positions, or parts that this class has not.
    """
    if {**encoder.variant.changes(), "norm_eps": None} != {"norm_eps": None}:
        raise UserError(f"--to: ViTModel of hf has no {', '.join(encoder.variant.changes())}, as this encoder has")
    if encoder.positions is None:
        raise UserError("--to: hf has no relative position bias in its ViT; expected --to timm, which has BEiT's")
    settings = encoder_settings(encoder)
    height, width = settings["image_size"]
    config = {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "hidden_size": settings["width"],
        "num_hidden_layers": settings["depth"],
        "num_attention_heads": settings["heads"],
        "intermediate_size": _hidden(encoder.blocks[0]),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": encoder.variant.norm_eps,
        "image_size": height if height == width else [height, width],
        "patch_size": settings["patch_size"],
        "num_channels": settings["channels"],
        "qkv_bias": True,
        "encoder_stride": settings["patch_size"],
    }
    state: dict[str, Any] = {
        "embeddings.cls_token": encoder.cls_token,
        "embeddings.position_embeddings": _with_class_token(encoder.positions),
        "embeddings.patch_embeddings.projection.weight": encoder.patch_embed.proj.weight,
        "embeddings.patch_embeddings.projection.bias": encoder.patch_embed.proj.bias,
        **_norm("layernorm", encoder.norm),
    }
    for number, block in enumerate(encoder.blocks):
        state |= {f"encoder.layer.{number}.{name}": value for name, value in _layer(block)}
    return HuggingFaceModel(config, _detached(state))


def vit_mae(host: MAE, mask_ratio: float) -> HuggingFaceModel:
    """Convert encoder and reconstructor to ``ViTMAEForPreTraining``.

    Raises:
        UserError: if the images are not square or the targets are not pixels.
    """
    if not host.reconstructs_pixels:
        raise UserError("--form: vit_mae reconstructs pixels, this model a network's features; expected --form vit")
    rows, columns = host.encoder.grid
    if rows != columns:
        raise UserError(f"--form: vit_mae takes square images, got {rows} x {columns} patches; expected --form vit")
    config, encoder_state = vit(host.encoder)
    embed, decoder = host.decoder_embed, host.reconstructor
    first = decoder.blocks[0]
    assert isinstance(first, Block)
    assert embed.mask_token is not None
    del config["encoder_stride"]
    config |= {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "decoder_hidden_size": decoder.norm.normalized_shape[0],
        "decoder_num_hidden_layers": len(decoder.blocks),
        "decoder_num_attention_heads": first.attn.heads,
        "decoder_intermediate_size": _hidden(first),
        "mask_ratio": mask_ratio,
        "norm_pix_loss": host.normalize_pixels,
    }
    state = {
        "decoder_embed.weight": embed.proj.weight,
        "decoder_embed.bias": embed.proj.bias,
        "mask_token": embed.mask_token,
        "decoder_pos_embed": _with_class_token(embed.positions, embed.class_position),
        **_norm("decoder_norm", decoder.norm),
        "decoder_pred.weight": decoder.head.weight,
        "decoder_pred.bias": decoder.head.bias,
    }
    for number, block in enumerate(decoder.blocks):
        state |= {f"decoder_layers.{number}.{name}": value for name, value in _layer(block)}
    return HuggingFaceModel(
        config,
        {f"vit.{name}": value for name, value in encoder_state.items()}
        | {f"decoder.{name}": value for name, value in _detached(state).items()},
    )


def processor_entries(data: dict[str, Any]) -> dict[str, Any]:
    """Return entries of ``config.json`` by which ``AutoImageProcessor`` is the one that runs timm's transform.

    The library's other classes round the margins of a center crop down, which in one of four images that are not square
    moves the crop by a pixel.

    Args:
        data: see :func:`~hardpatch.export.to_timm.timm_data`.
    """
    return {"image_processor_type": "TimmWrapperImageProcessor", "pretrained_cfg": data}


def preprocessor(encoder: Encoder, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """Return ``preprocessor_config.json``, for ``BitImageProcessor`` where timm is not installed.

    The class has no size that a rectangle of any shape covers: for rectangular models it changes the aspect ratio.
    """
    height, width = encoder.image_size
    fraction = crop_fraction(encoder.image_size)
    covering = {"height": math.floor(height / fraction), "width": math.floor(width / fraction)}
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": encoder.channels == 3,
        "do_resize": True,
        "size": {"shortest_edge": covering["height"]} if height == width else covering,
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def _layer(block: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    assert isinstance(block, Block)
    yield from _norm("layernorm_before", block.norm1).items()
    yield from _norm("layernorm_after", block.norm2).items()
    for name in ("weight", "bias"):
        for part, value in zip(("query", "key", "value"), getattr(block.attn.qkv, name).chunk(3), strict=True):
            yield f"attention.attention.{part}.{name}", value
        yield f"intermediate.dense.{name}", getattr(block.mlp.fc1, name)
    for name, linear, scale in (
        ("attention.output.dense", block.attn.proj, block.ls1),
        ("output.dense", block.mlp.fc2, block.ls2),
    ):
        gamma = scale.gamma if isinstance(scale, LayerScale) else torch.ones_like(linear.bias)
        yield f"{name}.weight", gamma[:, None] * linear.weight
        yield f"{name}.bias", gamma * linear.bias


def _norm(name: str, norm: torch.nn.Module) -> dict[str, Tensor]:
    assert isinstance(norm, torch.nn.LayerNorm)
    return {f"{name}.weight": norm.weight, f"{name}.bias": norm.bias}


def _with_class_token(positions: Tensor, class_position: Tensor | None = None) -> Tensor:
    """Prepend that of the class token, zero if there is none, to positions ``[N, D]``: ``[1, 1 + N, D]``."""
    first = torch.zeros_like(positions[:1]) if class_position is None else class_position[0]
    return torch.cat([first, positions])[None]


def _hidden(block: torch.nn.Module) -> int:
    assert isinstance(block, Block)
    return block.mlp.fc1.out_features


def _detached(state: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in state.items()}
