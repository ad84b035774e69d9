"""An encoder as timm's VisionTransformer or, with relative positions, as its Beit (pytorch-image-models)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hardpatch.choices import SIZES
from hardpatch.models.encoder import Encoder
from hardpatch.models.encoder_settings import encoder_settings

_NAMED: dict[str, dict[str, tuple[int, ...]]] = {
    "vit": {"tiny": (16,), "small": (8, 16, 32), "base": (8, 16, 32), "large": (14, 16, 32), "huge": (14,)},
    "beit": {"base": (16,), "large": (16,)},
}
"""Of the sizes of :data:`SIZES`, the patch sizes for which timm has ``<class>_<size>_patch<p>_224``."""


def timm_state(encoder: Encoder) -> dict[str, Tensor]:
    """The encoder's weights under the keys of timm's class, which loads them strictly.

    Fixed positions are written out as if they were learned, zero for the class token.
    """
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
            # timm's Beit has no bias of the keys, and needs none: it adds the same to all scores of a query
            renamed[f"{block}q_bias"], _, renamed[f"{block}v_bias"] = value.chunk(3)
        else:
            renamed[name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")] = value
    return renamed


def timm_arguments(encoder: Encoder, mean: Sequence[float], std: Sequence[float]) -> tuple[str, dict[str, Any]]:
    """Name and further arguments of ``timm.create_model`` for it: the model of that shape where timm has a name for it,
    else the base model with all that differs."""
    of = encoder_settings(encoder)
    relative = of["positions"] == "relative"
    family = "beit" if relative else "vit"
    height, width = of["image_size"]
    shape = {name: of[name] for name in ("width", "depth", "heads")}
    size = next((name for name, known in SIZES.items() if known == shape), None)
    arguments: dict[str, Any] = {}
    if (height, width) != (224, 224):
        arguments["img_size"] = height if height == width else (height, width)
    if of["channels"] != 3:
        arguments["in_chans"] = of["channels"]
    if size is not None and of["patch_size"] in _NAMED[family].get(size, ()):
        name = f"{family}_{size}_patch{of['patch_size']}_224"
    else:
        name = f"{family}_base_patch16_224"
        arguments |= {"patch_size": of["patch_size"], "embed_dim": of["width"]}
        arguments |= {"depth": of["depth"], "num_heads": of["heads"]}
    if of["mlp_ratio"] != 4.0:
        arguments["mlp_ratio"] = of["mlp_ratio"]
    if relative:
        arguments |= {"use_shared_rel_pos_bias": True, "use_rel_pos_bias": False, "global_pool": "token"}
        arguments["init_values"] = of["layer_scale"] or 0.0  # 0 is none: create_model passes over None
    elif of["layer_scale"] is not None:
        arguments["init_values"] = of["layer_scale"]
    arguments["num_classes"] = 0
    arguments["pretrained_cfg_overlay"] = {
        "mean": tuple(mean),
        "std": tuple(std),
        "input_size": (of["channels"], height, width),
    }
    return name, arguments
