"""Training that goes on from existing weights: ``hardpatch pretrain --init WEIGHTS``.

First the settings take over the shape of the encoder, and of a decoder among the weights (:func:`adopt`). Then the
initial model takes over the weights that fit (:func:`take_weights`). How it learns from there says
:mod:`hardpatch.pretrain.encoder_rate`.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hardpatch.configuration.sections import InitConfig, RunConfig
from hardpatch.errors import UserError
from hardpatch.interchange.load import load, read_metadata, read_newest, read_settings
from hardpatch.methods.hpm import HPM
from hardpatch.methods.mae import MAE
from hardpatch.models.adapt import adapt
from hardpatch.models.block import Block
from hardpatch.models.encoder_settings import absorb_class_position, encoder_settings

log = logging.getLogger("hardpatch")

SHAPE = ("model.size", "model.width", "model.depth", "model.heads", "model.positions", "model.layer_scale")
"""Settings that the weights decide."""
DECODERS = ("model.decoder_width", "model.decoder_depth", "model.decoder_heads")
DECODER_KINDS = ("fast.decoder", "fast.shared_blocks", "fast.predictor_depth")
HEADS = ("ibot.outputs", "ibot.head_hidden", "ibot.head_bottleneck")
TRAINED_POSITIONS = ("host.decoder_embed.positions", "host.decoder_embed.class_position")
BUFFERS = ("mean", "std", "low", "high")


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
        message = str(error).removeprefix("RUN: ").replace("--trained_size", "--init.trained_size")
        message = message.replace("--heads", "--init.heads").replace("--decoder_heads", "--init.decoder_heads")
        raise UserError(f"--init: {message}") from None
    absorb_class_position(model.host.encoder)
    return model


def adopt(run: RunConfig, fixed: Collection[str]) -> dict[str, Any]:
    """Return the settings, by dotted name, that a run takes over from the weights that it starts from.

    Args:
        run: the configuration, whose ``init.weights`` names them.
        fixed: settings that the user gave, which stay.

    Raises:
        UserError: if the weights cannot be loaded, or a given setting contradicts them.
    """
    model = load_start(run.init)
    shape = encoder_settings(model.host.encoder)
    shape["drop_path"] = 0.0
    values: dict[str, Any] = {
        **{f"model.{name}": shape[name] for name in ("width", "depth", "heads", "layer_scale")},
        "model.positions": shape["positions"] or "sincos",  # rotary ones are no setting, the shape has them
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
        names = [*DECODERS, *DECODER_KINDS, *HEADS] if same else []
        return {name: getattr(getattr(was, section), key) for name in names for section, key in [name.split(".")]}
    if not isinstance(host, MAE) or run.method.host != "mae":
        return {}
    block = host.reconstructor.blocks[0]
    assert isinstance(block, Block)
    values = (host.reconstructor.norm.normalized_shape[0], len(host.reconstructor.blocks), block.attn.heads)
    return dict(zip(DECODERS, values, strict=True)) | {"fast.decoder": "self", "fast.shared_blocks": 0}


class Taken(NamedTuple):
    """Weights that a model took over."""

    lines: tuple[str, ...]
    """what was taken, changed and left new"""
    has_new_parts: bool
    """a decoder, a head or the loss predictor begins anew"""


def take_weights(model: HPM, run: RunConfig) -> Taken:
    """Load the weights that a run starts from into its initial ``model``, as far as they fit.

    Raises:
        UserError: if they are gone or have changed since their shape was found.
    """
    start = load_start(run.init)
    encoder, changes = adapt(
        start.host.encoder,
        image_size=run.image_size,
        patch_size=run.model.patch_size,
        channels=run.data.channel_count,
    )
    mask_token = start.host.encoder.mask_token
    with torch.no_grad():
        if model.host.encoder.mask_token is not None and mask_token is not None:
            model.host.encoder.mask_token.copy_(mask_token)
        problems = model.host.encoder.load_state_dict(encoder.state_dict(), strict=False)
        if problems.unexpected_keys or [name for name in problems.missing_keys if name != "mask_token"]:
            raise UserError(f"--init: {run.init.weights} has changed since the run was configured; start it anew")
        taken = _take_others(model, start)
    own = _others(model.state_dict())
    new = [name for name in own if name not in taken]
    lines = [f"--init: the encoder starts from {run.init.weights}", *(f"--init: {change}" for change in changes)]
    lines += [f"--init: {line}" for line in _parts(own, taken)]
    # decoders have fixed positions; where theirs were trained, the decoder has to learn, too
    has_new_parts = bool(new) or "host.decoder_embed.positions" in start.state_dict()
    if has_new_parts and run.init.frozen:
        lines.append(
            f"--init: for the first {run.init.frozen:.0%} of the training the encoder is frozen, while the new parts "
            "learn (init.frozen)"
        )
    left = sorted({_part(name) for name in _others(start.state_dict()) if name not in taken})
    if left:
        lines.append(f"--init: not taken over, as the run has none or one of another shape: {', '.join(left)}")
    return Taken(tuple(lines), has_new_parts)


def _others(state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors outside the encoder, without the normalization of the images."""
    return [name for name in state if not name.startswith("host.encoder.") and name not in BUFFERS]


def _take_others(model: HPM, start: HPM) -> set[str]:
    """Copy decoders, heads and the loss predictor where name and shape are the same; returns their names."""
    own, theirs = model.state_dict(), start.state_dict()
    same_host = type(model.host) is type(start.host)
    taken = set()
    for name in _others(own):
        usable = same_host or name.startswith(("predictor.", "host.decoder_embed."))
        if usable and name in theirs and theirs[name].shape == own[name].shape:
            own[name].copy_(theirs[name])
            taken.add(name)
    return taken


def _part(name: str) -> str:
    """Return the part of a model that a tensor belongs to, in words."""
    part = name.removeprefix("host.").split(".")[0]
    names = {"predictor": "loss predictor", "decoder_embed": "decoder's embedding"}
    return "decoder's trained positions" if name in TRAINED_POSITIONS else names.get(part, part)


def _parts(own: Collection[str], taken: Collection[str]) -> list[str]:
    """Tell of each part how many of its tensors were taken over."""
    counts: dict[str, list[int]] = {}
    for name in own:
        count = counts.setdefault(_part(name), [0, 0])
        count[0] += name in taken
        count[1] += 1
    lines = []
    for part, (known, total) in counts.items():
        lines.append(
            f"{part}: taken over"
            if known == total
            else f"{part}: new, with random weights"
            if known == 0
            else f"{part}: {known} of {total} tensors taken over, the others are new"
        )
    return lines


def without_frozen_steps(run: RunConfig) -> RunConfig:
    """Return the configuration of a run in which nothing is new, so that the encoder learns from the first step on."""
    return replace(run, init=replace(run.init, frozen=0.0))
