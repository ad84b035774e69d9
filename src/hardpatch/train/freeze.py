"""Frozen parts of an encoder that is trained on labels: all of it, or its first blocks."""

from torch import nn

from hardpatch.choices import FreezeName
from hardpatch.errors import UserError
from hardpatch.models.block import Block
from hardpatch.models.encoder import Encoder


def freeze(encoder: Encoder, what: int | FreezeName) -> str:
    """Take the first blocks of an encoder, and everything before them, out of the training.

    Their tensors get no gradient and so no update and no weight decay, and their drop path is off. A relative position
    bias that all blocks share is trained as long as one of the blocks is.

    Args:
        encoder: is changed in place.
        what: number of blocks, 0 for none of the encoder; or ``encoder``, with its last norm.

    Returns:
        The frozen parts in words, empty for none.

    Raises:
        UserError: if the encoder has fewer blocks.
    """
    depth = len(encoder.blocks)
    if what == "encoder":
        encoder.requires_grad_(False)
        _without_drop_path(encoder, depth)
        return "the whole encoder"
    if not 0 <= what <= depth:
        raise UserError(f"--freeze: expected encoder, or a number of blocks from 0 to {depth}, got {what}")
    if not what:
        return ""
    before = [encoder.patch_embed, encoder.norm_pre, *encoder.blocks[:what]]
    tokens = [encoder.cls_token, encoder.registers, encoder.positions, encoder.class_position]
    for part in (*before, *tokens):
        if isinstance(part, nn.Module | nn.Parameter):
            part.requires_grad_(False)
    if what == depth and encoder.relative_bias is not None:
        encoder.relative_bias.requires_grad_(False)
    _without_drop_path(encoder, what)
    return f"patch embedding, positions and {'the first block' if what == 1 else f'the first {what} of {depth} blocks'}"


def _without_drop_path(encoder: Encoder, blocks: int) -> None:
    for block in encoder.blocks[:blocks]:
        assert isinstance(block, Block)
        block.drop_path = 0.0


def trained_line(model: nn.Module, frozen: str) -> list[str]:
    """Return a line that says how many parameters are trained and what is frozen; none where nothing is."""
    if not frozen:
        return []
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    trained = sum(size for size, trains in sizes if trains)
    return [f"--freeze: {trained:,} of {sum(size for size, _ in sizes):,} parameters are trained; frozen: {frozen}"]
