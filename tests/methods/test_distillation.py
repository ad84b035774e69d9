import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from hardpatch.methods.distillation import (
    class_loss,
    cross_entropy,
    patch_loss,
    sharpen,
    teacher_temperature,
    token_entropy,
    update_center,
    usage_entropy,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# against the reference implementation


def test_three_steps_of_the_reference(golden_folder: Path) -> None:
    """Both losses, then both centers, over three steps; the file has 2 global and 4 local views of 3 images.

    In the second step one image has no masked patch.
    """
    golden = load_file(golden_folder / "ibot_loss.safetensors")
    class_centre, patch_centre = torch.zeros(1, 32), torch.zeros(1, 1, 48)

    def close(actual: Tensor, expected: Tensor) -> None:
        assert_close(actual, expected.reshape(actual.shape), rtol=1e-4, atol=1e-5)

    for step in range(3):
        tensors = {key.partition(".")[2]: value for key, value in golden.items() if key.startswith(f"step{step}.")}
        temperature = teacher_temperature(step / 2, 0.04, 0.07, warmup=1.0)
        views = torch.cat([tensors["student_cls"], tensors["student_local_cls"]]).unflatten(0, (6, 3))
        teacher = sharpen(tensors["teacher_cls"].unflatten(0, (2, 3)), class_centre, temperature)
        close(class_loss(views, teacher), tensors["loss_cls"])

        teacher = sharpen(tensors["teacher_patch"], patch_centre, temperature)
        losses = cross_entropy(tensors["student_patch"], teacher)
        close(patch_loss(losses, tensors["mask"]), tensors["loss_patch"])

        update_center(class_centre, tensors["teacher_cls"], 0.9)
        update_center(patch_centre, tensors["teacher_patch"], 0.9)
        close(class_centre, tensors["center_cls_after"])
        close(patch_centre, tensors["center_patch_after"])


# sharpening


def test_sharpen_by_hand() -> None:
    logits, center = torch.tensor([[1.0, 0.0], [3.0, 3.5]]), torch.tensor([0.5, 0.0])
    expected = torch.tensor([[1 / (1 + math.exp(-5)), 1 / (1 + math.exp(5))], [1 / (1 + math.exp(10)), 1.0]])
    assert_close(sharpen(logits, center, 0.1), expected, rtol=1e-5, atol=1e-4)


def test_sharpen_has_no_gradient_and_is_float32() -> None:
    logits = normal(2, 3, 8).bfloat16().requires_grad_()
    out = sharpen(logits, torch.zeros(8), 0.04)
    assert not out.requires_grad
    assert out.dtype == torch.float32
    assert_close(out.sum(-1), torch.ones(2, 3))


def test_extreme_logits_stay_finite() -> None:
    logits = 1e4 * normal(4, 16)
    loss = cross_entropy(logits, sharpen(-logits, torch.zeros(16), 0.04))
    assert torch.isfinite(loss).all()


# cross-entropy


def test_cross_entropy_equals_that_of_torch() -> None:
    logits, probabilities = normal(2, 3, 5, 7), normal(2, 3, 5, 7, seed=1).softmax(-1)
    expected = F.cross_entropy((logits / 0.1).reshape(-1, 7), probabilities.reshape(-1, 7), reduction="none")
    assert_close(cross_entropy(logits, probabilities), expected.reshape(2, 3, 5))


def test_cross_entropy_is_smallest_if_the_student_agrees_with_the_teacher() -> None:
    logits = normal(6, 9)
    teacher = sharpen(logits, torch.zeros(9), 0.1)
    agreed = cross_entropy(logits, teacher, temperature=0.1)
    assert_close(agreed, torch.special.entr(teacher).sum(-1), rtol=1e-5, atol=1e-6)
    assert (cross_entropy(logits + 0.1 * normal(6, 9, seed=1), teacher, temperature=0.1) > agreed).all()


def test_float32_under_autocast() -> None:
    student, teacher = normal(3, 4, 32), normal(2, 4, 32, seed=1).softmax(-1)
    mask = torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = [
            class_loss(student, teacher),
            cross_entropy(student[:2], teacher),
            sharpen(student, teacher[0, 0], 0.05),
            patch_loss(normal(2, 4, 6), mask),
            usage_entropy(teacher),
        ]
    without = [
        class_loss(student, teacher),
        cross_entropy(student[:2], teacher),
        sharpen(student, teacher[0, 0], 0.05),
        patch_loss(normal(2, 4, 6), mask),
        usage_entropy(teacher),
    ]
    for a, b in zip(under, without, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


# class tokens


@pytest.mark.parametrize(("views", "global_views"), [(2, 1), (2, 2), (3, 2), (12, 2), (3, 3)])
def test_class_loss_is_the_mean_over_pairs_of_different_views(views: int, global_views: int) -> None:
    student, teacher = normal(views, 5, 11), sharpen(normal(global_views, 5, 11, seed=1), torch.zeros(11), 0.04)
    pairs = [
        F.cross_entropy(student[v, b] / 0.1, teacher[q, b])
        for b in range(5)
        for q in range(global_views)
        for v in range(views)
        if v != q
    ]
    assert len(pairs) == 5 * global_views * (views - 1)
    assert_close(class_loss(student, teacher), torch.stack(pairs).mean(), rtol=1e-5, atol=1e-5)


def test_class_loss_moves_a_view_toward_the_other_views_only() -> None:
    """With two views, the target of each student view is the teacher's other view: the gradient is that of the pair."""
    student, teacher = normal(2, 4, 6).requires_grad_(), normal(2, 4, 6, seed=1).softmax(-1)
    (gradient,) = torch.autograd.grad(class_loss(student, teacher), student)
    # d/dz of the cross-entropy of softmax(z / T) under t is (softmax(z / T) - t) / T
    expected = ((student.detach() / 0.1).softmax(-1) - teacher.flip(0)) / 0.1 / 8
    assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((1, 4, 6), (1, 4, 6)), ((2, 4, 6), (3, 4, 6)), ((3, 4, 6), (2, 5, 6)), ((3, 4, 6), (0, 4, 6))],
)
def test_class_loss_refuses_shapes_that_do_not_match(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"student: expected logits \[V, B, K\] of at least 2 views") as caught:
        class_loss(torch.zeros(student), torch.zeros(teacher))
    assert str(list(student)) in str(caught.value)
    assert str(list(teacher)) in str(caught.value)


# patches


def test_patch_loss_by_hand() -> None:
    losses = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    mask = torch.tensor([[True, False, True], [False, True, False], [False, False, False]])
    assert patch_loss(losses, mask).item() == pytest.approx((2 + 5 + 0) / 3)


def test_patch_loss_is_a_mean_if_all_images_have_equally_many_masked_patches() -> None:
    losses, mask = normal(2, 5, 9), torch.zeros(2, 5, 9, dtype=torch.bool)
    mask.scatter_(2, normal(2, 5, 9, seed=1).argsort(-1)[..., :4], True)
    assert_close(patch_loss(losses, mask), losses[mask].mean())


def test_visible_patches_have_no_gradient() -> None:
    logits, mask = normal(4, 6, 8).requires_grad_(), torch.zeros(4, 6, dtype=torch.bool)
    mask[:3, :2] = True  # the last image has no masked patch
    patch_loss(cross_entropy(logits, normal(4, 6, 8, seed=1).softmax(-1)), mask).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert torch.equal(logits.grad.abs().sum(-1) > 0, mask)


# centers


@pytest.mark.parametrize("shape", [(8,), (1, 8), (1, 1, 8)])
def test_center_moves_toward_the_mean_in_place(shape: tuple[int, ...]) -> None:
    center, logits = normal(*shape), normal(2, 5, 7, 8, seed=1)
    expected = 0.9 * center + 0.1 * logits.mean((0, 1, 2))
    address = center.data_ptr()
    update_center(center, logits, 0.9)
    assert center.data_ptr() == address
    assert_close(center, expected)


def test_center_converges_to_constant_logits() -> None:
    center, logits = torch.zeros(8), normal(4, 8).requires_grad_()
    for _ in range(200):
        update_center(center, logits)
    assert not center.requires_grad
    assert_close(center, logits.detach().mean(0))


def test_centering_undoes_a_constant_preference() -> None:
    """Without the center, a bias toward one prototype decides every image; with the center it has no effect."""
    logits = normal(4000, 8)
    biased = logits + 5 * F.one_hot(torch.tensor(3), 8)
    center = biased.mean(0)
    assert sharpen(biased, torch.zeros(8), 0.04).mean(0)[3] > 0.95
    assert_close(sharpen(biased, center, 0.04), sharpen(logits, logits.mean(0), 0.04), rtol=0, atol=1e-3)


# temperature


def test_teacher_temperature_by_hand() -> None:
    temperatures = [teacher_temperature(progress, 0.04, 0.07, 0.3) for progress in (0, 0.1, 0.15, 0.3, 0.31, 1)]
    assert temperatures == pytest.approx([0.04, 0.05, 0.055, 0.07, 0.07, 0.07])
    assert teacher_temperature(0.0, 0.04, 0.07, 0.0) == 0.07


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 1), st.floats(0.01, 1))
def test_teacher_temperature_stays_between_start_and_end(
    progress: float, warmup: float, start: float, end: float
) -> None:
    value = teacher_temperature(progress, start, end, warmup)
    assert min(start, end) - 1e-9 <= value <= max(start, end) + 1e-9


# usage entropy


def test_usage_entropy_of_extremes() -> None:
    uniform, one = torch.full((4, 3, 16), 1 / 16), F.one_hot(torch.full((4, 3), 5), 16).float()
    assert usage_entropy(uniform).item() == pytest.approx(1)
    assert usage_entropy(one).item() == 0
    assert usage_entropy(torch.eye(16)).item() == pytest.approx(1)  # each token is certain, all prototypes are used
    assert usage_entropy(torch.eye(16)[:4]).item() == pytest.approx(0.5)  # log 4 / log 16
    assert usage_entropy(torch.tensor([[0.75, 0.25]])).item() == pytest.approx(
        -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    )
    assert usage_entropy(torch.ones(3, 1)).item() == 0


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(10, 40))
def test_token_entropy_is_usage_entropy_of_one_hot(tokens: list[int], vocabulary: int) -> None:
    entropy = token_entropy(torch.tensor(tokens, dtype=torch.int64), vocabulary).item()
    if not tokens:
        assert entropy == 0
        return
    one_hot = F.one_hot(torch.tensor(tokens), vocabulary).float()
    assert entropy == pytest.approx(usage_entropy(one_hot).item(), abs=1e-5)
    assert -1e-6 <= entropy <= 1 + 1e-6


def test_token_entropy_by_hand() -> None:
    assert token_entropy(torch.arange(64).reshape(4, 16), 64).item() == pytest.approx(1)
    assert token_entropy(torch.tensor([[7, 7], [3, 3]]), 16).item() == pytest.approx(0.25)
