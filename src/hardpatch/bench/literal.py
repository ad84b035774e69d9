"""Literal implementation of the paper's Algorithm 1, slow and obvious, as a reference in tests and benchmarks.

It works like the reference code of MAE and HPM: every patch is embedded before the masked ones are dropped, the teacher
is a whole copy that also reconstructs, masks are generated image by image on the CPU, all tokens pass both decoders,
all ordered pairs are compared. The losses equal those of :class:`hardpatch.pretrain.step.Learner` up to rounding
(tests/bench/test_literal.py).

    hardpatch bench --contenders hpm,literal
"""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hardpatch.configuration.sections import RunConfig
from hardpatch.data.batch import Batch
from hardpatch.errors import UserError
from hardpatch.methods.hpm import HPM
from hardpatch.methods.mae import MAE
from hardpatch.models.block import Block
from hardpatch.models.decoder import Decoder
from hardpatch.pretrain.schedule import Schedule
from hardpatch.randomness import patch_noise
from hardpatch.train.optimizer import parameter_groups


class LiteralLearner:
    """Student, teacher and optimizer of literal Algorithm 1.

    Args:
        run: the configuration: host mae, random masks, pixels as target, the relative loss.
        model: the student; only its weights are used.
        device: where to train.
        autocast: compute in bfloat16.

    Raises:
        UserError: if the configuration is not plain Algorithm 1.
    """

    def __init__(self, run: RunConfig, model: HPM, device: torch.device, *, autocast: bool = False) -> None:
        method = run.method
        plain = (method.host, method.mask, method.mask_unit, method.mining) == ("mae", "random", None, "hard")
        plain &= method.target in ("auto", "pixels") and method.reconstruction_loss in ("auto", "mse")
        plain &= (
            method.predicting_loss == "relative" and not method.secondary_ratio and run.optim.accumulation_steps == 1
        )
        if not plain or run.optim.clip is None or run.model.drop_path or run.model.layer_scale is not None:
            raise UserError("literal: expected host mae with random masks, pixels and the relative loss, clipped")
        assert isinstance(model.host, MAE)
        self.run, self.device, self.autocast, self.step = run, device, autocast, 0
        self.student = model.to(device)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        groups = parameter_groups(self.student, run.optim.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=run.optim.betas, foreach=False, fused=False)

    def train_step(self, batch: Batch, values: Schedule) -> Tensor:
        """Take one optimizer step of Algorithm 1. Returns the loss, a scalar."""
        pixels, samples = batch.images.to(self.device), batch.indices.to(self.device)
        student, patch_size = self.student, self.student.patch_size
        images = (pixels.float() / 255.0 - student.mean.view(1, -1, 1, 1)) / student.std.view(1, -1, 1, 1)
        patches = images.shape[2] // patch_size * (images.shape[3] // patch_size)
        noise = patch_noise(self.run.seed, self.step, samples, patches)
        masked = patches - int(patches * (1.0 - values.mask_ratio))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            with torch.no_grad():
                unmasked = torch.zeros(len(images), patches, dtype=torch.bool, device=self.device)
                _, difficulty = forward(self.teacher, images, unmasked)
                mask = generate_mask(difficulty, noise, masked, int(masked * values.alpha))
            reconstructed, predicted = forward(student, images, mask)
            target = patch_vectors(images, patch_size)
            losses = (reconstructed.float() - target).square().mean(dim=-1)  # [B, N]
            reconstruction = (losses * mask).sum() / mask.sum()
            masked_losses = losses.detach()[mask].reshape(len(images), masked)
            predicted = predicted.float()[mask].reshape(len(images), masked)
            loss = reconstruction + all_pairs_loss(predicted, masked_losses)
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = values.lr
        assert self.run.optim.clip is not None
        torch.nn.utils.clip_grad_norm_(student.parameters(), self.run.optim.clip, foreach=False)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for new, average in zip(student.parameters(), self.teacher.parameters(), strict=True):
                average.mul_(values.momentum).add_(new, alpha=1.0 - values.momentum)
        self.step += 1
        return loss.detach()


def forward(model: HPM, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruct pixels ``[B, N, p * p * C]`` and predict losses ``[B, N]`` of all patches from the visible ones.

    ``mask`` is bool ``[B, N]``, True = masked, with the same number of masked patches in every image.
    """
    host = model.host
    assert isinstance(host, MAE)
    assert model.predictor is not None
    encoder, embed = host.encoder, host.decoder_embed
    assert encoder.positions is not None
    x = encoder.patch_embed.proj(images).flatten(2).transpose(1, 2)  # a convolution over all patches
    x = x + encoder.positions
    x = x[~mask].reshape(len(x), -1, x.shape[-1])  # drop the masked ones
    x = torch.cat([encoder.cls_token.expand(len(x), -1, -1), x], dim=1)
    for block in encoder.blocks:
        x = transformer_block(block, x)  # type: ignore[arg-type]
    x = embed.proj(encoder.norm(x))
    # visible patches, then a mask token for each masked one, then restore the order of the image
    masked = mask.shape[1] - (x.shape[1] - 1)
    assert embed.mask_token is not None
    ids_shuffle = mask.to(torch.uint8).argsort(dim=1, stable=True)
    ids_restore = ids_shuffle.argsort(dim=1)
    tokens = torch.cat([x[:, 1:], embed.mask_token.to(x.dtype).repeat(len(x), masked, 1)], dim=1)
    tokens = tokens.gather(1, ids_restore.unsqueeze(-1).repeat(1, 1, tokens.shape[2])) + embed.positions
    tokens = torch.cat([x[:, :1], tokens], dim=1)
    return decode(host.reconstructor, tokens), decode(model.predictor, tokens).mean(dim=-1)


def decode(decoder: Decoder, x: Tensor) -> Tensor:
    """Apply all blocks to all tokens ``[B, 1 + N, width]`` and the head to all patches: ``[B, N, outputs]``."""
    for block in decoder.blocks:
        x = transformer_block(block, x)  # type: ignore[arg-type]
    return decoder.head(decoder.norm(x))[:, 1:]


def transformer_block(block: Block, x: Tensor) -> Tensor:
    """Apply timm's block to ``x [B, L, D]``: attention and MLP, each after a norm, with residual connections."""
    batch, length, width = x.shape
    heads = block.attn.heads
    qkv = block.attn.qkv(block.norm1(x)).reshape(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
    x = x + block.attn.proj(attended.transpose(1, 2).reshape(batch, length, width))
    return x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))


def generate_mask(difficulty: Tensor, noise: Tensor, masked: int, mined: int) -> Tensor:
    """Mask the ``mined`` hardest patches of each image, then those with the highest noise: bool ``[B, N]``.

    Works image by image on the CPU (paper, Algorithm S1).
    """
    mask = torch.zeros(difficulty.shape, dtype=torch.bool)
    for i in range(len(difficulty)):
        order = np.argsort(difficulty[i].float().cpu().numpy())
        hardest = order[len(order) - mined :]
        others = np.setdiff1d(np.arange(len(order)), hardest)
        others = others[np.argsort(noise[i].cpu().numpy()[others])]
        random = others[len(others) - (masked - mined) :]
        mask[i, torch.from_numpy(hardest)] = True
        mask[i, torch.from_numpy(random)] = True
    return mask.to(difficulty.device)


def all_pairs_loss(predicted: Tensor, losses: Tensor, eps: float = 1e-6) -> Tensor:
    """Binary cross-entropy over all M x M ordered pairs of ``[B, M]`` without ties (paper, Eq. 5 to 7)."""
    difference = losses.unsqueeze(2) - losses.unsqueeze(1)
    positive, negative = (difference > 0).float(), (difference < 0).float()
    probability = (predicted.unsqueeze(2) - predicted.unsqueeze(1)).sigmoid()
    pairs = -positive * (probability + eps).log() - negative * (1.0 - probability + eps).log()
    return pairs.sum() / (positive + negative).sum()


def patch_vectors(images: Tensor, patch_size: int) -> Tensor:
    """Cut images ``[B, C, H, W]`` into patches ``[B, N, p * p * C]``."""
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    x = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return torch.einsum("nchpwq->nhwpqc", x).reshape(batch, rows * columns, patch_size**2 * channels)
