"""Host methods by name: a function that builds each, and the facts that settings depend on.

This module imports torch in its functions only, so that ``--help`` is fast.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hardpatch.choices import HostName, ReconstructionLossName
from hardpatch.configuration.sections import RunConfig

if TYPE_CHECKING:
    from hardpatch.methods.base import Host


@dataclass(frozen=True)
class HostKind:
    """Host method, and the facts that decide which settings it accepts."""

    build: Callable[[RunConfig, int | None], "Host"]
    """builds it from a run and the number of outputs per patch (None unless the target is another network's)"""
    drops_masked: bool = False
    """Masked patches never enter the encoder."""
    own_target: bool = False
    """The target and its loss belong to the host and cannot be exchanged."""
    tokenizer: bool = False
    """The target is visual tokens, from a tokenizer."""
    multi_crop: bool = False
    """It trains on several crops of an image, see section ``ibot``."""
    uses_teacher: bool = False
    """Its targets come from the teacher."""
    pixel_loss: ReconstructionLossName = "mse"
    """Default loss for pixels."""


def _mae(run: RunConfig, outputs: int | None) -> "Host":
    from hardpatch.methods.mae import MAE

    model = run.model
    return MAE(
        **encoder_settings(run),
        **_reconstruction(run, outputs),
        decoder_width=model.decoder_width,
        decoder_depth=model.decoder_depth,
        decoder_heads=model.decoder_heads,
        shared_blocks=run.fast.trunk(model.decoder_depth),
        cross=run.fast.decoder == "cross",
        mask_token=run.method.secondary_ratio > 0.0,
    )


def _simmim(run: RunConfig, outputs: int | None) -> "Host":
    from hardpatch.methods.simmim import SimMIM

    return SimMIM(**encoder_settings(run), **_mask_tokens(run), **_reconstruction(run, outputs))


def _beit(run: RunConfig, outputs: int | None) -> "Host":
    from hardpatch.methods.beit import BEiT

    return BEiT(**encoder_settings(run), **_mask_tokens(run), vocabulary=outputs or 8192)


def _ibot(run: RunConfig, outputs: int | None) -> "Host":
    from hardpatch.methods.ibot import IBOT

    return IBOT(
        **encoder_settings(run),
        **_mask_tokens(run),
        outputs=run.ibot.outputs,
        head_hidden=run.ibot.head_hidden,
        head_bottleneck=run.ibot.head_bottleneck,
        temperature_warmup=run.ibot.teacher_temperature_warmup,
        frozen_last_layer=run.ibot.frozen_last_layer,
    )


HOSTS: dict[HostName, HostKind] = {
    "mae": HostKind(_mae, drops_masked=True),
    "simmim": HostKind(_simmim, pixel_loss="l1"),
    "beit": HostKind(_beit, own_target=True, tokenizer=True),
    "ibot": HostKind(_ibot, own_target=True, multi_crop=True, uses_teacher=True),
}


def needs_teacher(run: RunConfig) -> bool:
    """Return True if the run needs a teacher, the moving average of the student."""
    return (
        (run.has_predictor and not run.fast.remember)
        or run.method.target == "teacher"
        or run.masking.uses_attention
        or HOSTS[run.method.host].uses_teacher
    )


def encoder_settings(run: RunConfig) -> dict[str, Any]:
    """Return the settings of the encoder that all hosts share."""
    return {
        "image_size": run.image_size,
        "patch_size": run.model.patch_size,
        "channels": run.data.channel_count,
        "layer_scale": run.model.layer_scale,
        "drop_path": run.model.drop_path,
        **run.encoder_shape,
    }


def _mask_tokens(run: RunConfig) -> dict[str, Any]:
    """Return the settings of hosts whose encoder sees mask tokens."""
    width = run.model.decoder_width if run.has_predictor else None
    return {"positions": run.model.positions, "decoder_width": width}


def _reconstruction(run: RunConfig, outputs: int | None) -> dict[str, Any]:
    """Return the settings of hosts that reconstruct pixels or features."""
    method = run.method
    if method.target == "teacher":
        outputs = run.encoder_shape["width"]
    loss: str = method.reconstruction_loss
    if loss == "auto":
        loss = "l2norm" if method.target in ("teacher", "frozen") else HOSTS[method.host].pixel_loss
    return {"outputs": outputs, "normalize_pixels": method.target == "normalized_pixels", "loss": loss}
