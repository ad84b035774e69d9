"""Encoders for other images than they were trained on: of another size, patch size or number of channels.

Positions are interpolated; the embedding of patches is resized by the pseudo-inverse of the resizing of patches, which
keeps its responses (Beyer et al., FlexiViT, CVPR 2023, Sec. 3.4); kernels of channels keep their sum.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hardpatch.models.encoder import Encoder, patch_grid
from hardpatch.models.encoder_settings import build_encoder, encoder_settings
from hardpatch.models.positions import resample_positions


def adapt(
    encoder: Encoder, *, image_size: tuple[int, int], patch_size: int, channels: int
) -> tuple[Encoder, tuple[str, ...]]:
    """Return a copy of an encoder for other images, without mask token, and what was changed for that, a line each.

    Args:
        encoder: without a position of its class token (:func:`~hardpatch.models.encoder_settings
            .absorb_class_position`).
        image_size: (height, width) in pixels.
        patch_size: side of a patch in pixels.
        channels: of the images.

    Raises:
        ValueError: if the patch size does not divide the image size.
    """
    settings = adapted_settings(encoder_settings(encoder), image_size, patch_size, channels)
    state, changes, grid = dict(encoder.state_dict()), [], patch_grid(image_size, patch_size)
    state.pop("mask_token", None)
    name = "patch_embed.proj.weight"
    if channels != encoder.channels:
        state[name] = resample_channels(state[name], channels)
        changes.append(f"kernels of {encoder.channels} channels became {channels}, with the same sum")
    if patch_size != encoder.patch_size:
        state[name] = resample_patches(state[name], patch_size)
        changes.append(f"patches of {encoder.patch_size} px became {patch_size} px, by the pseudo-inverse (FlexiViT)")
    if grid != encoder.grid:
        _resample(state, encoder, grid)
        one, other = (f"{rows} x {columns}" for rows, columns in (encoder.grid, grid))
        changes.append(f"positions of {one} patches were interpolated to {other}")
    adapted = build_encoder(settings)
    adapted.load_state_dict(state)
    return adapted, tuple(changes)


def _resample(state: dict[str, Tensor], encoder: Encoder, grid: tuple[int, int]) -> None:
    """Interpolate absolute positions and relative biases in the state dict of an encoder to another grid of patches."""
    sizes = [(2 * rows - 1, 2 * columns - 1) for rows, columns in (encoder.grid, grid)]
    for key in [key for key in state if key.endswith("relative_bias.table")]:
        offsets, of_class = state[key][:-3], state[key][-3:]
        state[key] = torch.cat([resample_positions(offsets, sizes[0], sizes[1]), of_class])
    if encoder.positions is not None:
        state["positions"] = resample_positions(encoder.positions.detach(), encoder.grid, grid)


def adapted_settings(
    settings: Mapping[str, Any], image_size: tuple[int, int], patch_size: int, channels: int
) -> dict[str, Any]:
    """Return the settings of an encoder after :func:`adapt`, from those before it.

    Sine-cosine positions of another grid are interpolated, and then no longer computed.
    """
    height, width = settings["image_size"]
    grid, old = patch_grid(image_size, patch_size), patch_grid((height, width), settings["patch_size"])
    adapted = {**settings, "image_size": list(image_size), "patch_size": patch_size, "channels": channels}
    if grid != old and settings["positions"] == "sincos":
        adapted["positions"] = "learned"
    if "block_bias_grid" in settings:
        adapted["block_bias_grid"] = list(grid)
    return adapted


def resample_channels(kernels: Tensor, channels: int) -> Tensor:
    """Return kernels ``[D, C, p, p]`` for another number of channels, with the same sum over the channels.

    Further channels take the mean of the others, scaled with them. What is dropped is divided among those that stay.
    """
    known = kernels.shape[1]
    if channels <= known:
        return kernels[:, :channels] + kernels[:, channels:].sum(1, keepdim=True) / channels
    further = kernels.mean(1, keepdim=True).expand(-1, channels - known, -1, -1)
    return torch.cat([kernels, further], dim=1) * (known / channels)


def resample_patches(kernels: Tensor, patch_size: int) -> Tensor:
    """Return kernels ``[D, C, p, p]`` for patches of another side, by the pseudo-inverse of bicubic resizing."""
    from timm.layers.patch_embed import resample_patch_embed

    return resample_patch_embed(kernels, [patch_size, patch_size])
