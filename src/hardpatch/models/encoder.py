"""The Vision Transformer that is pre-trained: it sees the visible patches only."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpatch.models.block import NORM_EPS, Block, initialise
from hardpatch.models.positions import resample_positions, sincos_positions
from hardpatch.patches import Split, gather, patchify, split

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"width": 192, "depth": 12, "heads": 3},
    "small": {"width": 384, "depth": 12, "heads": 6},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {"width": 1024, "depth": 24, "heads": 16},
    "huge": {"width": 1280, "depth": 32, "heads": 16},
}
"""Encoder shapes by name (MAE and DeiT)."""


class PatchEmbed(nn.Module):
    """A linear map of patches, kept in the shape of the convolution that timm and the reference use."""

    def __init__(self, patch_size: int, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size)
        nn.init.xavier_uniform_(self.proj.weight.view(width, -1))
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)

    def forward(self, patches: Tensor) -> Tensor:
        """Patch vectors ``[B, V, p * p * C]`` -> tokens ``[B, V, D]``. Only the patches that are given are embedded."""
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)  # [D, C, p, p] -> [D, p * p * C]
        return F.linear(patches, weight, self.proj.bias)


class Encoder(nn.Module):
    """Pre-norm ViT with class token and fixed sine-cosine positions; masked patches are dropped before the first block.

    Args:
        image_size: (height, width) in pixels; other sizes are accepted later, their positions are interpolated.
        patch_size: side of a square patch in pixels.
        channels: of the images, any number.
        width, depth, heads: of the Transformer; see :data:`SIZES`.
        mlp_ratio: hidden width of the MLP over ``width``.

    Raises:
        ValueError: if the patch size does not divide the image, the heads the width, or 4 the width.
    """

    positions: Tensor

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        patch_size: int,
        channels: int = 3,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.patch_size, self.width, self.channels = patch_size, width, channels
        self.grid = patch_grid(image_size, patch_size)
        self.patch_embed = PatchEmbed(patch_size, channels, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.register_buffer("positions", sincos_positions(width, self.grid), persistent=False)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        nn.init.normal_(self.cls_token, std=0.02)
        initialise(self.blocks)

    def forward(self, images: Tensor, mask: Tensor | Split | None = None) -> Tensor:
        """Encode the visible patches of ``images [B, C, H, W]``, all of them where there is no mask.

        Args:
            images: normalised pixels.
            mask: bool ``[B, N]``, True = masked, or its :class:`~hardpatch.patches.Split`.

        Returns:
            ``[B, 1 + V, D]`` after the last norm: the class token, then the visible patches in increasing order.
        """
        patches = patchify(images, self.patch_size)
        grid = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size)
        positions = resample_positions(self.positions, self.grid, grid).to(patches.dtype)
        if mask is None:
            x = self.patch_embed(patches) + positions
        else:
            visible = split(mask).visible
            x = self.patch_embed(gather(patches, visible)) + positions[visible]
        x = torch.cat([self.cls_token.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def patch_grid(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """(rows, columns) of patches in an image of ``image_size`` (height, width).

    Raises:
        ValueError: if the patch size does not divide the image.
    """
    height, width = image_size
    if patch_size < 1 or height % patch_size or width % patch_size or height < patch_size or width < patch_size:
        raise ValueError(f"patch_size: expected a divisor of the image size {height}x{width}, got {patch_size}")
    return height // patch_size, width // patch_size
