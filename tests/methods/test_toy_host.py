"""Adding a host takes less than 40 lines outside the package."""

import inspect

import torch
from torch import Tensor, nn

from hardpatch.methods.hpm import HPM, mine_mask
from hardpatch.methods.teacher import Teacher
from hardpatch.models.decoder import Decoder, DecoderEmbed, Tokens
from hardpatch.models.encoder import Encoder
from hardpatch.patches import PatchIndices, patchify


class MeanColor(nn.Module):
    """Guesses the mean color of each masked patch from what is visible."""

    reconstruction_only: tuple[str, ...] = ("head",)

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder(image_size=(16, 16), patch_size=4, width=32, depth=1, heads=2)
        self.embed = DecoderEmbed(latent_width=32, width=16, grid=self.encoder.grid)
        self.head = nn.Linear(16, 3)

    def encode(self, images: Tensor, mask: Tensor | PatchIndices | None = None) -> Tensor:
        return self.encoder(images, mask)

    def decoder_tokens(
        self, latent: Tensor, mask: Tensor | PatchIndices | None = None, grid: tuple[int, int] | None = None
    ) -> Tokens:
        return self.embed(latent, mask, grid)

    def reconstruct(self, latent: Tensor, tokens: Tokens, mask: PatchIndices) -> Tensor:
        guess = tokens.query_tokens
        return self.head(guess + self.embed.proj(latent).mean(dim=1, keepdim=True))

    def target(self, images: Tensor) -> Tensor:
        return patchify(images, 4).unflatten(2, (16, 3)).mean(dim=2)

    def reconstruction_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).square().mean(dim=-1)


def test_a_toy_host_mines_hard_patches() -> None:
    assert len(inspect.getsource(MeanColor).splitlines()) < 40
    torch.manual_seed(0)
    # The left half of each image is noise of many colors, the right half is gray: easy.
    images = torch.zeros(64, 3, 16, 16)
    images[..., :8] = torch.randn(64, 3, 4, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
    model = HPM(MeanColor(), Decoder(width=16, depth=1, heads=2, outputs=3))
    teacher = Teacher(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(250):
        problem = mine_mask(teacher, images, torch.rand(64, 16), mask_ratio=0.5, alpha=step / 500, grid=(4, 4))
        losses = model(images, problem.mask)
        losses.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        teacher.update(model, momentum=0.8)
    problem = mine_mask(teacher, images, torch.rand(64, 16), mask_ratio=0.5, alpha=1.0, grid=(4, 4))
    assert (problem.mask.masked % 4 < 2).float().mean() > 0.9  # what it masks stands in the left half
