"""The Vision Transformer that is pre-trained."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpatch.choices import PositionsName
from hardpatch.models.block import Block, initialize
from hardpatch.models.positions import (
    RelativePositionBias,
    Rotary,
    resample_positions,
    rotary_positions,
    sincos_positions,
)
from hardpatch.models.variant import PLAIN, Variant
from hardpatch.patches import PatchIndices, gather, patchify, scatter, to_indices


class PatchEmbed(nn.Module):
    """A linear embedding of patches, with the parameters of the convolution that timm and the reference use."""

    def __init__(self, patch_size: int, channels: int, width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size, bias=bias)
        nn.init.xavier_uniform_(self.proj.weight.view(width, -1))
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)

    def forward(self, patches: Tensor) -> Tensor:
        """Embed patch vectors ``[B, V, p * p * C]`` as tokens ``[B, V, D]``; V may be any number of patches."""
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)  # [D, C, p, p] -> [D, p * p * C]
        return F.linear(patches, weight, self.proj.bias)


class Encoder(nn.Module):
    """Pre-norm ViT with class token.

    Masked patches are dropped before the first block (MAE), or replaced by a mask token (BEiT, SimMIM, iBOT).

    Args:
        image_size: (height, width) in pixels. Images of another size are accepted; their positions are interpolated.
        patch_size: side of a square patch in pixels.
        channels: number of channels of the images.
        width: width D of the tokens; see :data:`hardpatch.choices.SIZES`.
        depth: number of blocks.
        heads: number of attention heads.
        mlp_ratio: hidden width of the MLP divided by ``width``.
        drop_masked: drop masked patches; otherwise they become mask tokens.
        mask_token: create a mask token even if masked patches are dropped, for visible patches that are hidden.
        positions: ``sincos``, fixed; ``relative``, a bias shared by all blocks
            (:class:`~hardpatch.models.positions.RelativePositionBias`; only if masked patches are not dropped); or
            ``learned``, a vector for each patch and for the class token (iBOT). None has no such positions.
        layer_scale: see :class:`~hardpatch.models.block.Block`.
        drop_path: probability for the last block; it rises linearly from 0 in the first block.
        variant: what encoders of other libraries have.

    Raises:
        ValueError: if the patch size does not divide the image, the heads the width, or 4 the width.
    """

    positions: Tensor | None
    class_position: Tensor | None

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
        drop_masked: bool = True,
        mask_token: bool = False,
        positions: PositionsName | None = "sincos",
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        variant: Variant = PLAIN,
    ) -> None:
        super().__init__()
        if positions == "relative" and drop_masked:
            raise ValueError(
                "positions: a relative bias needs all patches; expected sincos if masked patches are dropped"
            )
        self.patch_size, self.width, self.channels, self.variant = patch_size, width, channels, variant
        self.drop_masked = drop_masked
        self.grid = patch_grid(image_size, patch_size)
        self.patch_embed = PatchEmbed(patch_size, channels, width, bias=variant.patch_bias)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.registers = nn.Parameter(0.02 * torch.randn(1, variant.registers, width)) if variant.registers else None
        self.norm_pre = nn.LayerNorm(width, eps=variant.norm_eps) if variant.pre_norm else nn.Identity()
        sincos = sincos_positions(width, self.grid) if positions == "sincos" else None
        if positions == "learned":
            self.positions = nn.Parameter(0.02 * torch.randn(self.grid[0] * self.grid[1], width))
        else:
            self.register_buffer("positions", sincos, persistent=False)
        self.class_position = nn.Parameter(0.02 * torch.randn(1, 1, width)) if positions == "learned" else None
        self.relative_bias = RelativePositionBias(self.grid, heads) if positions == "relative" else None
        rates = [drop_path * k / max(depth - 1, 1) for k in range(depth)]
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, layer_scale=layer_scale, drop_path=rate, variant=variant) for rate in rates
        )
        norm = nn.LayerNorm(width, eps=variant.norm_eps) if variant.final_norm else nn.Identity()
        self.norm = cast(nn.LayerNorm, norm)
        nn.init.normal_(self.cls_token, std=0.02)
        initialize(self.blocks)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width)) if mask_token or not drop_masked else None
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=0.02)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the images that it was built for."""
        return self.grid[0] * self.patch_size, self.grid[1] * self.patch_size

    def forward(self, images: Tensor, mask: Tensor | PatchIndices | None = None) -> Tensor:
        """Encode the visible patches of images.

        Args:
            images: normalized pixels ``[B, C, H, W]``.
            mask: bool ``[B, N]``, True = masked, or its :class:`~hardpatch.patches.PatchIndices`; None masks nothing.
                If masked patches are not dropped it may have fewer rows than images; the last images are then whole.

        Returns:
            Tokens after the last norm, class token first: ``[B, 1 + V, D]`` with the visible patches in increasing
            order, or ``[B, 1 + N, D]`` if masked patches are not dropped.
        """
        return self.latents(images, mask, (len(self.blocks),))[0]

    def latents(self, images: Tensor, mask: Tensor | PatchIndices | None, blocks: Sequence[int]) -> list[Tensor]:
        """Compute the output of :meth:`forward` as if the encoder ended after each of ``blocks``, numbered from 1."""
        return [self.norm(self._without_registers(x)) for x in self._outputs(images, mask, blocks)]

    def forward_with_attention(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode whole images, and return the attention of the class token in the last block as well.

        Returns:
            The latent ``[B, 1 + N, D]``, and the attention to each patch ``[B, N]``, mean of the heads (AttMask:
            Kakogeorgiou et al., ECCV 2022, Eq. 3 and 4).
        """
        x, bias, rotary = self._embed(images, None)
        for block in self.blocks[:-1]:
            x = block(x, self._bias_in(block, bias, images), rotary=rotary)
        last = self.blocks[-1]
        assert isinstance(last, Block)
        bias = self._bias_in(last, bias, images)
        attention = last.attn.first_token_attention(last.norm1(x), bias, rotary)[:, self._first - 1 :]
        return self.norm(self._without_registers(last(x, bias, rotary=rotary))), attention

    def intermediates(self, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """Compute the patch tokens of whole images after each of ``blocks``, without the last norm: ``[B, N, D]`` each.

        Args:
            images: normalized pixels ``[B, C, H, W]``.
            blocks: increasing numbers, from 1; blocks after the last of them are not computed.

        Raises:
            ValueError: if the numbers do not increase or the encoder does not have such blocks.
        """
        if not blocks or list(blocks) != sorted(set(blocks)) or blocks[0] < 1 or blocks[-1] > len(self.blocks):
            raise ValueError(f"blocks: expected increasing numbers from 1 to {len(self.blocks)}, got {list(blocks)}")
        return [x[:, self._first :] for x in self._outputs(images, None, blocks)]

    @property
    def _first(self) -> int:
        """Index of the first patch token inside the encoder: after class token and registers."""
        return 1 + self.variant.registers

    def _without_registers(self, x: Tensor) -> Tensor:
        """Return class token and patch tokens: ``[B, 1 + R + V, D]`` -> ``[B, 1 + V, D]``."""
        return x if self.registers is None else torch.cat([x[:, :1], x[:, self._first :]], dim=1)

    def _outputs(self, images: Tensor, mask: Tensor | PatchIndices | None, blocks: Sequence[int]) -> list[Tensor]:
        """Tokens after each of ``blocks``; 0 is before the first one."""
        x, bias, rotary = self._embed(images, mask)
        outputs = [x] if 0 in blocks else []
        for number, block in enumerate(self.blocks[: blocks[-1]], 1):
            x = block(x, self._bias_in(block, bias, images), rotary=rotary)
            if number in blocks:
                outputs.append(x)
        return outputs

    def _embed(self, images: Tensor, mask: Tensor | PatchIndices | None) -> tuple[Tensor, Tensor | None, Rotary | None]:
        """Compute the tokens before the first block, and the bias and the rotary positions that all blocks share."""
        patches = patchify(images, self.patch_size)
        grid = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size)
        indices = None if mask is None else to_indices(mask)
        if indices is not None and self.drop_masked:
            x = self.patch_embed(gather(patches, indices.visible))
            if indices.hidden is not None:
                x = torch.where(indices.hidden.unsqueeze(-1), self._mask_token(x), x)
        else:
            x = self.patch_embed(patches)
            if indices is not None:
                count = len(indices.masked)
                masked = self._with_mask_tokens(x[:count], indices)
                x = masked if count == len(x) else torch.cat([masked, x[count:]])
        if self.positions is not None:
            learned = self.class_position is not None
            positions = resample_positions(self.positions, self.grid, grid, learned=learned).to(x.dtype)
            x = x + (positions[indices.visible] if indices is not None and self.drop_masked else positions)
        first = self.cls_token if self.class_position is None else self.cls_token + self.class_position
        if self.registers is not None:
            first = torch.cat([first, self.registers], dim=1)
        x = self.norm_pre(torch.cat([first.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1))
        visible = indices.visible if indices is not None and self.drop_masked else None
        rotary = None if self.variant.rope_theta is None else self._rotary(grid, visible, x)
        return x, None if self.relative_bias is None else self.relative_bias(grid), rotary

    def _rotary(self, grid: tuple[int, int], visible: Tensor | None, x: Tensor) -> Rotary:
        """Compute the rotary positions of tokens: those of visible patches ``[B, V]``, none of the tokens before."""
        assert self.variant.rope_theta is not None
        block = self.blocks[0]
        assert isinstance(block, Block)
        cosine, sine = rotary_positions(self.width // block.attn.heads, grid, self.variant.rope_theta, x.device)
        parts = []
        for part, neutral in ((cosine, 1.0), (sine, 0.0)):
            rows = part.unsqueeze(0) if visible is None else part[visible]  # [1 or B, V, D / heads]
            parts.append(F.pad(rows, (0, 0, self._first, 0), value=neutral).unsqueeze(1))
        return parts[0], parts[1]

    def _with_mask_tokens(self, x: Tensor, indices: PatchIndices) -> Tensor:
        return scatter(self._mask_token(x).expand(*indices.masked.shape, -1), indices.masked, into=x)

    def _mask_token(self, like: Tensor) -> Tensor:
        if self.mask_token is None:
            raise ValueError(
                "mask: expected an encoder with a mask token for hidden patches, this one was built without one"
            )
        return self.mask_token.to(like.dtype)

    def _bias_in(self, block: nn.Module, shared: Tensor | None, images: Tensor) -> Tensor | None:
        """Return the bias of a block's attention, for all patches of ``images``: its own or the shared one."""
        assert isinstance(block, Block)
        if block.relative_bias is None:
            return shared
        return block.relative_bias((images.shape[2] // self.patch_size, images.shape[3] // self.patch_size))


def patch_grid(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Compute (rows, columns) of patches in an image of ``image_size`` (height, width).

    Raises:
        ValueError: if the patch size does not divide the image.
    """
    height, width = image_size
    if patch_size < 1 or height % patch_size or width % patch_size or height < patch_size or width < patch_size:
        raise ValueError(f"patch_size: expected a divisor of the image size {height}x{width}, got {patch_size}")
    return height // patch_size, width // patch_size
