"""Comparison of the real training step with literal Algorithm 1: they have the same losses."""

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from hardpatch.bench import literal
from hardpatch.configuration import config
from hardpatch.configuration.build import initial_model
from hardpatch.configuration.sections import RunConfig
from hardpatch.data.batch import Batch
from hardpatch.errors import UserError
from hardpatch.methods.mining import hard_patches
from hardpatch.pretrain.schedule import schedule
from hardpatch.pretrain.step import Learner
from hardpatch.randomness import patch_noise

STEPS = 20


def small_run(*arguments: str) -> RunConfig:
    """Configure 36 patches, 27 masked, 8 to 18 of them mined, and a learning rate at which the losses change."""
    settings = ["--data.image_size=24", "--model.patch_size=4", "--model.width=32", "--model.depth=2"]
    settings += ["--model.heads=2", "--model.decoder_width=32", "--model.decoder_depth=2", "--model.decoder_heads=2"]
    settings += ["--method.alpha_start=0.3", "--method.alpha_end=0.7", "--optim.lr=1e-3", "--method.momentum_start=0.9"]
    return config.build({"steps": STEPS, "batch_size": 6, "seed": 3}, [*settings, *arguments])


def batches(run: RunConfig) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (STEPS, run.batch_size, 3, 24, 24), dtype=torch.uint8, generator=generator)
    indices = torch.arange(STEPS * run.batch_size).view(STEPS, -1)
    return [Batch(i, n, -torch.ones(len(n), dtype=torch.int64), []) for i, n in zip(images, indices, strict=True)]


def losses_of_both(run: RunConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Train from the same weights by the real and by the literal step. Returns the losses ``[STEPS]`` of each."""
    learner = Learner(run, initial_model(run).to(dtype), Fabric(accelerator="cpu", devices=1), STEPS)
    literal_learner = literal.LiteralLearner(run, initial_model(run).to(dtype), torch.device("cpu"))
    losses = [
        (
            learner.train_step(batch, schedule(run, step, STEPS)).losses.loss.detach(),
            literal_learner.train_step(batch, schedule(run, step, STEPS)),
        )
        for step, batch in enumerate(batches(run))
    ]
    return torch.stack([loss for loss, _ in losses]), torch.stack([loss for _, loss in losses])


def test_twenty_steps_have_the_losses_of_algorithm_1() -> None:
    losses, expected = losses_of_both(small_run(), torch.float32)
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0.0)
    assert losses[-1] < losses[0] - 0.1  # the model learned: these are twenty different steps


def test_equal_losses_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Tensor, "float", Tensor.double
    )  # losses are computed in float32 even if the model is in float64
    losses, expected = losses_of_both(small_run(), torch.float64)
    assert losses.dtype == torch.float64
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("mined", [0, 5, 27])
def test_the_masks_are_equal(mined: int) -> None:
    noise = patch_noise(0, 0, torch.arange(8), 36)
    difficulty = torch.randn(8, 36, generator=torch.Generator().manual_seed(0))
    assert torch.equal(literal.generate_mask(difficulty, noise, 27, mined), hard_patches(difficulty, noise, 27, mined))


def test_only_plain_algorithm_1_is_supported() -> None:
    run = small_run("--method.host=simmim")
    with pytest.raises(UserError, match="literal: expected host mae"):
        literal.LiteralLearner(run, initial_model(run), torch.device("cpu"))
