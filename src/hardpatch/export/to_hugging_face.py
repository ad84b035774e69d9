"""Convert an encoder to the class of Hugging Face that holds it, and a whole MAE to its ViTMAEForPreTraining.

The library itself is not needed. The keys are those of its published checkpoints, which all its versions read.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hardpatch.errors import UserError
from hardpatch.export.hugging_face_names import named_block, named_state
from hardpatch.export.network import Head, Traits, beyond_plain, first_block, has_key_bias, hidden_width, refuse, traits
from hardpatch.measure.labels import crop_fraction
from hardpatch.methods.mae import MAE
from hardpatch.models.block import Block
from hardpatch.models.encoder import Encoder

TIMM_OR_ONNX = "expected --to timm or --to onnx"


class HuggingFaceModel(NamedTuple):
    """Model in the format of Hugging Face."""

    config: dict[str, Any]
    """content of ``config.json``"""
    state: dict[str, Tensor]
    """weights"""

    @property
    def class_name(self) -> str:
        """Class of ``transformers`` that loads it."""
        return str(self.config["architectures"][0])


def vit(encoder: Encoder, head: Head | None = None) -> HuggingFaceModel:
    """Convert to ``ViTModel``, which has no layer scale: it is multiplied into the preceding weights.

    With a head that takes the class token it is ``ViTForImageClassification``.

    Raises:
        UserError: if the network has parts that this class has not.
    """
    has, variant = traits(encoder, head), encoder.variant
    norm = has.norm if head is None or head.norm is None else head.norm
    refuse("ViTModel of transformers", beyond_plain(encoder, head), TIMM_OR_ONNX)
    config = _config(encoder, "ViTModel", "vit", has) | {"qkv_bias": variant.qkv_bias}
    config["encoder_stride"] = encoder.patch_size
    state = named_state(encoder, "vit", norm)
    if head is None:
        return HuggingFaceModel(config, state)
    return _classifier(HuggingFaceModel(config, state), head, "ViTForImageClassification", "vit.")


def folded(encoder: Encoder) -> tuple[str, ...]:
    """Return what is to be said of an encoder whose layer scale has no place in a class."""
    return ("layer scale is multiplied into the layers before it",) if traits(encoder).layer_scale else ()


def changes(encoder: Encoder, model: HuggingFaceModel) -> tuple[str, ...]:
    """Return lines about what was changed for a class."""
    lines = folded(encoder) if model.config["model_type"] == "vit" else ()
    if "embeddings.mask_token" in model.state:
        lines += (f"the mask token of {model.class_name}, which whole images do not show, is written as zeros",)
    if model.config["model_type"] == "beit" and has_key_bias(encoder):
        lines += ("the bias of keys, which changes nothing in softmax, is left out",)
    if model.class_name == "CLIPVisionModel":
        lines += ("the last norm is post_layernorm, which this class applies to the class token only",)
    return lines


def _classifier(model: HuggingFaceModel, head: Head, name: str, prefix: str) -> HuggingFaceModel:
    labels = {str(number): text for number, text in enumerate(head.classes)}
    config = model.config | {"architectures": [name], "num_labels": len(labels), "id2label": labels}
    config["label2id"] = {text: int(number) for number, text in labels.items()}
    state = {f"{prefix}{key}": value for key, value in model.state.items()}
    return HuggingFaceModel(
        config, state | {"classifier.weight": head.weight.detach(), "classifier.bias": head.bias.detach()}
    )


def exact(encoder: Encoder, head: Head | None = None) -> HuggingFaceModel:
    """Convert to the class of ``transformers`` that holds the network as it is.

    Raises:
        UserError: if there is none; names the part.
    """
    has, variant = traits(encoder, head), encoder.variant
    pools = head is not None and head.pool == "mean"
    if head is not None and head.norm is None and pools:
        raise UserError(
            "--to: no class of transformers has the head of a linear probe on the mean of tokens, which are normalized "
            f"before; {TIMM_OR_ONNX}"
        )
    if variant.rope_theta is not None:
        return _dinov3(encoder, head, has)
    if has.shared_bias or has.block_bias or (has.norm is None and (head is None or pools)):
        return _beit(encoder, head, has)
    if variant.pre_norm:
        return _clip(encoder, head, has)
    ratio = _dinov2_ratio(encoder, has)
    if variant.registers or has.activation == "swiglu":
        return _dinov2(encoder, head, has, ratio)
    if has.layer_scale and has.square and head is None and ratio is not None and has.activation == "gelu":
        return _dinov2(encoder, head, has, ratio)
    return vit(encoder, head)


def _config(encoder: Encoder, name: str, kind: str, has: Traits) -> dict[str, Any]:
    height, width = encoder.image_size
    return {
        "architectures": [name],
        "model_type": kind,
        "hidden_size": encoder.width,
        "num_hidden_layers": len(encoder.blocks),
        "num_attention_heads": first_block(encoder).attn.heads,
        "intermediate_size": hidden_width(encoder),
        "hidden_act": "gelu" if has.activation == "swiglu" else has.activation,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": has.eps,
        "image_size": height if height == width else [height, width],
        "patch_size": encoder.patch_size,
        "num_channels": encoder.channels,
    }


def _dinov2_ratio(encoder: Encoder, has: Traits) -> int | None:
    """Return the whole ``mlp_ratio`` for which DINOv2's class has the hidden width; None if there is none."""
    for ratio in range(1, 33):
        hidden = encoder.width * ratio
        if has.activation == "swiglu":
            hidden = (hidden * 2 // 3 + 7) // 8 * 8
        if hidden == hidden_width(encoder):
            return ratio
    return None


def _dinov2(encoder: Encoder, head: Head | None, has: Traits, ratio: int | None) -> HuggingFaceModel:
    variant = encoder.variant
    name = "Dinov2WithRegistersModel" if variant.registers else "Dinov2Model"
    parts = {
        "a head": head is not None,
        "a norm before the blocks": variant.pre_norm,
        "norms of queries and keys": variant.qk_norm,
        "no bias of patches": not variant.patch_bias,
        "images that are not square": not has.square,
        f"a hidden layer of {hidden_width(encoder)} in the MLP": ratio is None,
        "no norm after the last block": has.norm is None,
        "QuickGELU": has.activation == "quick_gelu",
    }
    refuse(f"{name} of transformers", parts, TIMM_OR_ONNX)
    config = _config(encoder, name, "dinov2_with_registers" if variant.registers else "dinov2", has)
    del config["intermediate_size"]
    config |= {"mlp_ratio": ratio, "qkv_bias": variant.qkv_bias, "use_swiglu_ffn": has.activation == "swiglu"}
    config |= {"num_register_tokens": variant.registers} if variant.registers else {}
    return HuggingFaceModel(config, named_state(encoder, "dinov2", has.norm))


def _dinov3(encoder: Encoder, head: Head | None, has: Traits) -> HuggingFaceModel:
    variant, swiglu = encoder.variant, has.activation == "swiglu"
    parts = {
        "a head": head is not None,
        "a norm before the blocks": variant.pre_norm,
        "norms of queries and keys": variant.qk_norm,
        "no bias of patches": not variant.patch_bias,
        "no norm after the last block": has.norm is None,
        "a relative position bias": has.shared_bias or has.block_bias,
    }
    refuse("DINOv3ViTModel of transformers", parts, TIMM_OR_ONNX)
    config = _config(encoder, "DINOv3ViTModel", "dinov3_vit", has)
    del config["hidden_dropout_prob"], config["attention_probs_dropout_prob"]
    config |= {"query_bias": variant.qkv_bias, "value_bias": variant.qkv_bias, "key_bias": has_key_bias(encoder)}
    config |= {"use_gated_mlp": swiglu, "num_register_tokens": variant.registers}
    config |= {"rope_theta": float(variant.rope_theta or 0.0)} | ({"hidden_act": "silu"} if swiglu else {})
    return HuggingFaceModel(config, named_state(encoder, "dinov3", has.norm))


def _beit(encoder: Encoder, head: Head | None, has: Traits) -> HuggingFaceModel:
    variant = encoder.variant
    mean = has.norm is None and (head is None or head.pool == "mean")
    norm = None if mean else has.norm if head is None or head.norm is None else head.norm
    parts = {
        "register tokens": bool(variant.registers),
        "a norm before the blocks": variant.pre_norm,
        "norms of queries and keys": variant.qk_norm,
        "SwiGLU": has.activation == "swiglu",
        "no bias of patches": not variant.patch_bias,
        "no bias of queries and values": not variant.qkv_bias,
        "images that are not square": not has.square,
        "no norm after the last block": norm is None and not mean,
    }
    refuse("BeitModel of transformers", parts, TIMM_OR_ONNX)
    config = _config(encoder, "BeitModel", "beit", has) | {
        "use_absolute_position_embeddings": has.absolute,
        "use_relative_position_bias": has.block_bias,
        "use_shared_relative_position_bias": has.shared_bias,
        "use_mean_pooling": mean,
        "layer_scale_init_value": 1.0 if has.layer_scale else 0.0,
        "use_mask_token": False,
    }
    model = HuggingFaceModel(config, named_state(encoder, "beit", norm))
    if head is None:
        return model
    model = _classifier(model, head, "BeitForImageClassification", "beit.")
    if mean and head.norm is not None:
        pooled = {"beit.pooler.layernorm.weight": head.norm.weight, "beit.pooler.layernorm.bias": head.norm.bias}
        model.state.update({name: value.detach() for name, value in pooled.items()})
    return model


def _clip(encoder: Encoder, head: Head | None, has: Traits) -> HuggingFaceModel:
    variant = encoder.variant
    parts = {
        "a head": head is not None,
        "register tokens": bool(variant.registers),
        "norms of queries and keys": variant.qk_norm,
        "SwiGLU": has.activation == "swiglu",
        "layer scale": has.layer_scale,
        "a bias of patches": variant.patch_bias,
        "no bias of queries, keys and values": not variant.qkv_bias,
        "images that are not square": not has.square,
        "no norm after the last block": has.norm is None,
    }
    refuse("CLIPVisionModel of transformers", parts, TIMM_OR_ONNX)
    config = _config(encoder, "CLIPVisionModel", "clip_vision_model", has)
    del config["hidden_dropout_prob"], config["attention_probs_dropout_prob"]
    return HuggingFaceModel(config, named_state(encoder, "clip", has.norm))


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
    if host.reconstructor.cross or len(host.shared):
        raise UserError("--form: vit_mae has no cross-attention or shared blocks, as this model; expected --form vit")
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
        "decoder_intermediate_size": first.mlp.fc1.out_features,
        "mask_ratio": mask_ratio,
        "norm_pix_loss": host.normalize_pixels,
    }
    own = embed.class_position
    class_position = torch.zeros_like(embed.positions[:1]) if own is None else own[0]
    state = {
        "decoder_embed.weight": embed.proj.weight,
        "decoder_embed.bias": embed.proj.bias,
        "mask_token": embed.mask_token,
        "decoder_pos_embed": torch.cat([class_position, embed.positions])[None],
        "decoder_norm.weight": decoder.norm.weight,
        "decoder_norm.bias": decoder.norm.bias,
        "decoder_pred.weight": decoder.head.weight,
        "decoder_pred.bias": decoder.head.bias,
    }
    for number, block in enumerate(decoder.blocks):
        assert isinstance(block, Block)
        state |= {f"decoder_layers.{number}.{name}": value for name, value in named_block(block, "vit")}
    return HuggingFaceModel(
        config,
        {f"vit.{name}": value for name, value in encoder_state.items()}
        | {f"decoder.{name}": value.detach() for name, value in state.items()},
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
