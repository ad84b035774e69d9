"""A pre-trained encoder to train further, from a run or from another library's Vision Transformer.

What a timm or DINO file holds is read off its tensors. Position embeddings that were learned take the place of the
fixed ones: the patches' become the encoder's ``positions``, the class token's is added to the class token.
"""

import json
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
from hardpatch.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from hardpatch.errors import UserError
from hardpatch.interchange.load import load, read_metadata, weights_file
from hardpatch.interchange.reference import from_reference, read_reference, usual_heads
from hardpatch.methods.hpm import HPM
from hardpatch.models.block import Block
from hardpatch.models.encoder import Encoder
from hardpatch.models.encoder_settings import build_encoder, encoder_settings, mlp_ratio

EXPORTED = "hardpatch_export"
"""The metadata entry of exported files that says, as JSON, what tensors cannot: see :class:`Backbone`."""

# Parts of timm's, DINO's and others' networks that the encoder lacks, by the keys that give them away; first hit wins.
_UNSUPPORTED = {
    r"(^|\.)embeddings\.|(^|\.)encoder\.layer": "Hugging Face's or another library's names; expected timm's",
    r"(^|\.)(reg_token|register_tokens|storage_tokens)$": "register tokens",
    r"rope": "rotary positions",
    r"(^|\.)(norm_pre|ln_pre)\.": "a norm before the blocks, as CLIP has it",
    r"\.mlp\.(fc1_g|fc1_x|w12|w1|w2|w3)\.": "a SwiGLU MLP",
    r"(^|\.)dist_token$": "a distillation token",
    r"relative_position_bias_table": "relative position biases",
    r"\.(q_norm|k_norm)\.": "a norm of queries and keys",
    r"^(fc_norm|attn_pool)\.": "a norm or attention that comes with pooling, as some classifiers have it",
}
_PASSED_OVER = re.compile(r"^(head|pre_logits)\.|^(mask_token|masked_embed)$")
"""What comes after the encoder, or serves its pre-training only."""


class Backbone(NamedTuple):
    """An encoder and the normalization of its images."""

    encoder: Encoder
    """trainable, in train mode, all patches kept: ``[B, C, H, W]`` -> ``[B, 1 + N, D]``"""
    mean: tuple[float, ...]
    """of each channel, for pixels in [0, 1]"""
    std: tuple[float, ...]
    """likewise"""


def load_backbone(
    path: str | Path,
    weights: WeightsName = "student",
    *,
    drop_path: float = 0.0,
    heads: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Backbone:
    """Load the encoder of pre-trained weights, to be trained further.

    Args:
        path: a run folder or weights file of ours; a reference checkpoint of HPM or MAE; a plain ViT with a class token
            in timm's names, as ``.safetensors`` or as a pickle of tensors, which is what timm, DeiT, DINO, DINOv2
            (without registers) and iBOT publish. Never unpickled beyond tensors and plain values.
        weights: student or teacher of a run, a reference or DINO checkpoint; random is an encoder of the same shape
            with new weights.
        drop_path: of the last block while training, rising linearly from 0 in the first.
        heads: of the attention, which leave no trace in other libraries' weights; None is what
            :func:`~hardpatch.interchange.reference.usual_heads` says of the width. A run of ours knows them.
        seed: of random weights.
        device: where to put it.

    Returns:
        The normalization is the run's; of other files ImageNet's, or mean and deviation 0.5 where the images do not
        have three channels.

    Raises:
        UserError: if there is nothing to load, it has parts that the encoder lacks, or it could run code.
    """
    backbone = _read_backbone(weights_file(path), "student" if weights == "random" else weights, drop_path, heads)
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
        return _of_model(load(file, weights), drop_path)
    state = load_file(file) if file.suffix == ".safetensors" else read_reference(file, weights)
    if any(key.endswith("decoder_embed.weight") for key in state):
        return _of_model(from_reference(state, heads=heads), drop_path)
    told = _exported_metadata(file)
    if heads is not None:
        told["heads"] = heads
    state = _timm_names(state, file)
    settings = _settings(state, told, file)
    try:
        encoder = build_encoder(settings | {"drop_path": drop_path})
    except ValueError as error:
        raise UserError(f"RUN: {file}: {error}") from None
    state, expected = _our_state(state, math.prod(encoder.grid)), encoder.state_dict()
    wrong = [key for key in state if key in expected and state[key].shape != expected[key].shape]
    if wrong:
        # DINOv2's giant packs both halves of a SwiGLU MLP into fc1
        reason = "a SwiGLU MLP, which is not supported" if ".mlp.fc2." in wrong[0] else "not the shape of a plain ViT's"
        raise UserError(f"RUN: {file}: {wrong[0]} {list(state[wrong[0]].shape)} is {reason}")
    problems = encoder.load_state_dict(state, strict=False)
    if problems.missing_keys or problems.unexpected_keys:
        raise UserError(
            f"RUN: {file} is not a plain ViT: missing {problems.missing_keys[:3]}, "
            f"unknown {problems.unexpected_keys[:3]}"
        )
    channels = encoder.channels
    mean = told.get("mean", IMAGENET_MEAN if channels == 3 else [0.5] * channels)
    std = told.get("std", IMAGENET_STD if channels == 3 else [0.5] * channels)
    return Backbone(encoder, tuple(mean), tuple(std))


def _of_model(model: HPM, drop_path: float) -> Backbone:
    encoder = model.host.encoder
    encoder.mask_token = None
    depth = len(encoder.blocks)
    for number, block in enumerate(encoder.blocks):
        assert isinstance(block, Block)
        block.drop_path = drop_path * number / max(depth - 1, 1)
    return Backbone(encoder.requires_grad_(True).train(), tuple(model.mean.tolist()), tuple(model.std.tolist()))


def _timm_names(state: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The encoder's tensors in timm's names, without what training wrapped around them.

    Raises:
        UserError: if there are other parts.
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
    return {key: value.float() for key, value in state.items() if not _PASSED_OVER.search(key)}


def _settings(state: Mapping[str, Tensor], told: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """What :func:`build_encoder` wants to know, read off the tensors; ``told`` is what the file says beside them."""
    kernel, positions = state["patch_embed.proj.weight"], state["pos_embed"]
    if kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3]:
        raise UserError(f"RUN: {file}: expected square patches [D, C, p, p], got {list(kernel.shape)}")
    width, channels, patch_size, _ = kernel.shape
    if positions.ndim != 3 or positions.shape[2] != width:
        raise UserError(f"RUN: {file}: expected pos_embed [1, 1 + patches, {width}], got {list(positions.shape)}")
    rows, columns = (side // patch_size for side in told.get("image_size", _square(positions.shape[1], patch_size)))
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
        "heads": told.get("heads") or usual_heads(width),
        "mlp_ratio": 4.0 if hidden is None else mlp_ratio(hidden.shape[0], width),
        "positions": "learned",
        "layer_scale": 1.0 if "blocks.0.ls1.gamma" in state else None,
    }


def _our_state(state: Mapping[str, Tensor], patches: int) -> dict[str, Tensor]:
    ours = dict(state)
    of_class, positions = ours.pop("pos_embed")[0].split([state["pos_embed"].shape[1] - patches, patches])
    return ours | {"cls_token": ours["cls_token"].reshape(1, 1, -1) + of_class.sum(dim=0), "positions": positions}


def _square(entries: int, patch_size: int) -> tuple[int, int]:
    """Image size of the largest square grid of so many position embeddings."""
    side = math.isqrt(entries) * patch_size
    return side, side


def _exported_metadata(file: Path) -> dict[str, Any]:
    if file.suffix != ".safetensors":
        return {}
    with safe_open(file, "pt") as content:
        return json.loads((content.metadata() or {}).get(EXPORTED, "{}"))
