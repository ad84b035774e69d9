"""Every optimization of the training step leaves the losses of twenty steps unchanged."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from hardpatch.configuration.build import initial_model
from hardpatch.methods import hpm, losses, mining
from hardpatch.methods.masking import draw_mask
from hardpatch.methods.teacher import Teacher
from hardpatch.models import decoder, encoder
from hardpatch.models.block import Block
from hardpatch.models.decoder import Tokens
from hardpatch.patches import PatchIndices, gather
from hardpatch.pretrain.schedule import schedule
from hardpatch.pretrain.step import Learner
from hardpatch.train.bad_steps import BadSteps
from tests.bench.test_literal import STEPS, batches, small_run

Patch = pytest.MonkeyPatch


def losses_of_a_run(prepare: Callable[[Learner], None] = lambda learner: None) -> Tensor:
    run = small_run("--method.alpha_start=0.0")  # nothing is mined at first
    learner = Learner(run, initial_model(run), Fabric(accelerator="cpu", devices=1), STEPS)
    prepare(learner)
    step_losses = [
        learner.train_step(batch, schedule(run, step, STEPS)).losses.loss.detach()
        for step, batch in enumerate(batches(run))
    ]
    return torch.stack(step_losses)


@pytest.fixture(scope="module")
def optimized() -> Tensor:
    """Losses ``[STEPS]`` of the optimized step."""
    return losses_of_a_run()


def mask_tokens_in_every_image(patch: Patch) -> None:
    def first_block(block: Block, tokens: Tokens) -> Tokens:
        if not tokens.queries_are_mask_tokens:
            return tokens._replace(sequence=block(tokens.sequence))
        return Tokens(block(tokens.append_queries(*tokens.parts)), slice(tokens.sequence.shape[1], None))

    patch.setattr(decoder, "first_block", first_block)


def all_tokens_in_the_last_block(patch: Patch) -> None:
    def last_block(block: Block, tokens: Tokens) -> Tensor:
        x, queries = block(tokens.sequence), tokens.queries
        return x[:, queries] if isinstance(queries, slice) else gather(x, queries)

    patch.setattr(decoder, "last_block", last_block)


def predictor_head_at_full_width(patch: Patch) -> None:
    patch.setattr(decoder.Decoder, "mean_output", lambda self, tokens: self(tokens).mean(dim=-1))


def all_pairs(patch: Patch) -> None:
    def relative_loss(predicted: Tensor, true: Tensor, eps: float = 1e-6) -> Tensor:
        harder = true.unsqueeze(2) > true.unsqueeze(1)
        difference = predicted.unsqueeze(2) - predicted.unsqueeze(1)
        pairs = torch.where(harder, -(difference.sigmoid() + eps).log(), 0.0)
        return pairs.sum() / harder.sum().clamp(min=1)

    patch.setitem(losses.PREDICTING_LOSSES, "relative", relative_loss)


def all_patches_embedded(patch: Patch) -> None:
    def tokens(self: encoder.Encoder, images: Tensor, mask: PatchIndices | None) -> tuple[Tensor, None, None]:
        x = self.patch_embed.proj(images).flatten(2).transpose(1, 2) + self.positions
        x = x if mask is None else gather(x, mask.visible)
        return torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1), None, None

    patch.setattr(encoder.Encoder, "_embed", tokens)


def latent_embedded_for_each_decoder(patch: Patch) -> None:
    def forward(self: hpm.HPM, images: Tensor, mask: PatchIndices, *_: object, **__: object) -> hpm.Losses:
        latent = self.encode(images, mask)
        reconstruction = self.reconstruction_loss(
            self.reconstruct(latent, mask), gather(self.target(images), mask.masked)
        )
        assert self.predictor is not None
        predicted = self.predictor.mean_output(self.host.decoder_tokens(latent, mask))
        predicting = self.predicting_loss(predicted, reconstruction.detach())
        return hpm.Losses(reconstruction.mean() + predicting, reconstruction, predicted, {}, {})

    patch.setattr(hpm.HPM, "forward", forward)


def a_teacher_that_always_runs(patch: Patch) -> None:
    run_teacher = hpm.HardPatchesMining.run_teacher
    patch.setattr(hpm.HardPatchesMining, "run_teacher", lambda self, images, mining: run_teacher(self, images, True))


def masks_generated_image_by_image(patch: Patch) -> None:
    def one_by_one(strategy: Any, noise: Tensor, masked: int, *, mined: Tensor | None, **options: Any) -> Tensor:
        rows = [None] * len(noise) if mined is None else list(mined.split(1))
        return torch.cat(
            [draw_mask(strategy, n, masked, mined=m, **options) for m, n in zip(rows, noise.split(1), strict=True)]
        )

    patch.setattr(mining, "draw_mask", one_by_one)


def teacher_update_weight_by_weight(patch: Patch) -> None:
    @torch.no_grad()
    def update(self: Teacher, student: torch.nn.Module, momentum: float) -> None:
        new = dict(student.named_parameters())
        for name, weight in self.network.named_parameters():
            weight.mul_(momentum).add_(new[name], alpha=1.0 - momentum)

    patch.setattr(Teacher, "update", update)


def gradients_always_scaled(patch: Patch) -> None:
    def clip(self: BadSteps, limit: float | None) -> Tensor:
        norm = without_limit(self, None)
        assert limit is not None
        torch.nn.utils.clip_grads_with_norm_(self._gradients[0], limit, norm)
        return norm

    without_limit = BadSteps.clip
    patch.setattr(BadSteps, "clip", clip)


def unfused_attention(patch: Patch) -> None:
    def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v

    patch.setattr(F, "scaled_dot_product_attention", attention)


@pytest.mark.parametrize(
    "undo",
    [
        mask_tokens_in_every_image,
        all_tokens_in_the_last_block,
        predictor_head_at_full_width,
        all_pairs,
        all_patches_embedded,
        latent_embedded_for_each_decoder,
        a_teacher_that_always_runs,
        masks_generated_image_by_image,
        teacher_update_weight_by_weight,
        gradients_always_scaled,
        unfused_attention,
    ],
)
def test_an_optimization_changes_no_loss(undo: Callable[[Patch], None], optimized: Tensor, monkeypatch: Patch) -> None:
    undo(monkeypatch)
    torch.testing.assert_close(losses_of_a_run(), optimized, rtol=1e-6, atol=0.0)


def test_a_fused_optimizer_changes_no_loss(optimized: Tensor) -> None:
    def unfused(learner: Learner) -> None:
        for group in learner.adamw.param_groups:
            group["fused"] = False
            group["foreach"] = False
        learner.adamw.defaults["fused"] = False

    torch.testing.assert_close(losses_of_a_run(unfused), optimized, rtol=1e-6, atol=0.0)
