"""Settings that a training takes over from the weights it starts from: ``hardpatch pretrain --init WEIGHTS``.

They are the shape of the encoder, and that of a decoder among the weights. :mod:`hardpatch.pretrain.continuation` loads
the weights themselves.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch

from hardpatch.configuration.sections import InitConfig, RunConfig
from hardpatch.errors import UserError
from hardpatch.interchange.load import load, read_metadata, read_newest, read_settings
from hardpatch.methods.hpm import HPM
from hardpatch.methods.mae import MAE
from hardpatch.models.block import Block
from hardpatch.models.decoder import DecoderEmbed
from hardpatch.models.encoder import Encoder
from hardpatch.models.encoder_settings import absorb_class_position, encoder_settings
from hardpatch.models.positions import sincos_positions

SHAPE = ("model.size", "model.width", "model.depth", "model.heads", "model.positions", "model.layer_scale")
"""Settings that the weights decide."""
DECODERS = ("model.decoder_width", "model.decoder_depth", "model.decoder_heads")
DECODER_KINDS = ("fast.decoder", "fast.shared_blocks", "fast.predictor_depth")
ROUNDING = 1e-5
"""Difference of sine-cosine positions that files computed in single precision have"""
HEADS = ("ibot.outputs", "ibot.head_hidden", "ibot.head_bottleneck")


def load_start(init: InitConfig) -> HPM:
    """Load the weights that training starts from.

    Raises:
        UserError: as :func:`hardpatch.load` does.
    """
    assert init.weights is not None
    try:
        model = load(
            init.weights,
            init.part,
            heads=init.heads,
            decoder_heads=init.decoder_heads,
            image_size=init.trained_size,
        )
    except UserError as error:
        message = str(error).removeprefix("RUN: ").replace("--trained_size H W", "--init.trained_size [H,W]")
        raise UserError(f"--init: {message.replace('--trained_size (', '--init.trained_size (')}") from None
    absorb_class_position(model.host.encoder)
    for part in (model.host.encoder, getattr(model.host, "decoder_embed", None)):
        if isinstance(part, Encoder | DecoderEmbed):
            _compute_positions(part)
    return model


def _compute_positions(part: Encoder | DecoderEmbed) -> None:
    """Replace positions that are sine-cosine but for rounding by the computed ones, which no training changes."""
    positions = part.positions
    if positions is None or "positions" not in part.state_dict() or positions.shape[1] % 4:
        return
    computed = sincos_positions(positions.shape[1], part.grid)
    if torch.allclose(positions, computed, atol=ROUNDING):
        part.register_buffer("positions", computed, persistent=False)


def adopt(run: RunConfig, fixed: Collection[str]) -> dict[str, Any]:
    """Return the settings, by dotted name, that a run takes over from the weights that it starts from.

    Args:
        run: the configuration, whose ``init.weights`` names them.
        fixed: settings that the user gave, which stay. Heads among them also say what weights of other libraries do
            not.

    Raises:
        UserError: if the weights cannot be loaded, or a given setting contradicts them.
    """
    said = {name: getattr(run.model, name) for name in ("heads", "decoder_heads") if f"model.{name}" in fixed}
    init = replace(run.init, **{name: value for name, value in said.items() if getattr(run.init, name) is None})
    model = load_start(init)
    shape = encoder_settings(model.host.encoder)
    shape["drop_path"] = 0.0
    values: dict[str, Any] = {
        **{f"model.{name}": shape[name] for name in ("width", "depth", "heads", "layer_scale")},
        "model.positions": shape["positions"] or "sincos",  # rotary ones are no setting, the shape has them
        "init.heads": init.heads,
        "init.decoder_heads": init.decoder_heads,
        "init.encoder": shape,
        "init.mean": model.mean.tolist(),
        "init.std": model.std.tolist(),
    }
    for name in SHAPE:
        value = getattr(run.model, name.removeprefix("model."))
        wrong = name in fixed and (name == "model.size" or value != values[name])
        if wrong:
            expected = f"{shape['width']} wide, {shape['depth']} blocks" if name == "model.size" else values[name]
            raise UserError(f"{name}: the weights of --init decide it, {expected}; leave it out, got {value}")
    if "model.patch_size" not in fixed:
        values["model.patch_size"] = shape["patch_size"]
    return values | {name: value for name, value in _decoders(run, model).items() if name not in fixed}


def _decoders(run: RunConfig, model: HPM) -> dict[str, Any]:
    """Return the settings of the decoders of weights that have some the run can use."""
    assert run.init.weights is not None
    host = model.host
    path, metadata = read_newest(run.init.weights, lambda path: (path, read_metadata(path)))
    if metadata is not None:
        was = read_settings(metadata, path)
        same = was.method.host == run.method.host
        kinds = DECODER_KINDS if run.has_predictor else DECODER_KINDS[:1]  # the others are of a loss predictor
        names = [*DECODERS, *kinds, *HEADS] if same else []
        return {name: getattr(getattr(was, section), key) for name in names for section, key in [name.split(".")]}
    if not isinstance(host, MAE) or run.method.host != "mae":
        return {}
    block = host.reconstructor.blocks[0]
    assert isinstance(block, Block)
    values = (host.reconstructor.norm.normalized_shape[0], len(host.reconstructor.blocks), block.attn.heads)
    return dict(zip(DECODERS, values, strict=True)) | {"fast.decoder": "self", "fast.shared_blocks": 0}
