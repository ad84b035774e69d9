"""What the decoder computes once gives what a literal decoder computes many times, gradients too."""

from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from hardpatch.methods.masking import random_mask
from hardpatch.models.block import Block
from hardpatch.models.decoder import Decoder, DecoderEmbed, Tokens, first_block, last_block, through
from hardpatch.patches import PatchIndices, gather, to_indices

B, N, WIDTH = 3, 24, 16


def parts(depth: int = 2, mask_token: bool = True) -> tuple[DecoderEmbed, Decoder, PatchIndices]:
    torch.manual_seed(0)
    embed = DecoderEmbed(latent_width=32, width=WIDTH, grid=(4, 6), mask_token=mask_token)
    decoder = Decoder(width=WIDTH, depth=depth, heads=2, outputs=48)
    return embed, decoder, to_indices(random_mask(torch.rand(B, N), 18))


def in_image_order(embed: DecoderEmbed, latent: Tensor, mask: PatchIndices) -> Tensor:
    """All tokens ``[B, 1 + N, W]``, one after the other."""
    x = embed.proj(latent)
    images = []
    for image, masked in enumerate(mask.masked.tolist()):
        visible = iter(x[image, 1:])
        assert embed.mask_token is not None
        rows = [embed.mask_token[0, 0] if patch in masked else next(visible) for patch in range(N)]
        images.append(torch.cat([x[image, :1], torch.stack(rows) + embed.positions]))
    return torch.stack(images)


def literal(decoder: Decoder, tokens: Tensor) -> Tensor:
    """All blocks on all tokens, and the head on all patches: ``[B, N, outputs]``."""
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
def test_it_answers_as_a_decoder_in_image_order(depth: int) -> None:
    embed, decoder, mask = parts(depth)
    latent = torch.randn(B, 7, 32)
    ours = decoder(embed(latent, mask))
    theirs = gather(literal(decoder, in_image_order(embed, latent, mask)), mask.masked)
    all_close(with_gradients(ours, decoder, embed), with_gradients(theirs, decoder, embed))


def test_without_a_mask_it_answers_for_every_patch() -> None:
    embed, decoder, _ = parts()
    tokens = embed(torch.randn(B, 1 + N, 32))
    all_close(
        with_gradients(decoder(tokens), decoder, embed), with_gradients(literal(decoder, tokens.seen), decoder, embed)
    )


def test_where_the_encoder_hands_on_all_patches_it_answers_for_the_masked_ones() -> None:
    embed, decoder, mask = parts(mask_token=False)
    latent = torch.randn(B, 1 + N, 32)
    tokens = embed(latent, mask)
    assert_close(tokens.seen[:, 1:], embed.proj(latent)[:, 1:] + embed.positions)
    assert_close(tokens.seen[:, 0], embed.proj(latent)[:, 0])  # the class token has no position
    theirs = gather(literal(decoder, tokens.seen), mask.masked)
    all_close(with_gradients(decoder(tokens), decoder, embed), with_gradients(theirs, decoder, embed))


def joined(tokens: Tokens) -> Tensor:
    assert isinstance(tokens.asked, Tensor)
    assert tokens.blanks is not None
    return torch.cat([tokens.seen, F.embedding(tokens.asked, tokens.blanks)], dim=1)


def test_mask_tokens_computed_once_change_nothing() -> None:
    embed, decoder, mask = parts()
    tokens = embed(torch.randn(B, 7, 32), mask)
    block = decoder.blocks[0]
    ours, theirs = first_block(block, tokens), block(joined(tokens))  # type: ignore[arg-type]
    assert ours.asked == slice(7, None)
    all_close(with_gradients(ours.seen, decoder, embed), with_gradients(theirs, decoder, embed))


def test_a_last_block_for_what_is_asked_changes_nothing() -> None:
    embed, decoder, mask = parts()
    block = decoder.blocks[0]
    x = joined(embed(torch.randn(B, 7, 32), mask))
    for asked, theirs in (
        (slice(7, None), block(x)[:, 7:]),
        (mask.masked, gather(block(x), mask.masked)),
    ):
        ours = last_block(block, Tokens(x, asked))  # type: ignore[arg-type]
        all_close(with_gradients(ours, decoder, embed), with_gradients(theirs, decoder, embed))


def test_blocks_apart_are_blocks_together() -> None:
    embed, decoder, mask = parts(depth=3)
    tokens = embed(torch.randn(B, 7, 32), mask)
    blocks = cast(list[Block], list(decoder.blocks))
    some = through(blocks[:2], tokens)
    assert_close(decoder.head(decoder.norm(last_block(blocks[2], some))), decoder(tokens))


def test_folded_head_is_the_mean_of_its_outputs_gradients_too() -> None:
    embed, decoder, mask = parts()
    for tokens in (embed(torch.randn(B, 7, 32), mask), embed(torch.randn(B, 1 + N, 32))):
        folded, plain = decoder.mean_output(tokens), decoder(tokens).mean(dim=-1)
        all_close(with_gradients(folded, decoder, embed), with_gradients(plain, decoder, embed))
