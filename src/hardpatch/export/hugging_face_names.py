"""Names of an encoder's tensors in Hugging Face's classes, as they stand in its published checkpoints."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from hardpatch.export.network import has_key_bias, positions_with_class
from hardpatch.models.block import Block, LayerScale
from hardpatch.models.encoder import Encoder

ClassName = Literal["vit", "beit", "dinov2", "dinov3", "clip"]


class Names(NamedTuple):
    """Names of the parts of a block, and of those around the blocks."""

    layer: str
    norms: tuple[str, str]
    attention: tuple[str, str, str, str]
    """queries, keys, values, and the projection of the result"""
    mlp: tuple[str, str]
    scales: tuple[str, str] | None
    """layer scale after attention and MLP; None where the class has none"""
    norm: str
    patches: str = "embeddings.patch_embeddings.projection"
    cls_token: str = "embeddings.cls_token"


_VIT_NORMS = ("layernorm_before", "layernorm_after")
_VIT_ATTENTION = (
    "attention.attention.query",
    "attention.attention.key",
    "attention.attention.value",
    "attention.output.dense",
)
_VIT_MLP = ("intermediate.dense", "output.dense")
_SCALES = ("layer_scale1.lambda1", "layer_scale2.lambda1")
_CLIP_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
_DINOV3_ATTENTION = ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj")
NAMES: dict[ClassName, Names] = {
    "vit": Names("encoder.layer.", _VIT_NORMS, _VIT_ATTENTION, _VIT_MLP, None, "layernorm"),
    "beit": Names("encoder.layer.", _VIT_NORMS, _VIT_ATTENTION, _VIT_MLP, ("lambda_1", "lambda_2"), "layernorm"),
    "dinov2": Names("encoder.layer.", ("norm1", "norm2"), _VIT_ATTENTION, ("mlp.fc1", "mlp.fc2"), _SCALES, "layernorm"),
    "dinov3": Names(
        *("layer.", ("norm1", "norm2"), _DINOV3_ATTENTION, ("mlp.up_proj", "mlp.down_proj"), _SCALES, "norm"),
        patches="embeddings.patch_embeddings",
    ),
    "clip": Names(
        "encoder.layers.",
        ("layer_norm1", "layer_norm2"),
        _CLIP_ATTENTION,
        ("mlp.fc1", "mlp.fc2"),
        None,
        "post_layernorm",
        patches="embeddings.patch_embedding",
        cls_token="embeddings.class_embedding",
    ),
}
"""By class; dinov2 also with registers"""


def named_state(encoder: Encoder, kind: ClassName, norm: nn.LayerNorm | None) -> dict[str, Tensor]:
    """Return the weights of an encoder in the names of a class.

    Layer scale is multiplied into the layer before it where the class has none; where the class has it and the encoder
    does not, it is one.

    Args:
        encoder: the parts that the class cannot hold are not looked at.
        kind: the class.
        norm: after the last block.
    """
    names = NAMES[kind]
    state: dict[str, Any] = {
        names.cls_token: encoder.cls_token.reshape(-1) if kind == "clip" else encoder.cls_token,
        **_named(names.patches, encoder.patch_embed.proj),
        **({} if norm is None else _named(names.norm, norm)),
    }
    if encoder.positions is not None:
        positions = positions_with_class(encoder)
        if kind == "clip":
            state["embeddings.position_embedding.weight"] = positions[0]
        else:
            state["embeddings.position_embeddings"] = positions
    if encoder.registers is not None:
        state["embeddings.register_tokens"] = encoder.registers
    if kind == "clip":
        state |= _named("pre_layrnorm", encoder.norm_pre)
    if kind == "dinov2":  # of which features of whole images show nothing
        state["embeddings.mask_token"] = torch.zeros(1, encoder.width)
    if kind == "dinov3":
        state["embeddings.mask_token"] = torch.zeros(1, 1, encoder.width)
        state["embeddings.register_tokens"] = _registers(encoder)
    if encoder.relative_bias is not None:
        table = encoder.relative_bias.resampled(encoder.grid)
        state["encoder.relative_position_bias.relative_position_bias_table"] = table
    # keys have no bias in BEiT, where it changes nothing, and in DINOv3 only where it is not zero
    key_bias = kind != "beit" and (kind != "dinov3" or has_key_bias(encoder))
    for number, block in enumerate(encoder.blocks):
        assert isinstance(block, Block)
        prefix = f"{names.layer}{number}."
        state |= {f"{prefix}{name}": value for name, value in named_block(block, kind, key_bias=key_bias)}
        if block.relative_bias is not None:
            bias = "attention.attention.relative_position_bias.relative_position_bias_table"
            state[prefix + bias] = block.relative_bias.resampled(encoder.grid)
    return {name: value.detach() for name, value in state.items()}


def named_block(block: Block, kind: ClassName, *, key_bias: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Yield names and weights of one block, with the bias of keys or without it."""
    names, swiglu = NAMES[kind], block.mlp.activation == "swiglu"
    for norm, name in zip((block.norm1, block.norm2), names.norms, strict=True):
        yield from _named(name, norm).items()
    for part in ("weight", "bias"):
        values = getattr(block.attn.qkv, part)
        values = () if values is None else values.chunk(3)
        for name, value in zip(names.attention, values, strict=False):
            if key_bias or part == "weight" or name != names.attention[1]:
                yield f"{name}.{part}", value
    first, last = names.mlp
    if swiglu and kind == "dinov2":
        first, last = "mlp.weights_in", "mlp.weights_out"
    if swiglu and kind == "dinov3":
        for index, name in enumerate(("mlp.gate_proj", "mlp.up_proj")):
            yield f"{name}.weight", block.mlp.fc1.weight.chunk(2)[index]
            yield f"{name}.bias", block.mlp.fc1.bias.chunk(2)[index]
    else:
        yield from _named(first, block.mlp.fc1).items()
    for index, (name, linear, scale) in enumerate(
        ((names.attention[3], block.attn.proj, block.ls1), (last, block.mlp.fc2, block.ls2))
    ):
        gamma = scale.gamma if isinstance(scale, LayerScale) else torch.ones_like(linear.bias)
        folded = names.scales is None and isinstance(scale, LayerScale)
        yield f"{name}.weight", gamma[:, None] * linear.weight if folded else linear.weight
        yield f"{name}.bias", gamma * linear.bias if folded else linear.bias
        if names.scales is not None and (kind != "beit" or isinstance(scale, LayerScale)):
            yield names.scales[index], gamma


def _registers(encoder: Encoder) -> Tensor:
    return torch.zeros(1, 0, encoder.width) if encoder.registers is None else encoder.registers


def _named(name: str, layer: nn.Module) -> dict[str, Tensor]:
    return {f"{name}.{part}": value for part, value in layer.named_parameters(recurse=False)}
