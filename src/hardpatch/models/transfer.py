"""Additions to an encoder for training on another task: trained positions, a bias in every block, and layer scale.

None of it changes the output at first. MAE's Vision Transformer in mmsegmentation has all three (He et al. 2022,
App. A.4; ``mmseg/models/backbones/mae.py``).
"""

from torch import nn

from hardpatch.models.block import Block, LayerScale
from hardpatch.models.encoder import Encoder
from hardpatch.models.positions import RelativePositionBias, resample_positions


def train_positions(encoder: Encoder, grid: tuple[int, int] | None = None) -> None:
    """Make the absolute positions a parameter; an encoder without them is left as it is.

    Args:
        encoder: is changed in place.
        grid: (rows, columns) of patches, to which the positions are interpolated; None keeps the encoder's.
    """
    if encoder.positions is None:
        return
    grid = grid or encoder.grid
    positions = resample_positions(encoder.positions.detach(), encoder.grid, grid).clone()
    del encoder.positions  # a buffer cannot be overwritten by a parameter
    encoder.positions, encoder.grid = nn.Parameter(positions), grid


def interpolated(encoder: Encoder, image_size: tuple[int, int]) -> list[str]:
    """Return a line about the interpolation of positions for images of another size; none where there is none."""
    grid = image_size[0] // encoder.patch_size, image_size[1] // encoder.patch_size
    if encoder.positions is None or grid == encoder.grid:
        return []
    one, other = (f"{rows} x {columns}" for rows, columns in (encoder.grid, grid))
    return [f"RUN: positions of {one} patches are interpolated to {other}"]


def trains_positions(encoder: Encoder) -> bool:
    """Return whether the absolute positions are trained."""
    return isinstance(encoder.positions, nn.Parameter) and encoder.positions.requires_grad


def add_relative_bias(encoder: Encoder, grid: tuple[int, int]) -> bool:
    """Give every block a relative position bias of its own, zero at first.

    An encoder that has one from pre-training (BEiT, SimMIM) keeps that and gets no other.

    Args:
        encoder: is changed in place; afterwards it takes whole images only.
        grid: (rows, columns) of patches for which the biases are learned; for others they are interpolated.

    Returns:
        Whether the biases were added.
    """
    if encoder.relative_bias is not None:
        return False
    for block in encoder.blocks:
        assert isinstance(block, Block)
        bias = RelativePositionBias(grid, block.attn.heads)
        block.relative_bias = bias.to(block.attn.qkv.weight.device)
    return True


def unshare_relative_bias(encoder: Encoder) -> bool:
    """Copy the relative position bias that all blocks share to each of them (Bao et al. 2022, BEiT, for fine-tuning).

    Returns:
        Whether there was one.
    """
    shared = encoder.relative_bias
    if shared is None:
        return False
    encoder.relative_bias = None
    add_relative_bias(encoder, shared.grid)
    for block in encoder.blocks:
        assert isinstance(block, Block)
        assert block.relative_bias is not None
        block.relative_bias.load_state_dict(shared.state_dict())
    return True


def add_layer_scale(encoder: Encoder) -> bool:
    """Give every block layer scale, 1 at first; an encoder that has it from pre-training keeps its own.

    Returns:
        Whether it was added.
    """
    if any(isinstance(part, LayerScale) for part in encoder.modules()):
        return False
    for block in encoder.blocks:
        assert isinstance(block, Block)
        for name in ("ls1", "ls2"):
            setattr(block, name, LayerScale(encoder.width, 1.0).to(block.attn.qkv.weight.device))
    return True
