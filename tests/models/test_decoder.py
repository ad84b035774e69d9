"""The decoder, which computes some things only once, equals a literal decoder in outputs and gradients."""

from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from hardpatch.methods.masking import random_mask
from hardpatch.models.block import Block
from hardpatch.models.decoder import Decoder, DecoderEmbed, Tokens, first_block, last_block, run_blocks
from hardpatch.patches import PatchIndices, gather, to_indices

B, N, WIDTH = 3, 24, 16


def parts(depth: int = 2, mask_token: bool = True) -> tuple[DecoderEmbed, Decoder, PatchIndices]:
    torch.manual_seed(0)
    embed = DecoderEmbed(latent_width=32, width=WIDTH, grid=(4, 6), mask_token=mask_token)
    decoder = Decoder(width=WIDTH, depth=depth, heads=2, outputs=48)
    return embed, decoder, to_indices(random_mask(torch.rand(B, N), 18))


def in_image_order(embed: DecoderEmbed, latent: Tensor, mask: PatchIndices) -> Tensor:
    """Build all tokens in the order of the image, ``[B, 1 + N, W]``."""
    x = embed.proj(latent)
    images = []
    for image, masked in enumerate(mask.masked.tolist()):
        visible = iter(x[image, 1:])
        assert embed.mask_token is not None
        rows = [embed.mask_token[0, 0] if patch in masked else next(visible) for patch in range(N)]
        images.append(torch.cat([x[image, :1], torch.stack(rows) + embed.positions]))
    return torch.stack(images)


def literal(decoder: Decoder, tokens: Tensor) -> Tensor:
    """Apply all blocks to all tokens, and the head to all patches: ``[B, N, outputs]``."""
    for block in decoder.blocks:
        tokens = block(tokens)
    return decoder.head(decoder.norm(tokens))[:, 1:]


def with_gradients(outputs: Tensor, decoder: Decoder, embed: DecoderEmbed) -> list[Tensor]:
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1))
    parameters = [p for p in [*decoder.parameters(), *embed.parameters()] if p.requires_grad]
    return [
        outputs,
        *torch.autograd.grad((outputs * weights).sum(), parameters, retain_graph=True, materialize_grads=True),
    ]


def all_close(ones: list[Tensor], others: list[Tensor]) -> None:
    for one, other in zip(ones, others, strict=True):
        assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_equals_a_decoder_in_image_order(depth: int) -> None:
    embed, decoder, mask = parts(depth)
    latent = torch.randn(B, 7, 32)
    ours = decoder(embed(latent, mask))
    theirs = gather(literal(decoder, in_image_order(embed, latent, mask)), mask.masked)
    all_close(with_gradients(ours, decoder, embed), with_gradients(theirs, decoder, embed))


def test_without_a_mask_every_patch_is_predicted() -> None:
    embed, decoder, _ = parts()
    tokens = embed(torch.randn(B, 1 + N, 32))
    all_close(
        with_gradients(decoder(tokens), decoder, embed),
        with_gradients(literal(decoder, tokens.sequence), decoder, embed),
    )


def test_masked_patches_are_predicted_from_a_latent_of_all_patches() -> None:
    embed, decoder, mask = parts(mask_token=False)
    latent = torch.randn(B, 1 + N, 32)
    tokens = embed(latent, mask)
    assert_close(tokens.sequence[:, 1:], embed.proj(latent)[:, 1:] + embed.positions)
    assert_close(tokens.sequence[:, 0], embed.proj(latent)[:, 0])  # the class token has no position
    theirs = gather(literal(decoder, tokens.sequence), mask.masked)
    all_close(with_gradients(decoder(tokens), decoder, embed), with_gradients(theirs, decoder, embed))


def appended(tokens: Tokens) -> Tensor:
    assert isinstance(tokens.queries, Tensor)
    assert tokens.mask_tokens is not None
    return torch.cat([tokens.sequence, F.embedding(tokens.queries, tokens.mask_tokens)], dim=1)


def test_first_block_equals_a_plain_block() -> None:
    embed, decoder, mask = parts()
    tokens = embed(torch.randn(B, 7, 32), mask)
    block = decoder.blocks[0]
    ours, theirs = first_block(block, tokens), block(appended(tokens))  # type: ignore[arg-type]
    assert ours.queries == slice(7, None)
    all_close(with_gradients(ours.sequence, decoder, embed), with_gradients(theirs, decoder, embed))


def test_last_block_equals_a_plain_block_at_the_queries() -> None:
    embed, decoder, mask = parts()
    block = decoder.blocks[0]
    x = appended(embed(torch.randn(B, 7, 32), mask))
    for queries, theirs in (
        (slice(7, None), block(x)[:, 7:]),
        (mask.masked, gather(block(x), mask.masked)),
    ):
        ours = last_block(block, Tokens(x, queries))  # type: ignore[arg-type]
        all_close(with_gradients(ours, decoder, embed), with_gradients(theirs, decoder, embed))


def test_run_blocks_and_last_block_equal_the_decoder() -> None:
    embed, decoder, mask = parts(depth=3)
    tokens = embed(torch.randn(B, 7, 32), mask)
    blocks = cast(list[Block], list(decoder.blocks))
    tokens_before_last = run_blocks(blocks[:2], tokens)
    assert_close(decoder.head(decoder.norm(last_block(blocks[2], tokens_before_last))), decoder(tokens))


def test_mean_output_equals_the_mean_of_the_outputs() -> None:
    embed, decoder, mask = parts()
    for tokens in (embed(torch.randn(B, 7, 32), mask), embed(torch.randn(B, 1 + N, 32))):
        folded, plain = decoder.mean_output(tokens), decoder(tokens).mean(dim=-1)
        all_close(with_gradients(folded, decoder, embed), with_gradients(plain, decoder, embed))
