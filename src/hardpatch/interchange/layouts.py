"""Names of tensors in the weights of other libraries, brought to those of timm's ViT.

Each library names the same parts otherwise: timm, the code of DINO to DINOv3, iBOT, DeiT, BEiT and SimMIM; Hugging
Face, in files and in memory; OpenAI's CLIP. What is left of a network beside its encoder is passed over: heads,
projections, a text tower.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """Weights of an encoder in timm's names."""

    name: str
    """whose names they were"""
    tensors: dict[str, Tensor]
    left_out: list[str]
    """names of tensors that are no part of the encoder, as in the file"""

    @property
    def pools_by_attention(self) -> bool:
        """True if a head that attends to the tokens follows the encoder, as in Perception Encoder."""
        return any("attn_pool." in name for name in self.left_out)


EMBEDDINGS = {
    r"(.*)patch_embed\.proj\.weight": "timm's names",
    r"(.*)embeddings\.patch_embeddings(\.projection)?\.weight": "Hugging Face's names",
    r"(.*)embeddings\.patch_embedding\.weight": "Hugging Face's names of CLIP",
    r"(.*)conv1\.weight": "OpenAI's names of CLIP",
}
"""Name of the embedding of patches in each layout; what stands before it stands before all parts of the encoder"""

HUGGING_FACE = (
    (r"embeddings\.(cls_token|class_embedding)", "cls_token"),
    (r"embeddings\.(position_embeddings|position_embedding\.weight)", "pos_embed"),
    (r"embeddings\.register_tokens", "registers"),
    (r"embeddings\.patch_embedding(s\.projection|s|)\.", "patch_embed.proj."),
    (r"(encoder\.layers?|model\.layer|layers?)\.(\d+)\.", r"blocks.\2."),
    (r"pre_layrnorm\.", "norm_pre."),
    (r"(layernorm|post_layernorm)\.", "norm."),
    (r"(encoder\.relative_position_bias|shared_position_bias)\.relative_position_bias_table", "relative_bias.table"),
)
IN_BLOCKS = (
    (r"(attention\.attention\.query|attention\.q_proj|self_attn\.q_proj)\.", "attn.q."),
    (r"(attention\.attention\.key|attention\.k_proj|self_attn\.k_proj)\.", "attn.k."),
    (r"(attention\.attention\.value|attention\.v_proj|self_attn\.v_proj)\.", "attn.v."),
    (r"(attention\.output\.dense|attention\.o_proj|self_attn\.out_proj|attn\.out_proj)\.", "attn.proj."),
    (r"attn\.in_proj_(weight|bias)", r"attn.qkv.\1"),
    (
        r"((attention\.)*relative_position_bias\.|attn\.)relative_position_bias_table",
        "relative_bias.table",
    ),
    (r"(layernorm_before|layer_norm1|ln_1)\.", "norm1."),
    (r"(layernorm_after|layer_norm2|ln_2)\.", "norm2."),
    (r"(intermediate\.dense|mlp\.c_fc|mlp\.weights_in|mlp\.w12)\.", "mlp.fc1."),
    (r"(output\.dense|mlp\.c_proj|mlp\.weights_out|mlp\.w3|mlp\.down_proj)\.", "mlp.fc2."),
    (r"mlp\.(gate_proj|w1|fc1_g)\.", "mlp.gate."),
    (r"mlp\.(up_proj|w2|fc1_x)\.", "mlp.value."),
    (r"(layer_scale1\.lambda1|lambda_1|gamma_1)$", "ls1.gamma"),
    (r"(layer_scale2\.lambda1|lambda_2|gamma_2)$", "ls2.gamma"),
)
OPENAI = (
    (r"class_embedding", "cls_token"),
    (r"positional_embedding", "pos_embed"),
    (r"conv1\.", "patch_embed.proj."),
    (r"transformer\.resblocks\.(\d+)\.", r"blocks.\1."),
    (r"ln_pre\.", "norm_pre."),
    (r"ln_post\.", "norm."),
)
TIMM = (
    (r"(reg_token|register_tokens|storage_tokens|dist_token)$", "registers"),
    (r"rel_pos_bias\.relative_position_bias_table", "relative_bias.table"),
    (r"blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # DINOv2 trains in chunks of blocks, and numbers the blocks in both
)
NAMES = {
    "timm's names": TIMM,
    "Hugging Face's names": HUGGING_FACE,
    "Hugging Face's names of CLIP": HUGGING_FACE,
    "OpenAI's names of CLIP": OPENAI,
}

BLOCK = re.compile(r"(blocks|decoder_blocks|decoder_blocks_losspred)\.\d+\.")
AFTER_ENCODER = re.compile(
    r"(head|head_dist|pre_logits|pooler|fc_norm|attn_pool|proj|classifier|lm_head|decoder|decoder_\w+|dino_head"
    r"|ibot_head|mlm_head)(\.|$)|(.*mask_token|masked_embed)$"
)
"""Parts that follow an encoder, or are used in its pre-training only"""
COMPUTED = re.compile(r"(relative_position_index|rope_embed\.periods|rope\.\w+|position_ids|k_bias|bias_mask)$")
"""Tables that the encoder computes, and biases that are zero"""


def find_layout(state: Mapping[str, Tensor]) -> Layout | None:
    """Return the encoder in a state dict, in timm's names; None if it has none that is known.

    Tensors of the encoder that no rule knows keep their names.
    """
    for pattern, name in EMBEDDINGS.items():
        prefixes = [match[1] for key in state if (match := re.fullmatch(pattern, key))]
        if prefixes:
            return _named(state, min(prefixes, key=len), name)
    return None


def _named(state: Mapping[str, Tensor], prefix: str, name: str) -> Layout:
    tensors, left_out = {}, []
    if name == "Hugging Face's names" and any(key.startswith(f"{prefix}model.layer.") for key in state):
        name = "Hugging Face's names of DINOv3"
    for key, value in state.items():
        inner = key.removeprefix(prefix)
        if not key.startswith(prefix) or AFTER_ENCODER.match(inner) or COMPUTED.search(inner):
            left_out.append(key)
            continue
        # DINOv3's class in Hugging Face calls the last norm as timm does
        inner = _first_rule(inner, NAMES.get(name, HUGGING_FACE))
        if value.is_floating_point():
            tensors[inner] = value.float()
        else:
            left_out.append(key)
    tensors = in_blocks(tensors)
    for key in ("cls_token", "pos_embed", "registers"):
        if key in tensors:  # [D] or [L, D] in some
            tensors[key] = tensors[key].reshape(*(1,) * (3 - tensors[key].ndim), *tensors[key].shape)
    if "registers" in tensors and tensors["registers"].shape[1] == 0:
        del tensors["registers"]
    return Layout(name, tensors, left_out)


def _first_rule(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, new in rules:
        if (match := re.match(pattern, name)) is not None:
            return match.expand(new) + name[match.end() :]
    return name


def in_blocks(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring the names within blocks to timm's, and put parts together that timm's ViT has in one tensor."""
    named: dict[str, Tensor] = {}
    for key, value in tensors.items():
        match = BLOCK.match(key)
        named[key if match is None else match[0] + _first_rule(key[match.end() :], IN_BLOCKS)] = value
    for block in sorted({match[0] for key in named if (match := BLOCK.match(key))}):
        _merge(named, f"{block}mlp.fc1", (f"{block}mlp.gate", f"{block}mlp.value"))
        for part in ("weight", "bias"):  # a plain MLP of DINOv3 calls its first layer as a gated one its second
            if f"{block}mlp.value.{part}" in named and f"{block}mlp.gate.weight" not in named:
                named[f"{block}mlp.fc1.{part}"] = named.pop(f"{block}mlp.value.{part}")
        biases = [named.pop(f"{block}attn.{part}_bias", None) for part in ("q", "v")]
        if biases[0] is not None and biases[1] is not None:  # BEiT has none of the keys
            named[f"{block}attn.qkv.bias"] = torch.cat([biases[0], torch.zeros_like(biases[0]), biases[1]])
        _merge(named, f"{block}attn.qkv", (f"{block}attn.q", f"{block}attn.k", f"{block}attn.v"))
    return named


def _merge(tensors: dict[str, Tensor], name: str, parts: tuple[str, ...]) -> None:
    """Concatenate the weights, and biases where some part has one, if all parts are there."""
    if not all(f"{part}.weight" in tensors for part in parts):
        return
    weights = [tensors.pop(f"{part}.weight") for part in parts]
    tensors[f"{name}.weight"] = torch.cat(weights)
    biases = [tensors.pop(f"{part}.bias", None) for part in parts]
    if any(bias is not None for bias in biases):
        pairs = zip(biases, weights, strict=True)
        tensors[f"{name}.bias"] = torch.cat([torch.zeros(len(w)) if b is None else b for b, w in pairs])
