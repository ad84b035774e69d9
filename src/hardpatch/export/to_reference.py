"""Convert a model to the checkpoint layout of HPM's and MAE's reference code: ``{"model": {...}}``.

Names are those that :mod:`hardpatch.interchange.reference` reads. Fixed positions are part of the layout.
"""

from typing import Any

import torch
from torch import Tensor

from hardpatch.errors import UserError
from hardpatch.export.network import positions_with_class, refuse, traits
from hardpatch.interchange.reference import OUR_PREFIX
from hardpatch.methods.hpm import HPM
from hardpatch.methods.mae import MAE
from hardpatch.models.block import NORM_EPS
from hardpatch.models.encoder import Encoder

TIMM = "expected --to timm"


def reference_state(model: HPM) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the weights in the reference's names, and lines about what is left out.

    Raises:
        UserError: if the layout cannot hold them; names the part.
    """
    encoder, host = model.host.encoder, model.host
    state = _encoder(encoder)
    notes: tuple[str, ...] = ()
    if not isinstance(host, MAE) or getattr(host, "reconstructor", None) is None:
        return state, (
            f"only the encoder goes: the decoder of this layout is MAE's, this model has {_decoder(model)}; "
            "it is read like MAE's published encoders",
        )
    if host.reconstructor.cross or len(host.shared):
        raise UserError(f"--to: the reference has no cross-attention or shared blocks, as this model's decoder; {TIMM}")
    if getattr(host, "reconstructs_pixels", True) is False:
        notes = ("the decoder predicts a network's features, as wide as they are, not pixels",)
    embed = host.decoder_embed
    own = embed.class_position
    first = torch.zeros_like(embed.positions[:1]) if own is None else own[0]
    state["decoder_pos_embed"] = torch.cat([first, embed.positions])[None]
    for name, value in model.state_dict().items():
        ours = next((new for new in OUR_PREFIX.values() if name.startswith(new)), None)
        if ours is not None:
            theirs = next(old for old, new in OUR_PREFIX.items() if new == ours)
            state[theirs + name.removeprefix(ours)] = value
    if model.predictor is None:
        notes += ("there is no loss predictor, as in MAE's checkpoints",)
    return state, notes


def _decoder(model: HPM) -> str:
    host = model.host
    return "none" if not isinstance(host, MAE) and type(host).__name__ == "EncoderOnly" else f"host {_name(host)}"


def _name(host: Any) -> str:
    return f"{type(host).__name__.lower()}{'' if not isinstance(host, MAE) else ' without a reconstructor'}"


def _encoder(encoder: Encoder) -> dict[str, Tensor]:
    has, variant = traits(encoder), encoder.variant
    parts = {name: True for name in variant.changes() if name != "norm_eps"} | {
        f"norms that add {has.eps:g} to the variance": has.eps != NORM_EPS,
        "a relative position bias": has.shared_bias or has.block_bias,
        "layer scale": has.layer_scale,
        "no norm after the last block": has.norm is None,
    }
    refuse("the reference's ViT", parts, TIMM)
    left_out = ("positions", "class_position", "mask_token")
    state = {name: value for name, value in encoder.state_dict().items() if name not in left_out}
    return state | {"pos_embed": positions_with_class(encoder)}


def reference_arguments(model: HPM) -> dict[str, Any]:
    """Return what the layout does not say, as plain values that are written beside the weights."""
    encoder, host = model.host.encoder, model.host
    arguments: dict[str, Any] = {
        "input_size": list(encoder.image_size),
        "patch_size": encoder.patch_size,
        "num_heads": encoder.blocks[0].attn.heads,  # type: ignore[union-attr]
        "mean": [float(value) for value in model.mean],
        "std": [float(value) for value in model.std],
    }
    if isinstance(host, MAE) and getattr(host, "reconstructor", None) is not None:
        arguments["norm_pix_loss"] = host.normalize_pixels
        arguments["decoder_num_heads"] = host.reconstructor.blocks[0].attn.heads  # type: ignore[union-attr]
    return arguments
