"""Each thing that the step does once or not at all: twenty steps without it have the same losses."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from hardpatch.methods import hpm, losses, masking
from hardpatch.methods.teacher import Teacher
from hardpatch.models import decoder, encoder
from hardpatch.models.block import Block
from hardpatch.models.decoder import Tokens
from hardpatch.patches import PatchIndices, gather
from hardpatch.pretrain.build import initial_model
from hardpatch.pretrain.schedule import schedule
from hardpatch.pretrain.step import Learner
from tests.bench.test_literal import STEPS, batches, small_run

Patch = pytest.MonkeyPatch


def losses_of_a_run(prepare: Callable[[Learner], None] = lambda learner: None) -> Tensor:
    run = small_run("--method.alpha_start=0.0")  # nothing is mined at first
    learner = Learner(run, initial_model(run), Fabric(accelerator="cpu", devices=1), STEPS)
    prepare(learner)
    found = [
        learner.train_step(batch, schedule(run, step, STEPS)).losses.loss.detach()
        for step, batch in enumerate(batches(run))
    ]
    return torch.stack(found)


@pytest.fixture(scope="module")
def ours() -> Tensor:
    """Losses ``[STEPS]`` of the step as it is."""
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


def the_head_at_full_width(patch: Patch) -> None:
    patch.setattr(decoder.Decoder, "mean_output", lambda self, tokens: self(tokens).mean(dim=-1))


def all_pairs(patch: Patch) -> None:
    def relative_loss(predicted: Tensor, true: Tensor, eps: float = 1e-6) -> Tensor:
        harder = true.unsqueeze(2) > true.unsqueeze(1)
        difference = predicted.unsqueeze(2) - predicted.unsqueeze(1)
        pairs = torch.where(harder, -(difference.sigmoid() + eps).log(), 0.0)
        return pairs.sum() / harder.sum().clamp(min=1)

    patch.setitem(losses.PREDICTING_LOSSES, "relative", relative_loss)


def all_patches_embedded(patch: Patch) -> None:
    def tokens(self: encoder.Encoder, images: Tensor, mask: PatchIndices | None) -> tuple[Tensor, None]:
        x = self.patch_embed.proj(images).flatten(2).transpose(1, 2) + self.positions
        x = x if mask is None else gather(x, mask.visible)
        return torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1), None

    patch.setattr(encoder.Encoder, "_tokens", tokens)


def embedded_for_each_decoder(patch: Patch) -> None:
    def forward(self: hpm.HPM, images: Tensor, mask: PatchIndices, *_: object, **__: object) -> hpm.Losses:
        latent = self.encode(images, mask)
        reconstruction = self.reconstruction_loss(
            self.reconstruct(latent, mask), gather(self.target(images), mask.masked)
        )
        assert self.predictor is not None
        predicted = self.predictor.mean_output(self.host.decoder_tokens(latent, mask))
        predicting = self.predicting_loss(predicted, reconstruction.detach())
        return hpm.Losses(reconstruction.mean() + predicting, reconstruction, predicting, predicted)

    patch.setattr(hpm.HPM, "forward", forward)


def a_teacher_that_always_looks(patch: Patch) -> None:
    mine_mask = hpm.mine_mask

    def looking(*arguments: object, **options: object) -> hpm.MinedMask:
        return mine_mask(*arguments, **{**options, "look": True})  # type: ignore[arg-type]

    patch.setattr("hardpatch.pretrain.step.mine_mask", looking)


def masks_image_by_image(patch: Patch) -> None:
    together = masking.hard_patches

    def one_by_one(difficulty: Tensor | None, noise: Tensor, *counts: int | str, **options: object) -> Tensor:
        rows = [None] * len(noise) if difficulty is None else list(difficulty.split(1))
        masks = [together(d, n, *counts, **options) for d, n in zip(rows, noise.split(1), strict=True)]  # type: ignore[arg-type]
        return torch.cat(masks)

    patch.setattr(hpm, "hard_patches", one_by_one)


def an_average_weight_by_weight(patch: Patch) -> None:
    @torch.no_grad()
    def update(self: Teacher, student: torch.nn.Module, momentum: float) -> None:
        theirs = dict(student.named_parameters())
        for name, weight in self.network.named_parameters():
            weight.mul_(momentum).add_(theirs[name], alpha=1.0 - momentum)

    patch.setattr(Teacher, "update", update)


def gradients_scaled_in_any_case(patch: Patch) -> None:
    def clip(self: Learner) -> Tensor:
        assert self.run.optim.clip is not None
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.run.optim.clip)

    patch.setattr(Learner, "_clip", clip)


def attention_by_hand(patch: Patch) -> None:
    def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v

    patch.setattr(F, "scaled_dot_product_attention", attention)


@pytest.mark.parametrize(
    "without",
    [
        mask_tokens_in_every_image,
        all_tokens_in_the_last_block,
        the_head_at_full_width,
        all_pairs,
        all_patches_embedded,
        embedded_for_each_decoder,
        a_teacher_that_always_looks,
        masks_image_by_image,
        an_average_weight_by_weight,
        gradients_scaled_in_any_case,
        attention_by_hand,
    ],
)
def test_a_saving_changes_no_loss(without: Callable[[Patch], None], ours: Tensor, monkeypatch: Patch) -> None:
    without(monkeypatch)
    torch.testing.assert_close(losses_of_a_run(), ours, rtol=1e-6, atol=0.0)


def test_a_fused_optimizer_changes_no_loss(ours: Tensor) -> None:
    def unfused(learner: Learner) -> None:
        for group in learner.adamw.param_groups:
            group["fused"] = False
            group["foreach"] = False

    torch.testing.assert_close(losses_of_a_run(unfused), ours, rtol=1e-6, atol=0.0)
