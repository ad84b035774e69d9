"""Convert an encoder to timm: to its VisionTransformer, with relative positions to Beit, with rotary ones to Eva."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hardpatch.choices import SIZES
from hardpatch.export.network import (
    Head,
    Traits,
    first_block,
    has_key_bias,
    hidden_width,
    positions_with_class,
    refuse,
    traits,
)
from hardpatch.measure.labels import crop_fraction
from hardpatch.models.block import NORM_EPS, Block
from hardpatch.models.encoder import Encoder
from hardpatch.models.encoder_settings import encoder_settings, mlp_ratio

_NAMED: dict[str, dict[str, tuple[int, ...]]] = {
    "vit": {"tiny": (16,), "small": (8, 16, 32), "base": (8, 16, 32), "large": (14, 16, 32), "huge": (14,)},
    "beit": {"base": (16,), "large": (16,)},
}
"""Patch sizes of each size for which timm has a model ``<class>_<size>_patch<p>_224``."""
EVA_EPS = 1e-5
"""Added to the variance in norms of timm's CLIP and DINOv3; in its other models 1e-6"""

_ONES = {
    ("eva", False): ("gamma_1", "gamma_2"),
    ("eva", True): ("gamma_1", "gamma_2"),
    ("vit", True): ("ls1.gamma", "ls2.gamma"),
}
"""Layer scale of timm's models that always have it, by class and whether the MLP is gated"""

FamilyName = Literal["vit", "beit", "eva"]


def timm_family(encoder: Encoder, head: Head | None = None) -> FamilyName:
    """Return which of timm's classes holds an encoder exactly.

    Raises:
        UserError: if none does; names the parts.
    """
    has, variant = traits(encoder, head), encoder.variant
    relative = has.shared_bias or has.block_bias
    family: FamilyName = "eva" if variant.rope_theta is not None else "beit" if relative else "vit"
    swiglu = has.activation == "swiglu"
    expected = {"eva": EVA_EPS, "beit": NORM_EPS, "vit": NORM_EPS if swiglu else has.eps}[family]
    odd_eps = has.eps not in (NORM_EPS, EVA_EPS) or has.eps != expected
    parts = {f"norms that add {has.eps:g} to the variance": odd_eps}
    if family == "vit":
        parts["an embedding of patches without bias and no norm before the blocks"] = not (
            variant.patch_bias or variant.pre_norm
        )
        parts["a bias of patches before a norm"] = variant.patch_bias and variant.pre_norm
    else:
        parts |= {
            "a norm before the blocks": variant.pre_norm,
            "no bias of patches": not variant.patch_bias,
            "norms of queries and keys": variant.qk_norm,
            "QuickGELU": has.activation == "quick_gelu",
        }
    if family == "beit":
        parts |= {"register tokens": bool(variant.registers), "SwiGLU": swiglu}
        parts["a head without any norm"] = has.norm is None and head is not None and head.norm is None
    if family == "eva":
        parts |= {"relative positions beside rotary ones": relative, "a bias of keys": has_key_bias(encoder)}
        parts["no norm after the last block"] = has.norm is None and head is None
    name = {"vit": "VisionTransformer", "beit": "Beit", "eva": "Eva (DINOv3)"}[family]
    refuse(f"timm's {name}", parts, "expected --to onnx, or --to hf for some of these")
    return family


def timm_state(encoder: Encoder, head: Head | None = None) -> dict[str, Tensor]:
    """Return the weights under the keys of timm's class, which loads them strictly.

    Fixed positions are written as if they were learned.

    Raises:
        UserError: if timm has no class that holds them.
    """
    family = timm_family(encoder, head)
    renamed = {}
    for name, value in encoder.state_dict().items():
        if name in ("mask_token", "positions", "class_position") or name.endswith("relative_bias.table"):
            continue
        if name == "registers":
            renamed["reg_token"] = value
        elif name == "cls_token" and encoder.registers is not None and encoder.class_position is not None:
            renamed[name] = value + encoder.class_position  # timm's registers come without positions
        elif family != "vit" and name.endswith("attn.qkv.bias"):
            block = name.removesuffix("qkv.bias")
            # timm lacks the bias of the keys: zero, or without rotary positions the same for all scores of a query
            renamed[f"{block}q_bias"], _, renamed[f"{block}v_bias"] = value.chunk(3)
        elif family == "eva" and ".mlp.fc1." in name and encoder.variant.activation == "swiglu":
            renamed[name.replace("fc1", "fc1_g")], renamed[name.replace("fc1", "fc1_x")] = value.chunk(2)
        elif family != "vit":
            renamed[name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")] = value
        else:
            renamed[name] = value
    return renamed | _positions(encoder, family) | _head(encoder, head, family)


def _positions(encoder: Encoder, family: FamilyName) -> dict[str, Tensor]:
    state = {}
    if encoder.positions is not None:
        state["pos_embed"] = positions_with_class(encoder) if encoder.registers is None else encoder.positions[None]
    if encoder.relative_bias is not None:
        state["rel_pos_bias.relative_position_bias_table"] = encoder.relative_bias.resampled(encoder.grid)
    for number, block in enumerate(encoder.blocks):
        assert isinstance(block, Block)
        if block.relative_bias is not None:
            table = block.relative_bias.resampled(encoder.grid)
            state[f"blocks.{number}.attn.relative_position_bias_table"] = table
        if not traits(encoder).layer_scale:  # create_model drops arguments that are None
            for name in _ONES.get((family, encoder.variant.activation == "swiglu"), ()):
                state[f"blocks.{number}.{name}"] = torch.ones(encoder.width)
    return state


def _head(encoder: Encoder, head: Head | None, family: FamilyName) -> dict[str, Tensor]:
    if head is None:
        if family == "beit" and traits(encoder).norm is None:  # a norm after pooling, which features do not show
            return {"fc_norm.weight": torch.ones(encoder.width), "fc_norm.bias": torch.zeros(encoder.width)}
        return {}
    state = {"head.weight": head.weight, "head.bias": head.bias}
    if head.norm is not None:
        name = "fc_norm" if head.pool == "mean" else "norm"
        state |= {f"{name}.weight": head.norm.weight, f"{name}.bias": head.norm.bias}
    return state


def timm_data(encoder: Encoder, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """Return the entries of timm's ``pretrained_cfg`` by which ``timm.data.create_transform`` prepares images."""
    return {
        "input_size": (encoder.channels, *encoder.image_size),
        "interpolation": "bicubic",
        "crop_pct": crop_fraction(encoder.image_size),
        "crop_mode": "center",
        "mean": tuple(mean),
        "std": tuple(std),
    }


def timm_config(encoder: Encoder, name: str, arguments: dict[str, Any], head: Head | None = None) -> dict[str, Any]:
    """Return the ``config.json`` of a folder for ``timm.create_model("local-dir:FOLDER")``, or of timm's hub."""
    arguments = dict(arguments)
    overlay, classes = arguments.pop("pretrained_cfg_overlay"), arguments.pop("num_classes")
    pretrained = {**overlay, "fixed_input_size": True, "classifier": "head"}
    if encoder.channels == 3:  # else timm 1.0.21 converts the weights as if they were for 3 channels
        pretrained["first_conv"] = "patch_embed.proj"
    labels = {} if head is None else {"label_names": list(head.classes)}
    return {
        "architecture": name,
        "num_classes": classes,
        "num_features": encoder.width,
        **({} if "global_pool" not in arguments else {"global_pool": arguments["global_pool"]}),
        **labels,
        "model_args": arguments,
        "pretrained_cfg": pretrained,
    }


def timm_arguments(
    encoder: Encoder, mean: Sequence[float], std: Sequence[float], head: Head | None = None
) -> tuple[str, dict[str, Any]]:
    """Return name and keyword arguments of ``timm.create_model``.

    The name is that of timm's model with the encoder's shape, or else that of a model whose differences are in the
    arguments.

    Raises:
        UserError: if timm has no class that holds the network.
    """
    family, settings, has = timm_family(encoder, head), encoder_settings(encoder), traits(encoder, head)
    height, width = settings["image_size"]
    arguments: dict[str, Any] = {}
    if (height, width) != (224, 224):
        arguments["img_size"] = height if height == width else (height, width)
    if settings["channels"] != 3:
        arguments["in_chans"] = settings["channels"]
    name = _name(encoder, family, has)
    if name is None:
        name = _base_name(family, has, qkv_bias=encoder.variant.qkv_bias)
        arguments |= {"patch_size": settings["patch_size"], "embed_dim": settings["width"]}
        arguments |= {"depth": settings["depth"], "num_heads": settings["heads"]}
    swiglu, hidden = has.activation == "swiglu", hidden_width(encoder)
    # timm's ViT counts gate and value of SwiGLU together
    ratio = mlp_ratio(2 * hidden if swiglu and family == "vit" else hidden, encoder.width)
    if ratio != 4.0 or swiglu:
        arguments["mlp_ratio"] = ratio
    arguments |= _differences(encoder, family, has, None if head is None else head.norm)
    if head is not None or (family == "beit" and has.norm is None):
        pool = "avg" if head is None or head.pool == "mean" else "token"
        norm_after = head is None or (head.norm is not None and pool == "avg")
        arguments |= {"global_pool": pool, "fc_norm" if family == "vit" else "use_fc_norm": norm_after}
    elif family == "beit":
        arguments["global_pool"] = "token"
    arguments["num_classes"] = 0 if head is None else len(head.classes)
    arguments["pretrained_cfg_overlay"] = timm_data(encoder, mean, std)
    return name, arguments


def _name(encoder: Encoder, family: FamilyName, has: Traits) -> str | None:
    """Return the name of timm's model of the encoder's width, depth, heads and patches, if it has one."""
    shape = {"width": encoder.width, "depth": len(encoder.blocks), "heads": first_block(encoder).attn.heads}
    size = next((name for name, standard in SIZES.items() if standard == shape), None)
    patch, plain = encoder.patch_size, has.eps == NORM_EPS and has.activation != "swiglu"
    if plain and size is not None and patch in _NAMED.get(family, {}).get(size, ()):
        return f"{family}_{size}_patch{patch}_224"
    return None


def _base_name(family: FamilyName, has: Traits, *, qkv_bias: bool) -> str:
    swiglu = has.activation == "swiglu"
    if family == "eva":
        return f"vit_small_{'plus_' if swiglu else ''}patch16_dinov3{'_qkvb' if qkv_bias else ''}"
    if family == "vit" and swiglu:
        return "vit_giant_patch14_dinov2"
    if has.eps == EVA_EPS:
        return "vit_base_patch16_clip_quickgelu_224"
    return f"{family}_base_patch16_224"


def _differences(encoder: Encoder, family: FamilyName, has: Traits, after: nn.LayerNorm | None) -> dict[str, Any]:
    """Return the arguments of what the encoder has and the model of that name has not."""
    variant = encoder.variant
    scale = 1.0 if has.layer_scale else None
    if family == "eva":
        arguments: dict[str, Any] = {"num_reg_tokens": variant.registers, "rope_temperature": variant.rope_theta}
        # gate and value are separate layers only where the hidden width is rounded to a multiple, here of one
        return arguments | ({"swiglu_align_to": 1} if has.activation == "swiglu" else {})
    if family == "beit":
        arguments = {"use_shared_rel_pos_bias": has.shared_bias, "use_rel_pos_bias": has.block_bias}
        if has.absolute:
            arguments["use_abs_pos_emb"] = True
        if not variant.qkv_bias:
            arguments["qkv_bias"] = False
        # 0 means none: create_model drops arguments that are None
        return arguments | {"init_values": scale or 0.0}
    arguments = {}
    if variant.registers:
        arguments |= {"reg_tokens": variant.registers, "no_embed_class": True}
    if not variant.qkv_bias:
        arguments["qkv_bias"] = False
    if variant.qk_norm:
        arguments["qk_norm"] = True
    if has.eps == EVA_EPS or variant.pre_norm:
        arguments["pre_norm"] = variant.pre_norm
    if has.activation == "quick_gelu" or (has.eps == EVA_EPS and has.activation == "gelu"):
        arguments["act_layer"] = has.activation
    if has.norm is None and after is None:
        arguments["final_norm"] = False
    return arguments | ({} if scale is None else {"init_values": scale})
