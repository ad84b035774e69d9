"""Convert an encoder to timm's VisionTransformer or, with relative positions, to its Beit."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hardpatch.choices import SIZES
from hardpatch.errors import UserError
from hardpatch.measure.labels import crop_fraction
from hardpatch.models.encoder import Encoder
from hardpatch.models.encoder_settings import encoder_settings

_NAMED: dict[str, dict[str, tuple[int, ...]]] = {
    "vit": {"tiny": (16,), "small": (8, 16, 32), "base": (8, 16, 32), "large": (14, 16, 32), "huge": (14,)},
    "beit": {"base": (16,), "large": (16,)},
}
"""Patch sizes of each size for which timm has a model ``<class>_<size>_patch<p>_224``."""


def timm_state(encoder: Encoder) -> dict[str, Tensor]:
    """Return the encoder's weights under the keys of timm's class, which loads them strictly.

    Fixed positions are written as if they were learned, with zero for the class token.

    Raises:
        UserError: if the encoder has parts that MAE's ViT has not.
    """
    if changes := encoder.variant.changes():
        raise UserError(f"--to: timm's plain ViT has no {', '.join(changes)}, as this encoder has; take its own file")
    state = {name: value for name, value in encoder.state_dict().items() if name not in ("mask_token", "positions")}
    if encoder.positions is not None:
        return state | {
            "pos_embed": torch.cat([encoder.positions.new_zeros(1, encoder.width), encoder.positions])[None]
        }
    renamed = {}
    for name, value in state.items():
        if name == "relative_bias.table":
            renamed["rel_pos_bias.relative_position_bias_table"] = value
        elif name.endswith("attn.qkv.bias"):
            block = name.removesuffix("qkv.bias")
            # timm's Beit lacks the bias of the keys, which adds the same number to all scores of a query
            renamed[f"{block}q_bias"], _, renamed[f"{block}v_bias"] = value.chunk(3)
        else:
            renamed[name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")] = value
    return renamed


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


def timm_config(encoder: Encoder, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the ``config.json`` of a folder for ``timm.create_model("local-dir:FOLDER")``, or of timm's hub."""
    arguments = dict(arguments)
    overlay, classes = arguments.pop("pretrained_cfg_overlay"), arguments.pop("num_classes")
    pretrained = {**overlay, "fixed_input_size": True, "classifier": "head"}
    if encoder.channels == 3:  # else timm 1.0.21 converts the weights as if they were for 3 channels
        pretrained["first_conv"] = "patch_embed.proj"
    return {
        "architecture": name,
        "num_classes": classes,
        "num_features": encoder.width,
        "model_args": arguments,
        "pretrained_cfg": pretrained,
    }


def timm_arguments(encoder: Encoder, mean: Sequence[float], std: Sequence[float]) -> tuple[str, dict[str, Any]]:
    """Return name and keyword arguments of ``timm.create_model``.

    The name is that of timm's model with the encoder's shape, or else that of the base model, whose differences are in
    the arguments.
    """
    settings = encoder_settings(encoder)
    relative = settings["positions"] == "relative"
    family = "beit" if relative else "vit"
    height, width = settings["image_size"]
    shape = {name: settings[name] for name in ("width", "depth", "heads")}
    size = next((name for name, standard in SIZES.items() if standard == shape), None)
    arguments: dict[str, Any] = {}
    if (height, width) != (224, 224):
        arguments["img_size"] = height if height == width else (height, width)
    if settings["channels"] != 3:
        arguments["in_chans"] = settings["channels"]
    if size is not None and settings["patch_size"] in _NAMED[family].get(size, ()):
        name = f"{family}_{size}_patch{settings['patch_size']}_224"
    else:
        name = f"{family}_base_patch16_224"
        arguments |= {"patch_size": settings["patch_size"], "embed_dim": settings["width"]}
        arguments |= {"depth": settings["depth"], "num_heads": settings["heads"]}
    if settings["mlp_ratio"] != 4.0:
        arguments["mlp_ratio"] = settings["mlp_ratio"]
    if relative:
        arguments |= {"use_shared_rel_pos_bias": True, "use_rel_pos_bias": False, "global_pool": "token"}
        # 0 means none: create_model drops arguments that are None
        arguments["init_values"] = settings["layer_scale"] or 0.0
    elif settings["layer_scale"] is not None:
        arguments["init_values"] = settings["layer_scale"]
    arguments["num_classes"] = 0
    arguments["pretrained_cfg_overlay"] = timm_data(encoder, mean, std)
    return name, arguments
