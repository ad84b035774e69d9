"""Pre-trained encoder for further training, from a run or from another library's Vision Transformer.

The architecture in a timm or DINO file is inferred from its tensors. Learned position embeddings replace the fixed
ones: those of the patches become the encoder's ``positions``, that of the class token is added to the class token.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from hardpatch.choices import WeightsName
from hardpatch.data.reading import RGB, Reading
from hardpatch.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from hardpatch.errors import UserError
from hardpatch.interchange.load import load, read_metadata, read_newest
from hardpatch.interchange.reference import default_heads, from_reference, read_reference
from hardpatch.methods.hpm import HPM
from hardpatch.models.block import Block
from hardpatch.models.encoder import Encoder
from hardpatch.models.encoder_settings import absorb_class_position, build_encoder, encoder_settings, mlp_ratio
from hardpatch.weights import check_finite, check_normalization, described, parse_metadata

EXPORTED = "hardpatch_export"
"""Metadata entry of exported files: a JSON object with image size, heads, mean and standard deviation."""

# Parts of timm's, DINO's and others' networks that the encoder lacks, by patterns of their keys; the first match wins.
_UNSUPPORTED = {
    r"(^|\.)embeddings\.|(^|\.)encoder\.layer": "Hugging Face's or another library's names; expected timm's",
    r"(^|\.)(reg_token|register_tokens|storage_tokens)$": "register tokens",
    r"rope": "rotary positions",
    r"(^|\.)(norm_pre|ln_pre)\.": "a norm before the blocks, as CLIP has it",
    r"\.mlp\.(fc1_g|fc1_x|w12|w1|w2|w3)\.": "a SwiGLU MLP",
    r"(^|\.)dist_token$": "a distillation token",
    r"relative_position_bias_table": "relative position biases",
    r"\.(q_norm|k_norm)\.": "a norm of queries and keys",
    r"^(fc_norm|attn_pool)\.": "the norm or attention of a pooling layer",
}
_IGNORED = re.compile(r"^(head|pre_logits)\.|^(mask_token|masked_embed)$")
"""Keys of parts that follow the encoder or are used in its pre-training only."""


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
    weights: WeightsName = "student",
    *,
    drop_path: float = 0.0,
    heads: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Backbone:
    """Load the encoder of pre-trained weights for fine-tuning.

    Args:
        path: a run folder or weights file of ours; a reference checkpoint of HPM or MAE; a plain ViT with a class token
            in timm's names, as timm, DeiT, DINO, DINOv2 (without registers) and iBOT publish it, as ``.safetensors`` or
            as a pickle, of which only tensors and plain values are read.
        weights: student or teacher of a run, a reference or a DINO checkpoint; random is an encoder of the same shape
            with new weights.
        drop_path: drop probability of the last block, rising linearly from 0 in the first.
        heads: attention heads, which cannot be inferred from other libraries' weights; None uses
            :func:`~hardpatch.interchange.reference.default_heads` of the width. Ignored for a run of hardpatch.
        seed: of random weights.
        device: where to put it.

    Returns:
        The encoder and the run's normalization; for other files ImageNet's, or 0.5 if there are not three channels.

    Raises:
        UserError: if there is nothing to load, the file has parts that the encoder lacks, or it could run code.
    """
    part: Literal["student", "teacher"] = "student" if weights == "random" else weights
    backbone = read_newest(path, lambda file: _read_backbone(file, part, drop_path, heads))
    if weights == "random":
        settings = encoder_settings(backbone.encoder)
        if settings["positions"] == "learned":
            settings["positions"] = "sincos"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone = backbone._replace(encoder=build_encoder(settings))
    return backbone._replace(encoder=backbone.encoder.to(device))


def _read_backbone(file: Path, weights: Literal["student", "teacher"], drop_path: float, heads: int | None) -> Backbone:
    if read_metadata(file) is not None:
        return _from_model(load(file, weights), drop_path)
    state = load_file(file) if file.suffix == ".safetensors" else read_reference(file, weights)
    check_finite(state, file)
    if any(key.endswith("decoder_embed.weight") for key in state):
        return _from_model(from_reference(state, heads=heads), drop_path)
    metadata = _exported_metadata(file)
    if heads is not None:
        metadata["heads"] = heads
    state = _timm_names(state, file)
    with described(file):
        settings = _settings(state, metadata, file)
    try:
        encoder = build_encoder(settings | {"drop_path": drop_path})
    except ValueError as error:
        raise UserError(f"RUN: {file}: {error}") from None
    state, expected = _encoder_state(state, math.prod(encoder.grid)), encoder.state_dict()
    mismatched = [key for key in state if key in expected and state[key].shape != expected[key].shape]
    if mismatched:
        # DINOv2's giant packs both halves of a SwiGLU MLP into fc1
        reason = (
            "a SwiGLU MLP, which is not supported" if ".mlp.fc2." in mismatched[0] else "not the shape of a plain ViT's"
        )
        raise UserError(f"RUN: {file}: {mismatched[0]} {list(state[mismatched[0]].shape)} is {reason}")
    problems = encoder.load_state_dict(state, strict=False)
    if problems.missing_keys or problems.unexpected_keys:
        raise UserError(
            f"RUN: {file} is not a plain ViT: missing {problems.missing_keys[:3]}, "
            f"unknown {problems.unexpected_keys[:3]}"
        )
    other = None if encoder.channels == 3 else [0.5] * encoder.channels
    with described(file):
        mean, std = metadata.get("mean", other or IMAGENET_MEAN), metadata.get("std", other or IMAGENET_STD)
        check_normalization({"mean": mean, "std": std})
        own = metadata.get("reading")
        reading = Reading(encoder.channels) if own is None else Reading.from_dict(own)
    return Backbone(encoder, tuple(mean), tuple(std), reading)


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


def _timm_names(state: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Return the encoder's tensors in timm's names, without the prefixes of training wrappers.

    Raises:
        UserError: if there are parts that the encoder lacks.
    """
    for prefix in ("module.", "_orig_mod.", "model.", "backbone."):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    for pattern, part in _UNSUPPORTED.items():
        key = next((key for key in state if re.search(pattern, key)), None)
        if key is not None:
            raise UserError(f"RUN: {file} has {part} ({key}), which is not supported; expected a plain ViT")
    needed = ("patch_embed.proj.weight", "cls_token", "pos_embed", "norm.weight", "blocks.0.attn.qkv.weight")
    missing = [key for key in needed if key not in state]
    if missing:
        raise UserError(
            f"RUN: expected a ViT with class token in timm's names, or a checkpoint of HPM or MAE; {file} has no key "
            f"{missing[0]!r}"
        )
    return {key: value.float() for key, value in state.items() if not _IGNORED.search(key)}


def _settings(state: Mapping[str, Tensor], metadata: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Infer the settings for :func:`build_encoder` from tensors and the ``metadata`` of the file."""
    kernel, positions = state["patch_embed.proj.weight"], state["pos_embed"]
    if kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3]:
        raise UserError(f"RUN: {file}: expected square patches [D, C, p, p], got {list(kernel.shape)}")
    width, channels, patch_size, _ = kernel.shape
    if positions.ndim != 3 or positions.shape[2] != width:
        raise UserError(f"RUN: {file}: expected pos_embed [1, 1 + patches, {width}], got {list(positions.shape)}")
    rows, columns = (side // patch_size for side in metadata.get("image_size", _square(positions.shape[1], patch_size)))
    if positions.shape[1] - rows * columns not in (0, 1):  # 0: DeiT III has no entry for the class token
        raise UserError(
            f"RUN: {file}: expected positions of a square grid of patches, got {positions.shape[1]} entries"
        )
    hidden = state.get("blocks.0.mlp.fc1.weight")
    return {
        "image_size": [rows * patch_size, columns * patch_size],
        "patch_size": patch_size,
        "channels": channels,
        "width": width,
        "depth": len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
        "heads": metadata.get("heads") or default_heads(width),
        "mlp_ratio": 4.0 if hidden is None else mlp_ratio(hidden.shape[0], width),
        "positions": "learned",
        "layer_scale": 1.0 if "blocks.0.ls1.gamma" in state else None,
    }


def _encoder_state(state: Mapping[str, Tensor], patches: int) -> dict[str, Tensor]:
    """Return the state dict of :class:`Encoder` for timm's: the class token takes up its position embedding."""
    encoder = dict(state)
    class_position, positions = encoder.pop("pos_embed")[0].split([state["pos_embed"].shape[1] - patches, patches])
    cls_token = encoder["cls_token"].reshape(1, 1, -1) + class_position.sum(dim=0)
    return encoder | {"cls_token": cls_token, "positions": positions}


def _square(entries: int, patch_size: int) -> tuple[int, int]:
    """Image size of the largest square grid with at most that many position embeddings."""
    side = math.isqrt(entries) * patch_size
    return side, side


def _exported_metadata(file: Path) -> dict[str, Any]:
    if file.suffix != ".safetensors":
        return {}
    with safe_open(file, "pt") as content:
        return parse_metadata((content.metadata() or {}).get(EXPORTED, "{}"), file)
