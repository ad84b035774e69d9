"""Weights that a training takes over from existing ones: ``hardpatch pretrain --init WEIGHTS``.

Before, :mod:`hardpatch.pretrain.adopt` has found their shape. How the model learns from there says
:mod:`hardpatch.pretrain.encoder_rate`.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from hardpatch.configuration.sections import RunConfig
from hardpatch.errors import UserError
from hardpatch.methods.hpm import HPM
from hardpatch.models.adapt import adapt
from hardpatch.pretrain.adopt import load_start

TRAINED_POSITIONS = ("host.decoder_embed.positions", "host.decoder_embed.class_position")
BUFFERS = ("mean", "std", "low", "high")


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
