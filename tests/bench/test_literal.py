"""The step that does nothing in vain gives the losses of Algorithm 1 taken at its word."""

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from hardpatch.bench import literal
from hardpatch.data.batch import Batch
from hardpatch.errors import UserError
from hardpatch.methods.masking import hard_patches
from hardpatch.pretrain import config
from hardpatch.pretrain.build import initial_model
from hardpatch.pretrain.schedule import schedule
from hardpatch.pretrain.sections import RunConfig
from hardpatch.pretrain.step import Learner
from hardpatch.randomness import patch_noise

STEPS = 20


def small_run(*more: str) -> RunConfig:
    """36 patches, 27 of them masked, 8 to 18 of those mined; rates at which the losses move."""
    settings = ["--data.image_size=24", "--model.patch_size=4", "--model.width=32", "--model.depth=2"]
    settings += ["--model.heads=2", "--model.decoder_width=32", "--model.decoder_depth=2", "--model.decoder_heads=2"]
    settings += ["--method.alpha_start=0.3", "--method.alpha_end=0.7", "--optim.lr=1e-3", "--method.momentum_start=0.9"]
    return config.build({"steps": STEPS, "batch_size": 6, "seed": 3}, [*settings, *more])


def batches(run: RunConfig) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (STEPS, run.batch_size, 3, 24, 24), dtype=torch.uint8, generator=generator)
    indices = torch.arange(STEPS * run.batch_size).view(STEPS, -1)
    return [Batch(i, n, -torch.ones(len(n), dtype=torch.int64), []) for i, n in zip(images, indices, strict=True)]


def losses_of_both(run: RunConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Losses ``[STEPS]`` of the real step and of the literal one, from the same weights."""
    ours = Learner(run, initial_model(run).to(dtype), Fabric(accelerator="cpu", devices=1), STEPS)
    theirs = literal.Literal(run, initial_model(run).to(dtype), torch.device("cpu"))
    found = [
        (
            ours.train_step(batch, schedule(run, step, STEPS)).losses.loss.detach(),
            theirs.train_step(batch, schedule(run, step, STEPS)),
        )
        for step, batch in enumerate(batches(run))
    ]
    return torch.stack([a for a, _ in found]), torch.stack([b for _, b in found])


def test_twenty_steps_have_the_losses_of_algorithm_1() -> None:
    ours, theirs = losses_of_both(small_run(), torch.float32)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0.0)
    assert ours[-1] < ours[0] - 0.1  # they learned, so that it is twenty different steps


def test_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # the losses are in float32 whatever the model is in
    ours, theirs = losses_of_both(small_run(), torch.float64)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("mined", [0, 5, 27])
def test_the_masks_are_equal(mined: int) -> None:
    noise = patch_noise(0, 0, torch.arange(8), 36)
    difficulty = torch.randn(8, 36, generator=torch.Generator().manual_seed(0))
    assert torch.equal(literal.generate_mask(difficulty, noise, 27, mined), hard_patches(difficulty, noise, 27, mined))


def test_it_is_the_plain_algorithm_only() -> None:
    run = small_run("--method.host=simmim")
    with pytest.raises(UserError, match="literal: expected host mae"):
        literal.Literal(run, initial_model(run), torch.device("cpu"))
