"""Convert an encoder or a classifier to torchvision's VisionTransformer."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer  # type: ignore[import-untyped]
from torchvision.transforms import InterpolationMode, v2  # type: ignore[import-untyped]

from hardpatch.export.file_check import Preprocess
from hardpatch.export.hugging_face_names import named_block
from hardpatch.export.network import Head, beyond_plain, first_block, hidden_width, positions_with_class, refuse, traits
from hardpatch.measure.labels import crop_fraction
from hardpatch.models.block import Block
from hardpatch.models.encoder import Encoder

WEIGHTS = "model.pth"
"""File of the state dict in an exported folder"""
_NAMES = {
    "layernorm_before": "ln_1",
    "layernorm_after": "ln_2",
    "attention.output.dense": "self_attention.out_proj",
    "intermediate.dense": "mlp.0",
    "output.dense": "mlp.3",
}
"""Parts of a block, from Hugging Face's names of ViT"""


def torchvision_arguments(encoder: Encoder, head: Head | None = None) -> dict[str, Any]:
    """Return the arguments of ``VisionTransformer``, plain values; ``eps`` is that of its norms.

    Raises:
        UserError: if the class cannot hold the network.
    """
    has, variant = traits(encoder, head), encoder.variant
    parts = beyond_plain(encoder, head) | {
        "QuickGELU": has.activation == "quick_gelu",
        "no bias of queries, keys and values": not variant.qkv_bias,
        "images that are not square": not has.square,
        f"{encoder.channels} channels": encoder.channels != 3,
    }
    refuse("torchvision's VisionTransformer", parts, "expected --to timm or --to onnx")
    return {
        "image_size": encoder.image_size[0],
        "patch_size": encoder.patch_size,
        "num_layers": len(encoder.blocks),
        "num_heads": first_block(encoder).attn.heads,
        "hidden_dim": encoder.width,
        "mlp_dim": hidden_width(encoder),
        "num_classes": 0 if head is None else len(head.classes),
        "eps": has.eps,
    }


def torchvision_state(encoder: Encoder, head: Head | None = None) -> dict[str, Tensor]:
    """Return the weights under torchvision's names; layer scale is multiplied into the layers before it."""
    norm = traits(encoder).norm if head is None or head.norm is None else head.norm
    assert norm is not None
    state: dict[str, Any] = {
        "class_token": encoder.cls_token,
        "conv_proj.weight": encoder.patch_embed.proj.weight,
        "conv_proj.bias": encoder.patch_embed.proj.bias,
        "encoder.pos_embedding": positions_with_class(encoder),
        "encoder.ln.weight": norm.weight,
        "encoder.ln.bias": norm.bias,
    }
    for number, block in enumerate(encoder.blocks):
        assert isinstance(block, Block)
        prefix = f"encoder.layers.encoder_layer_{number}."
        for part in ("weight", "bias"):
            state[f"{prefix}self_attention.in_proj_{part}"] = getattr(block.attn.qkv, part)
        for name, value in named_block(block, "vit"):
            layer, part = name.rsplit(".", 1)
            if layer in _NAMES:
                state[f"{prefix}{_NAMES[layer]}.{part}"] = value
    if head is not None:
        state |= {"heads.head.weight": head.weight, "heads.head.bias": head.bias}
    return {name: value.detach().clone() for name, value in state.items()}


def torchvision_code(arguments: dict[str, Any], folder: Path) -> str:
    """Return one line of Python that builds ``model`` with its weights."""
    values = {name: value for name, value in arguments.items() if name not in ("eps", "num_classes")}
    values |= {"num_classes": arguments["num_classes"]} if arguments["num_classes"] else {}
    keywords = ", ".join(f"{name}={value!r}" for name, value in values.items())
    norm = f"functools.partial(torch.nn.LayerNorm, eps={arguments['eps']!r})"
    line = f"model = torchvision.models.vision_transformer.VisionTransformer({keywords}, norm_layer={norm}); "
    line += "" if arguments["num_classes"] else "model.heads = torch.nn.Identity(); "
    return f'{line}model.load_state_dict(torch.load("{folder / WEIGHTS}", weights_only=True))'


def load_torchvision(arguments: dict[str, Any], state: dict[str, Tensor]) -> VisionTransformer:
    """Build torchvision's network and load the weights strictly."""
    values = {name: value for name, value in arguments.items() if name not in ("eps", "num_classes")}
    classes = {"num_classes": arguments["num_classes"]} if arguments["num_classes"] else {}
    network = VisionTransformer(**values, **classes, norm_layer=partial(nn.LayerNorm, eps=arguments["eps"]))
    if not classes:
        network.heads = nn.Identity()
    network.load_state_dict(state)
    return network.eval()


def torchvision_outputs(network: Any, head: Head | None) -> Callable[[Tensor], Tensor]:
    """Return the function from images to scores or, without a head, to all tokens."""
    if head is not None:
        return network

    def tokens(images: Tensor) -> Tensor:
        x = network._process_input(images)
        return network.encoder(torch.cat([network.class_token.expand(len(x), -1, -1), x], dim=1))

    return tokens


def preprocessing(encoder: Encoder, mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Preprocess, str]:
    """Return torchvision's transform of an image that Pillow has opened, and the Python code of it."""
    side = encoder.image_size[0]
    covering = int(side / crop_fraction(encoder.image_size))
    transform = v2.Compose(
        [
            v2.Resize(covering, InterpolationMode.BICUBIC),
            v2.CenterCrop(side),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )
    code = (
        f"torchvision.transforms.v2.Compose([v2.Resize({covering}, v2.InterpolationMode.BICUBIC), v2.CenterCrop({side})"
        f", v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize({list(mean)}, {list(std)})])"
    )
    return lambda picture: transform(picture)[None], code.replace("torchvision.transforms.v2.Compose", "v2.Compose")
