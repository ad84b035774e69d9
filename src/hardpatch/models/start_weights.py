"""Start weights of the encoders of BEiT, SimMIM and iBOT, by the rules of their authors' code.

MAE's rule is that of :class:`~hardpatch.models.encoder.Encoder` itself, and of the decoders of every host, because the
loss predictor is a part of Hard Patches Mining. The functions here replace it in the encoders of other hosts.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hardpatch.models.block import Block
from hardpatch.models.encoder import Encoder

STD = 0.02
"""Standard deviation of the normal distribution before it is truncated."""


def truncate_at_one_sigma_(weight: Tensor) -> None:
    """Draw a normal distribution of standard deviation 0.02 without its values beyond 0.02 (BEiT, SimMIM).

    What remains has standard deviation 0.0108.
    """
    nn.init.trunc_normal_(weight, std=STD, a=-STD, b=STD)


@torch.no_grad()
def start_as_beit(encoder: Encoder) -> None:
    """Draw the start weights of BEiT and SimMIM.

    All matrices, the patch embedding, class token, mask token and learned positions are drawn by
    :func:`truncate_at_one_sigma_`. The two layers whose outputs block n adds to the stream, ``attn.proj`` and
    ``mlp.fc2``, are then divided by ``sqrt(2 * n)``; blocks are numbered from 1. Biases, those of relative positions
    included, are zero.
    """
    for layer in _layers(encoder, nn.Linear, nn.Conv2d):
        truncate_at_one_sigma_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    for number, block in enumerate(encoder.blocks, 1):
        assert isinstance(block, Block)
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight /= math.sqrt(2.0 * number)
    for token in (encoder.cls_token, encoder.mask_token, *_learned_positions(encoder)):
        if token is not None:
            truncate_at_one_sigma_(token)


@torch.no_grad()
def start_as_ibot(encoder: Encoder) -> None:
    """Draw the start weights of iBOT.

    Linear layers, class token and learned positions have standard deviation 0.02, biases and the mask token are zero.
    The patch embedding keeps torch's own start of a convolution, weights and biases uniform up to 1 over the root of
    the number of inputs.
    """
    encoder.patch_embed.proj.reset_parameters()
    for layer in _layers(encoder, nn.Linear):
        nn.init.trunc_normal_(layer.weight, std=STD)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    for token in (encoder.cls_token, *_learned_positions(encoder)):
        nn.init.trunc_normal_(token, std=STD)
    if encoder.mask_token is not None:
        nn.init.zeros_(encoder.mask_token)


def _layers(encoder: Encoder, *kinds: type[nn.Module]) -> Iterator[nn.Linear | nn.Conv2d]:
    for layer in encoder.modules():
        if isinstance(layer, kinds):
            assert isinstance(layer, nn.Linear | nn.Conv2d)
            yield layer


def _learned_positions(encoder: Encoder) -> list[Tensor]:
    """Return the positions of the patches and of the class token if they are learned, else an empty list."""
    if encoder.positions is None or encoder.class_position is None:
        return []
    return [encoder.positions, encoder.class_position]
