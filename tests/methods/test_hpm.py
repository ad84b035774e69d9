from typing import Any

import pytest
import torch
from torch.testing import assert_close

from hardpatch.choices import MiningName, PredictingLossName
from hardpatch.methods.hpm import HPM, HardPatchesMining, Inputs
from hardpatch.methods.losses import PREDICTING_LOSSES
from hardpatch.methods.masking import random_mask
from hardpatch.methods.mining import Masking, MinedMask
from hardpatch.methods.teacher import Teacher, TeacherOutput
from hardpatch.patches import to_indices
from tests.small import mae_of, small_hpm, small_mae

IMAGES = torch.randn(5, 3, 16, 24, generator=torch.Generator().manual_seed(1))
NOISE = torch.rand(5, 24, generator=torch.Generator().manual_seed(2))


def complete_hpm(seed: int = 0) -> HPM:
    """Make a model whose teacher keeps the reconstructor, so that its copy can be a student as well."""
    model = small_hpm(seed=seed)
    mae_of(model).reconstruction_only = ()
    return model


class NeverRun(Teacher):
    def forward(self, images: torch.Tensor, *, difficulty: bool = True, attention: bool = False) -> TeacherOutput:
        raise AssertionError("the teacher was run")


def mine(teacher: Teacher, images: torch.Tensor, noise: torch.Tensor, alpha: float, **masking: Any) -> MinedMask:
    """Mask 75 % of images with 4 x 6 patches, without training on them."""
    step = HardPatchesMining(teacher.network, teacher, Masking((4, 6), **masking))
    with torch.no_grad():
        return step(Inputs(images, noise), mask_ratio=0.75, alpha=alpha)[0]


def test_hpm_without_predictor_is_mae_bit_for_bit() -> None:
    mae, hpm = small_mae(), HPM(small_mae(), None)
    mask = to_indices(random_mask(NOISE, 18))
    latent = mae.encode(IMAGES, mask)
    target = mae.target(IMAGES).gather(1, mask.masked.unsqueeze(-1).expand(-1, -1, 48))
    loss = mae.reconstruction_loss(HPM(mae, None).reconstruct(latent, mask), target).mean()
    loss.backward()
    step = HardPatchesMining(hpm, None, Masking((4, 6)))
    drawn, losses = step(Inputs(IMAGES, NOISE), mask_ratio=0.75, alpha=0.0)
    assert all(map(torch.equal, drawn.mask[:2], mask[:2]))
    losses.loss.backward()
    assert torch.equal(losses.loss, loss)
    assert losses.predicted is None
    for one, other in zip(mae.parameters(), hpm.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)


def test_with_alpha_zero_the_teacher_does_not_run_and_masks_are_random() -> None:
    model = small_hpm()
    step = HardPatchesMining(model, NeverRun(model), Masking((4, 6)))
    drawn, _ = step(Inputs(IMAGES, NOISE), mask_ratio=0.75, alpha=0.05)  # int(18 * 0.05) == 0
    assert drawn.mined is None
    assert all(map(torch.equal, drawn.mask[:2], to_indices(random_mask(NOISE, 18))[:2]))


@pytest.mark.parametrize("mining", ["hard", "easy"])
def test_mined_patches_are_those_that_the_teacher_predicts_to_be_hard(mining: MiningName) -> None:
    teacher = Teacher(complete_hpm(seed=3))
    result = mine(teacher, IMAGES, NOISE, alpha=1.0, mining=mining)
    order = teacher.predict_loss(IMAGES).argsort(dim=1, descending=mining == "hard")
    assert torch.equal(result.mask.masked, order[:, :18].sort(dim=1).values)
    assert result.mined is not None
    assert torch.equal(result.mined, torch.zeros(5, 24, dtype=torch.bool).scatter(1, order[:, :18], True))


@torch.no_grad()
def test_permuting_images_permutes_scores_and_masks() -> None:
    teacher = Teacher(complete_hpm())
    order = torch.tensor([3, 0, 4, 1, 2])
    assert_close(teacher.predict_loss(IMAGES[order]), teacher.predict_loss(IMAGES)[order])
    one = mine(teacher, IMAGES, NOISE, alpha=0.5)
    other = mine(teacher, IMAGES[order], NOISE[order], alpha=0.5)
    assert torch.equal(other.mask.masked, one.mask.masked[order])


@pytest.mark.parametrize("name", list(PREDICTING_LOSSES))
def test_loss_is_the_sum_of_both_and_predicting_does_not_train_the_reconstructor(name: PredictingLossName) -> None:
    model = small_hpm(name)
    losses = model(IMAGES, random_mask(NOISE, 18))
    assert losses.reconstruction.shape == losses.predicted.shape == (5, 18)
    assert_close(losses.loss, losses.reconstruction.mean() + losses.parts["predicting_loss"])
    assert_close(losses.parts["predicting_loss"], PREDICTING_LOSSES[name](losses.predicted, losses.reconstruction))
    losses.parts["predicting_loss"].backward()
    assert all(p.grad is None for p in mae_of(model).reconstructor.parameters())
    assert all(p.grad is not None for p in model.host.encoder.parameters())  # the gradient flows into the encoder
    assert model.predictor is not None
    assert all(p.grad is not None for p in model.predictor.parameters())


@torch.no_grad()
def test_predict_loss_sees_the_whole_image_at_any_size() -> None:
    model = small_hpm()
    assert model.predict_loss(IMAGES).shape == (5, 24)
    assert model.predict_loss(torch.randn(2, 3, 32, 32)).shape == (2, 64)


def test_normalize() -> None:
    model = small_hpm()
    pixels = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    assert_close(model.normalize(pixels)[1, 2], (pixels[1, 2] / 255 - mean[2]) / std[2])


def test_a_plain_host_has_no_difficulty() -> None:
    model = HPM(small_mae(), None)
    assert not model.has_predictor
    with pytest.raises(ValueError, match="without a loss predictor"):
        model.predict_loss(IMAGES)
