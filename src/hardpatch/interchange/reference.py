"""Checkpoints of the reference implementations of HPM and MAE, read without unpickling code.

Keys of encoder parts have no prefix, those of the reconstructor are ``decoder_*``, those of the loss predictor
``decoder_*_losspred``. Training wrappers add ``module.``, golden files ``model.``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from hardpatch.choices import SIZES
from hardpatch.errors import UserError
from hardpatch.methods.hpm import HPM
from hardpatch.methods.mae import MAE
from hardpatch.models.decoder import Decoder
from hardpatch.pickles import load_pickle

# The first match wins: the loss predictor's names begin like those of the reconstructor.
_OUR_PREFIX = {
    "decoder_blocks_losspred.": "predictor.blocks.",
    "decoder_norm_losspred.": "predictor.norm.",
    "decoder_pred_losspred.": "predictor.head.",
    "decoder_blocks.": "host.reconstructor.blocks.",
    "decoder_norm.": "host.reconstructor.norm.",
    "decoder_pred.": "host.reconstructor.head.",
    "decoder_embed.": "host.decoder_embed.proj.",
    "mask_token": "host.decoder_embed.mask_token",
    "patch_embed.": "host.encoder.patch_embed.",
    "cls_token": "host.encoder.cls_token",
    "blocks.": "host.encoder.blocks.",
    "norm.": "host.encoder.norm.",
}
_FIXED = ("pos_embed", "decoder_pos_embed")  # sine-cosine, computed by the model
_HEADS = {shape["width"]: shape["heads"] for shape in SIZES.values()}


def read_reference(path: Path, weights: Literal["student", "teacher"] = "student") -> dict[str, Tensor]:
    """Read the state of a reference checkpoint (``.pth``): its ``state_dict``, or ``ema_state_dict`` for the teacher.

    Without these: its ``model``, DINO's ``student`` or ``teacher``, or the whole content if that is tensors.

    Raises:
        UserError: if the file is not a checkpoint, or has anything but tensors and plain values.
    """
    content = load_pickle(path, "RUN")
    key = "state_dict" if weights == "student" else "ema_state_dict"
    state = None
    if isinstance(content, dict):  # HPM; MAE and DeiT; DINO and iBOT; bare tensors
        state = content.get(key) or content.get("model") or content.get(weights) or content
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()) or not state:
        names = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise UserError(f"RUN: {path} has no `{key}`; found: {names}")
    return state


def from_reference(
    state: Mapping[str, Tensor],
    *,
    heads: int | None = None,
    decoder_heads: int | None = None,
    normalize_pixels: bool = False,
) -> HPM:
    """Build the model of a reference state, and load the state strictly.

    Widths, depths, patch size, channels and the (square) image size are inferred from the tensors; MAE checkpoints have
    no loss predictor. The numbers of heads cannot be inferred: those of the encoder are :func:`default_heads`, those of
    the decoders 16, or fewer with 16 channels each.

    Args:
        state: reference keys to tensors, with or without ``module.`` and ``model.``.
        heads: of the encoder, instead of the default.
        decoder_heads: of the decoders, instead of the default.
        normalize_pixels: the targets were normalized per patch, which cannot be inferred either.

    Raises:
        UserError: if keys are missing or unknown.
    """
    if any(key.startswith("model.") for key in state):  # golden files hold other tensors beside the model's
        state = {key: value for key, value in state.items() if key.startswith("model.")}
    state = {key.removeprefix("module.").removeprefix("model."): value for key, value in state.items()}
    missing = [key for key in ("patch_embed.proj.weight", "pos_embed", "decoder_embed.weight") if key not in state]
    if missing:
        raise UserError(f"RUN: expected a checkpoint of HPM or MAE pre-training, but it has no key {missing[0]!r}")
    width, channels, patch_size, _ = state["patch_embed.proj.weight"].shape
    side = round((state["pos_embed"].shape[1] - 1) ** 0.5) * patch_size
    decoder_width = state["decoder_embed.weight"].shape[0]
    decoder_heads = decoder_heads or min(16, decoder_width // 16)
    try:
        host = MAE(
            image_size=(side, side),
            patch_size=patch_size,
            channels=channels,
            width=width,
            depth=_depth(state, "blocks."),
            heads=heads or default_heads(width),
            decoder_width=decoder_width,
            decoder_depth=_depth(state, "decoder_blocks."),
            decoder_heads=decoder_heads,
            normalize_pixels=normalize_pixels,
        )
    except ValueError as error:
        raise UserError(f"RUN: {error}") from None
    predictor_depth = _depth(state, "decoder_blocks_losspred.")
    predictor = None
    if predictor_depth:
        outputs = state["decoder_pred_losspred.weight"].shape[0]
        predictor = Decoder(width=decoder_width, depth=predictor_depth, heads=decoder_heads, outputs=outputs)
    model = HPM(host, predictor)
    problems = model.load_state_dict(rename(state), strict=False)
    if problems.missing_keys or problems.unexpected_keys:
        raise UserError(
            f"RUN: the checkpoint does not fit: missing {problems.missing_keys[:3]}, "
            f"unknown {problems.unexpected_keys[:3]}"
        )
    return model


def default_heads(width: int) -> int:
    """Return the heads of a standard ViT of that width; for other widths, heads of 64 or else 32 channels."""
    return _HEADS.get(width) or max(1, width // 64 if width % 64 == 0 else width // 32)


def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename reference keys to those of :class:`~hardpatch.methods.hpm.HPM`; unknown keys stay."""
    renamed = {}
    for key, value in state.items():
        if key not in _FIXED:
            prefix = next((p for p in _OUR_PREFIX if key.startswith(p)), "")
            renamed[_OUR_PREFIX.get(prefix, "") + key.removeprefix(prefix)] = value
    return renamed


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})
