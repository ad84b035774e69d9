"""Algorithm 1 of the paper taken at its word, slow and obvious: what `hardpatch` is held against.

It does what the reference code of MAE and HPM does, and in their manner: every patch is embedded and the masked ones
are thrown away, the teacher is a whole copy that also rebuilds the image nobody asked it for, the masks are made image
by image on the CPU, all tokens run through all of both decoders, all ordered pairs are compared. The numbers are those
of :class:`hardpatch.pretrain.step.Learner`, to rounding (tests/bench/test_literal.py).

    hardpatch bench --contenders hpm,literal
"""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hardpatch.data.batch import Batch
from hardpatch.errors import UserError
from hardpatch.methods.hpm import HPM
from hardpatch.methods.mae import MAE
from hardpatch.models.block import Block
from hardpatch.models.decoder import Decoder
from hardpatch.pretrain.schedule import Schedule
from hardpatch.pretrain.sections import RunConfig
from hardpatch.randomness import patch_noise
from hardpatch.train.optimizer import parameter_groups


class Literal:
    """Student, teacher and optimizer, one step at a time.

    Args:
        run: the configuration; host mae, random masks, pixels, the relative loss.
        model: the student; only its weights are used, the arithmetic is this file's.
        device: where it runs.
        autocast: in bfloat16.

    Raises:
        UserError: for a configuration that is not the plain Algorithm 1.
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

    def train_step(self, batch: Batch, now: Schedule) -> Tensor:
        """One optimizer step of Algorithm 1. Returns the loss, a scalar."""
        pixels, samples = batch.images.to(self.device), batch.indices.to(self.device)
        student, patch_size = self.student, self.student.patch_size
        images = (pixels.float() / 255.0 - student.mean.view(1, -1, 1, 1)) / student.std.view(1, -1, 1, 1)
        patches = images.shape[2] // patch_size * (images.shape[3] // patch_size)
        noise = patch_noise(self.run.seed, self.step, samples, patches)
        masked = patches - int(patches * (1.0 - now.mask_ratio))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            with torch.no_grad():
                nothing = torch.zeros(len(images), patches, dtype=torch.bool, device=self.device)
                _, difficulty = forward(self.teacher, images, nothing)
                mask = generate_mask(difficulty, noise, masked, int(masked * now.alpha))
            rebuilt, predicted = forward(student, images, mask)
            target = patch_vectors(images, patch_size)
            losses = (rebuilt.float() - target).square().mean(dim=-1)  # [B, N]
            reconstruction = (losses * mask).sum() / mask.sum()
            per_masked = losses.detach()[mask].reshape(len(images), masked)
            predicted = predicted.float()[mask].reshape(len(images), masked)
            loss = reconstruction + all_pairs_loss(predicted, per_masked)
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = now.lr
        assert self.run.optim.clip is not None
        torch.nn.utils.clip_grad_norm_(student.parameters(), self.run.optim.clip, foreach=False)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for theirs, ours in zip(student.parameters(), self.teacher.parameters(), strict=True):
                ours.mul_(now.momentum).add_(theirs, alpha=1.0 - now.momentum)
        self.step += 1
        return loss.detach()


def forward(model: HPM, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels ``[B, N, p * p * C]`` and predicted losses ``[B, N]`` of all patches, from the visible ones.

    ``mask [B, N]`` is bool, True = masked, as many in every image.
    """
    host = model.host
    assert isinstance(host, MAE)
    assert model.predictor is not None
    encoder, embed = host.encoder, host.decoder_embed
    assert encoder.positions is not None
    x = encoder.patch_embed.proj(images).flatten(2).transpose(1, 2)  # a convolution, of all patches
    x = x + encoder.positions
    x = x[~mask].reshape(len(x), -1, x.shape[-1])  # the masked ones are dropped
    x = torch.cat([encoder.cls_token.expand(len(x), -1, -1), x], dim=1)
    for block in encoder.blocks:
        x = transformer_block(block, x)  # type: ignore[arg-type]
    x = embed.proj(encoder.norm(x))
    # visible patches first, then a mask token for each masked one, then back into the order of the image
    hidden = mask.shape[1] - (x.shape[1] - 1)
    assert embed.mask_token is not None
    ids_shuffle = mask.to(torch.uint8).argsort(dim=1, stable=True)
    ids_restore = ids_shuffle.argsort(dim=1)
    tokens = torch.cat([x[:, 1:], embed.mask_token.to(x.dtype).repeat(len(x), hidden, 1)], dim=1)
    tokens = tokens.gather(1, ids_restore.unsqueeze(-1).repeat(1, 1, tokens.shape[2])) + embed.positions
    tokens = torch.cat([x[:, :1], tokens], dim=1)
    return decode(host.reconstructor, tokens), decode(model.predictor, tokens).mean(dim=-1)


def decode(decoder: Decoder, x: Tensor) -> Tensor:
    """All blocks on all tokens ``[B, 1 + N, width]``, and the head on all patches: ``[B, N, outputs]``."""
    for block in decoder.blocks:
        x = transformer_block(block, x)  # type: ignore[arg-type]
    return decoder.head(decoder.norm(x))[:, 1:]


def transformer_block(block: Block, x: Tensor) -> Tensor:
    """timm's block: attention and MLP, each on its norm, added to ``x [B, L, D]``."""
    batch, length, width = x.shape
    heads = block.attn.heads
    qkv = block.attn.qkv(block.norm1(x)).reshape(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
    x = x + block.attn.proj(attended.transpose(1, 2).reshape(batch, length, width))
    return x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))


def generate_mask(difficulty: Tensor, noise: Tensor, masked: int, mined: int) -> Tensor:
    """Image by image on the CPU: the ``mined`` hardest patches, then those with the highest noise. bool ``[B, N]``."""
    mask = torch.zeros(difficulty.shape, dtype=torch.bool)
    for i in range(len(difficulty)):
        order = np.argsort(difficulty[i].float().cpu().numpy())
        hard = order[len(order) - mined :]
        others = np.setdiff1d(np.arange(len(order)), hard)
        others = others[np.argsort(noise[i].cpu().numpy()[others])]
        drawn = others[len(others) - (masked - mined) :]
        mask[i, torch.from_numpy(hard)] = True
        mask[i, torch.from_numpy(drawn)] = True
    return mask.to(difficulty.device)


def all_pairs_loss(predicted: Tensor, losses: Tensor, eps: float = 1e-6) -> Tensor:
    """Binary cross-entropy over all M x M ordered pairs of ``[B, M]`` (paper, Eq. 5 and 6), ties left out."""
    difference = losses.unsqueeze(2) - losses.unsqueeze(1)
    positive, negative = (difference > 0).float(), (difference < 0).float()
    probability = (predicted.unsqueeze(2) - predicted.unsqueeze(1)).sigmoid()
    pairs = -positive * (probability + eps).log() - negative * (1.0 - probability + eps).log()
    return pairs.sum() / (positive + negative).sum()


def patch_vectors(images: Tensor, patch_size: int) -> Tensor:
    """Images ``[B, C, H, W]`` as patches ``[B, N, p * p * C]``."""
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    x = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return torch.einsum("nchpwq->nhwpqc", x).reshape(batch, rows * columns, patch_size**2 * channels)
