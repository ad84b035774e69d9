"""SimMIM, BEiT and iBOT, alone and with hard patches mining."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from hardpatch.methods.base import Targets, Views
from hardpatch.methods.distillation import sharpen
from hardpatch.methods.hpm import HPM, HardPatchesMining
from hardpatch.methods.ibot import TEACHER_TEMPERATURES
from hardpatch.methods.masking import random_mask
from hardpatch.methods.mining import Masking, MinedMask
from hardpatch.methods.teacher import Teacher
from hardpatch.patches import gather, patchify, to_indices
from tests.small import small_beit, small_hpm, small_ibot, small_predictor, small_simmim

IMAGES = torch.randn(5, 3, 16, 24, generator=torch.Generator().manual_seed(1))
NOISE = torch.rand(5, 24, generator=torch.Generator().manual_seed(2))
MASK = to_indices(random_mask(NOISE, 14))
HOSTS: dict[str, Callable[[], Any]] = {"simmim": small_simmim, "beit": small_beit, "ibot": small_ibot}


def mine(teacher: Teacher | None, noise: Tensor, mask_ratio: float, alpha: float, **masking: Any) -> MinedMask:
    """Mask images with 4 x 6 patches by difficulty and attention from a teacher."""
    step, options = HardPatchesMining(None, teacher, Masking((4, 6), **masking)), {}
    if teacher is not None:
        output = teacher(IMAGES, difficulty=alpha > 0, attention=step.masking.uses_attention)
        options = {"difficulty": output.difficulty, "attention": output.attention}
    return step.masking.mine_mask(noise, mask_ratio=mask_ratio, alpha=alpha, **options)


def target_for(host: Any) -> Targets | None:
    generator = torch.Generator().manual_seed(3)
    patches = {
        "SimMIM": None,
        "BEiT": torch.randint(11, (5, 14), generator=generator),
        "IBOT": torch.rand(5, 14, 11, generator=generator).softmax(dim=-1),
    }[type(host).__name__]
    return None if patches is None else Targets(patches)


@torch.no_grad()
def test_simmim_loss_by_hand() -> None:
    host = small_simmim().eval()
    losses = HPM(host, None)(IMAGES, MASK)
    latent = host.encoder(IMAGES, MASK)
    for image in range(5):
        for position, patch in enumerate(MASK.masked[image].tolist()):
            predicted = host.head.weight @ latent[image, 1 + patch] + host.head.bias
            error = (predicted - patchify(IMAGES, 4)[image, patch]).abs().mean()
            assert_close(losses.reconstruction[image, position], error)


@torch.no_grad()
def test_beit_loss_by_hand() -> None:
    host, tokens = small_beit().eval(), torch.randint(11, (5, 24))
    losses = HPM(host, None)(IMAGES, MASK, Targets(tokens.gather(1, MASK.masked)), observe=True)
    logits = host.head(host.encoder(IMAGES, MASK)[:, 1:]).log_softmax(dim=-1)
    for image in range(5):
        for position, patch in enumerate(MASK.masked[image].tolist()):
            assert_close(losses.reconstruction[image, position], -logits[image, patch, tokens[image, patch]])
    assert set(losses.token_metrics) == {"token_entropy", "target_entropy"}


@pytest.mark.parametrize("name", HOSTS)
def test_without_predictor_hpm_is_the_host_bit_for_bit(name: str) -> None:
    host, other = HOSTS[name](), HOSTS[name]()
    target = target_for(host)
    losses = HPM(host, None)(IMAGES, MASK, target)
    losses.loss.backward()
    patches = gather(other.target(IMAGES), MASK.masked) if target is None else target.patches
    loss = other.reconstruction_loss(HPM(other, None).reconstruct(other.encode(IMAGES, MASK), MASK), patches).mean()
    loss.backward()
    assert torch.equal(losses.loss, loss)
    for one, two in zip(host.parameters(), other.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None)
        assert one.grad is None or torch.equal(one.grad, two.grad)


@pytest.mark.parametrize("name", HOSTS)
def test_the_predicting_loss_trains_the_encoder_but_not_the_head(name: str) -> None:
    model = HPM(HOSTS[name](), small_predictor())
    losses = model(IMAGES, MASK, target_for(model.host))
    assert losses.predicted.shape == losses.reconstruction.shape == (5, 14)
    losses.parts["predicting_loss"].backward()
    has_gradient = {name: parameter.grad is not None for name, parameter in model.named_parameters()}
    assert all(value != name.startswith("host.head.") for name, value in has_gradient.items()), has_gradient


@pytest.mark.parametrize("name", HOSTS)
def test_the_teacher_scores_whole_images(name: str) -> None:
    model = HPM(HOSTS[name](), small_predictor())
    teacher = Teacher(model)
    assert teacher.predict_loss(IMAGES).shape == (5, 24)
    assert (teacher.network.host.head is None) == (name != "ibot")  # iBOT's teacher needs its head
    result = mine(teacher, NOISE, 0.6, alpha=1.0)
    order = teacher.predict_loss(IMAGES).argsort(dim=1, descending=True)
    assert torch.equal(result.mask.masked, order[:, :15].sort(dim=1).values)


def test_units_are_masked_whole_by_their_mean_difficulty() -> None:
    teacher = Teacher(HPM(small_simmim(), small_predictor()))
    result = mine(teacher, NOISE, 0.5, alpha=1.0, unit=2)
    difficulty = teacher.predict_loss(IMAGES)
    for image in range(5):
        units = {
            (row, column): sum(difficulty[image, 6 * (2 * row + i) + 2 * column + j] for i in (0, 1) for j in (0, 1))
            for row in range(2)
            for column in range(3)
        }
        hardest = sorted(units, key=lambda unit: units[unit], reverse=True)[:3]
        expected = {6 * (2 * r + i) + 2 * c + j for r, c in hardest for i in (0, 1) for j in (0, 1)}
        assert set(result.mask.masked[image].tolist()) == expected


def test_secondary_masking_hides_a_share_of_the_visible_patches() -> None:
    noise = torch.rand(5, 48, generator=torch.Generator().manual_seed(4))
    assert Masking((4, 6), "grid", secondary_ratio=0.5).noise_count == 48
    result = mine(None, noise, 0.75, alpha=0.0, strategy="grid", secondary_ratio=0.5)
    assert result.mask.hidden is not None
    assert result.mask.hidden.shape == (5, 6)
    assert result.mask.hidden.sum(dim=1).tolist() == [3] * 5


def test_attention_high_masks_the_most_attended_patches() -> None:
    teacher = Teacher(small_hpm())
    result = mine(teacher, NOISE, 0.75, alpha=0.0, strategy="attention_high")
    with torch.no_grad():
        order = teacher.network.host.encoder.forward_with_attention(IMAGES)[1].argsort(dim=1, descending=True)
    assert torch.equal(result.mask.masked, order[:, :18].sort(dim=1).values)
    assert result.mined is None


def slow_class_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """DINO's loss: all pairs of a global view of the teacher and another view of the student."""
    pairs = [
        -(teacher[g] * (student[v] / 0.1).log_softmax(dim=-1)).sum(dim=-1).mean()
        for g in range(len(teacher))
        for v in range(len(student))
        if v != g
    ]
    return torch.stack(pairs).mean()


def test_ibot_sorts_the_views() -> None:
    """Global crops may come in any order and only some are masked; the loss is that of the sorted views."""
    host = small_ibot().eval()
    model = HPM(host, None)
    teacher = Teacher(model)
    crops, local = torch.randn(6, 3, 16, 24), torch.randn(6, 3, 8, 8)  # 3 images, 2 views each
    order = torch.tensor([4, 0, 3, 5, 1, 2])
    mask = to_indices(random_mask(torch.rand(3, 24), 6))
    output = teacher(crops[order], difficulty=False)
    ibot = teacher.network.host
    patch_center, class_center = ibot.patch_centre.clone(), ibot.class_centre.clone()
    progress, temperature = 0.03, TEACHER_TEMPERATURES[0] + 0.4 * (TEACHER_TEMPERATURES[1] - TEACHER_TEMPERATURES[0])
    without_update = ibot.teacher_targets(output, mask, progress, update=False)
    assert torch.equal(ibot.patch_centre, patch_center)
    targets = ibot.teacher_targets(output, mask, progress)
    assert torch.equal(targets.patches, without_update.patches)
    with torch.no_grad():
        latent = host.encode(crops)
        logits = host.head(latent[:, 0])
        assert_close(targets.images, sharpen(logits, class_center, temperature)[order])
        patches = host.head(latent[:, 1:])
        assert_close(targets.patches, sharpen(gather(patches[order][:3], mask.masked), patch_center, temperature))
        assert_close(ibot.class_centre, 0.1 * logits.mean(0, keepdim=True))
        assert_close(ibot.patch_centre, 0.1 * patches.mean((0, 1), keepdim=True))

        losses = model(crops[order], mask, targets, Views(local, order.argsort()))
        masked = torch.cat([host.encode(crops[order][:3], mask), host.encode(crops[order][3:])])[order.argsort()]
        student = host.head(torch.cat([masked[:, 0], host.encode(local)[:, 0]]))
        slow = slow_class_loss(
            student.unflatten(0, (4, 3)), sharpen(logits, class_center, temperature).unflatten(0, (2, 3))
        )
    assert_close(losses.parts["class_loss"], slow)
    assert losses.reconstruction.shape == (3, 6)
    assert_close(losses.loss, losses.reconstruction.sum() / 6 / 6 + slow)  # six crops, three of them unmasked


def test_hosts_without_a_target_of_their_own_say_so() -> None:
    for host in (small_beit(), small_ibot()):
        with pytest.raises(ValueError, match="target"):
            host.target(IMAGES)
