import torch
from torch.testing import assert_close

from hardpatch.masking import random_mask
from hardpatch.models.decoder import Decoder, DecoderEmbed
from hardpatch.patches import gather, split


def parts() -> tuple[DecoderEmbed, Decoder]:
    torch.manual_seed(0)
    return DecoderEmbed(latent_width=32, width=16, grid=(4, 6)), Decoder(width=16, depth=2, heads=2, outputs=48)


@torch.no_grad()
def test_tokens_stand_in_image_order() -> None:
    embed, _ = parts()
    mask = random_mask(torch.rand(3, 24), 18)
    latent = torch.randn(3, 7, 32)
    tokens = embed(latent, mask)
    embedded = embed.proj(latent)
    assert tokens.shape == (3, 25, 16)
    assert_close(tokens[:, 0], embedded[:, 0])  # the class token has no position
    for image in range(3):
        visible = iter(embedded[image, 1:])
        for patch in range(24):
            assert embed.mask_token is not None
            expected = embed.mask_token[0, 0] if mask[image, patch] else next(visible)
            assert_close(tokens[image, 1 + patch], expected + embed.positions[patch])


@torch.no_grad()
def test_masked_outputs_are_those_of_all_outputs() -> None:
    _, decoder = parts()
    tokens = torch.randn(3, 25, 16)
    mask = random_mask(torch.rand(3, 24), 18)
    assert_close(decoder(tokens, mask), gather(decoder(tokens), split(mask).masked))


def test_folded_head_is_the_mean_of_its_outputs_gradients_too() -> None:
    _, decoder = parts()
    tokens = torch.randn(3, 25, 16)
    mask = random_mask(torch.rand(3, 24), 18)
    parameters = list(decoder.parameters())
    for given in (mask, None):
        folded, plain = decoder.mean_output(tokens, given), decoder(tokens, given).mean(dim=-1)
        assert_close(folded, plain)
        weights = torch.randn_like(plain)
        for one, other in zip(
            torch.autograd.grad((folded * weights).sum(), parameters),
            torch.autograd.grad((plain * weights).sum(), parameters),
            strict=True,
        ):
            assert_close(one, other, rtol=1e-4, atol=1e-5)
