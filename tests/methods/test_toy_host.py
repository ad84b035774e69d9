"""Adding a host takes less than 40 lines outside the package, targets and vital signs included."""

import inspect

import torch
from torch import Tensor, nn

from hardpatch.methods.base import Host
from hardpatch.methods.hpm import HPM, HardPatchesMining, Inputs
from hardpatch.methods.mining import Masking
from hardpatch.methods.teacher import Teacher
from hardpatch.models.decoder import Decoder, DecoderEmbed, Tokens
from hardpatch.models.encoder import Encoder
from hardpatch.patches import PatchIndices, patchify
from hardpatch.pretrain.vital_signs import vital_signs


class MeanColor(Host):
    """Predicts the mean color of each masked patch from the mean of the latent."""

    reconstruction_only = ("head",)

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder(image_size=(16, 16), patch_size=4, width=32, depth=1, heads=2)
        self.embed = DecoderEmbed(latent_width=32, width=16, grid=self.encoder.grid)
        self.head = nn.Linear(16, 3)

    def decoder_tokens(
        self, latent: Tensor, mask: Tensor | PatchIndices | None = None, grid: tuple[int, int] | None = None
    ) -> Tokens:
        return self.embed(latent, mask, grid)

    def reconstruct(self, latent: Tensor, tokens: Tokens, mask: PatchIndices) -> Tensor:
        return self.head(tokens.query_tokens + self.embed.proj(latent).mean(dim=1, keepdim=True))

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
    step = HardPatchesMining(model, teacher, Masking((4, 4)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for number in range(250):
        _, losses = step(Inputs(images, torch.rand(64, 16)), mask_ratio=0.5, alpha=number / 500)
        losses.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        teacher.update(model, momentum=0.8)
    mined, losses = step(Inputs(images, torch.rand(64, 16)), mask_ratio=0.5, alpha=0.5, observe=True)
    assert mined.mined is not None
    assert (mined.mined.nonzero()[:, 1] % 4 < 2).float().mean() > 0.9  # mined patches are in the left half
    signs = vital_signs(mined, losses)
    assert signs["pair_accuracy"] > 0.6
    assert signs["mined_loss_ratio"] > 1.5
    assert 0.3 < signs["mined_overlap"] < 0.7
