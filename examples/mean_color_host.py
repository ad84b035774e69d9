"""Hard Patches Mining around a host of one's own: a model that guesses the mean color of each masked patch.

python examples/mean_color_host.py 300      # steps; half a minute on two cores
"""

import sys

import torch
from torch import Tensor, nn

from hardpatch.data.augment import TrainTransform
from hardpatch.data.loader import train_batches
from hardpatch.data.sources import open_source
from hardpatch.methods.base import Host
from hardpatch.methods.curriculum import linear_alpha
from hardpatch.methods.hpm import HPM, HardPatchesMining, Inputs
from hardpatch.methods.mining import Masking
from hardpatch.methods.teacher import Teacher
from hardpatch.models.decoder import Decoder, DecoderEmbed, Tokens
from hardpatch.models.encoder import Encoder
from hardpatch.patches import PatchIndices, patchify
from hardpatch.pretrain.vital_signs import vital_signs


class MeanColor(Host):
    """Predicts the mean color of each masked patch from the visible ones."""

    reconstruction_only = ("head",)  # the teacher predicts difficulty only, and does without

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder(image_size=(32, 32), patch_size=4, width=96, depth=3, heads=3)
        self.embed = DecoderEmbed(latent_width=96, width=64, grid=self.encoder.grid)
        self.head = nn.Linear(64, 3)

    def decoder_tokens(
        self, latent: Tensor, mask: Tensor | PatchIndices | None = None, grid: tuple[int, int] | None = None
    ) -> Tokens:
        """Tokens of the loss predictor."""
        return self.embed(latent, mask, grid)

    def reconstruct(self, latent: Tensor, tokens: Tokens, mask: PatchIndices) -> Tensor:
        """Colors ``[B, M, 3]`` of the masked patches."""
        return self.head(tokens.query_tokens + self.embed.proj(latent).mean(dim=1, keepdim=True))

    def target(self, images: Tensor) -> Tensor:
        """Mean color of every patch, ``[B, N, 3]``."""
        return patchify(images, 4).unflatten(2, (16, 3)).mean(dim=2)

    def reconstruction_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Squared error of each masked patch, ``[B, M]``."""
        return (prediction - target).square().mean(dim=-1)


steps = int(sys.argv[1])
torch.manual_seed(0)
model = HPM(MeanColor(), predictor=Decoder(width=64, depth=1, heads=2, outputs=3))
teacher = Teacher(model)
mining = HardPatchesMining(model, teacher, Masking(model.grid))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
batches = train_batches(open_source("demo:train"), TrainTransform((32, 32)), batch_size=64, seed=0)
for step in range(steps):
    images = model.normalize(next(batches).images)  # float [B, 3, H, W]
    inputs = Inputs(images, noise=torch.rand(len(images), 64))
    alpha = linear_alpha(step / steps, 0.0, 0.5)  # mined share of the masked patches
    last = step == steps - 1
    mined, losses = mining(inputs, mask_ratio=0.75, alpha=alpha, progress=step / steps, observe=last)
    losses.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    teacher.update(model, momentum=0.95)
batches.close()

print(f"loss: {losses.loss.item():.3f}")
for name, value in vital_signs(mined, losses).items():
    print(f"{name}: {value.item():.3f}")
