import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch.testing import assert_close

from hardpatch.choices import ReconstructionLossName
from hardpatch.methods.losses import (
    RECONSTRUCTION_LOSSES,
    absolute_loss,
    pair_accuracy,
    pair_differences,
    pixel_loss,
    rank_correlation,
    relative_loss,
    standardized_absolute_loss,
    token_loss,
)


def slow_relative_loss(predicted: torch.Tensor, losses: torch.Tensor) -> float:
    """Eq. 5 to 7 of the paper, literally: all ordered pairs of masked patches of one image, without ties."""
    total, pairs = 0.0, 0
    for p, loss in zip(predicted.tolist(), losses.tolist(), strict=True):
        for i in range(len(p)):
            for j in range(len(p)):
                if loss[i] != loss[j]:
                    sigmoid = 1 / (1 + math.exp(p[j] - p[i]))
                    target = 1.0 if loss[i] > loss[j] else 0.0
                    total -= target * math.log(sigmoid + 1e-6) + (1 - target) * math.log(1 - sigmoid + 1e-6)
                    pairs += 1
    return total / max(pairs, 1)


@given(st.integers(1, 3), st.integers(1, 9), st.integers(0, 2**31), st.sampled_from([1, 8]))
def test_relative_loss_equals_a_loop_over_pairs(b: int, m: int, seed: int, decimals: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.randn(b, m, generator=generator, dtype=torch.float64)
    losses = torch.rand(b, m, generator=generator).round(decimals=decimals)  # one decimal: many ties
    assert relative_loss(predicted, losses).item() == pytest.approx(slow_relative_loss(predicted, losses), abs=1e-5)


def test_relative_loss_by_hand() -> None:
    # One untied pair a row: the harder patch is predicted 1 higher, then 2 lower.
    loss = relative_loss(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.5, 0.1], [0.5, 0.1]]))
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2, abs=1e-5)
    assert relative_loss(torch.randn(2, 5), torch.ones(2, 5)).item() == 0.0


def test_pairs_stay_within_an_image() -> None:
    predicted, losses = torch.randn(4, 6), torch.rand(4, 6)
    alone = torch.stack([relative_loss(predicted[i : i + 1], losses[i : i + 1]) for i in range(4)])
    assert_close(relative_loss(predicted, losses), alone.mean())
    assert_close(relative_loss(predicted, losses), relative_loss(predicted, losses + torch.randn(4, 1)))


@pytest.mark.parametrize("loss", [relative_loss, absolute_loss, standardized_absolute_loss])
def test_gradient_flows_into_the_prediction_and_not_into_the_target(loss: object) -> None:
    predicted = torch.randn(2, 5, requires_grad=True)
    losses = torch.rand(2, 5, requires_grad=True)
    assert callable(loss)
    loss(predicted, losses).backward()
    assert predicted.grad is not None
    assert predicted.grad.abs().sum() > 0
    assert losses.grad is None


def test_relative_loss_and_its_gradient_are_finite_for_extreme_predictions() -> None:
    predicted = torch.tensor([[300.0, -300.0, 0.0]], requires_grad=True)
    loss = relative_loss(predicted, torch.tensor([[0.0, 1.0, 0.5]]))
    loss.backward()
    assert loss.isfinite()
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()


def test_losses_are_float32_for_half_precision_inputs() -> None:
    predicted, losses = torch.randn(2, 8), torch.rand(2, 8)
    half = predicted.bfloat16()
    assert relative_loss(half, losses.bfloat16()).dtype == torch.float32
    assert pixel_loss(torch.rand(1, 2, 3).bfloat16(), torch.rand(1, 2, 3)).dtype == torch.float32
    assert_close(relative_loss(half, losses), relative_loss(half.float(), losses))


def test_absolute_losses_equal_their_formulas() -> None:
    predicted, losses = torch.randn(3, 7), torch.rand(3, 7)
    assert_close(absolute_loss(predicted, losses), ((predicted - losses) ** 2).mean())
    by_hand = torch.stack([(row - row.mean()) / (row.var() + 1e-6).sqrt() for row in losses])
    assert_close(standardized_absolute_loss(predicted, losses), ((predicted - by_hand) ** 2).mean())


def test_pixel_loss_is_a_mean_over_each_patch() -> None:
    prediction, target = torch.rand(2, 3, 5), torch.rand(2, 3, 5)
    losses = pixel_loss(prediction, target)
    assert losses.shape == (2, 3)
    assert_close(losses[1, 2], ((prediction[1, 2] - target[1, 2]) ** 2).sum() / 5)


def test_pair_accuracy_by_hand_and_by_loop() -> None:
    losses = torch.tensor([[1.0, 2.0, 3.0]])
    assert pair_accuracy(torch.tensor([[1.0, 2.0, 3.0]]), losses) == 1.0
    assert pair_accuracy(torch.tensor([[3.0, 2.0, 1.0]]), losses) == 0.0
    assert pair_accuracy(torch.tensor([[5.0, 5.0, 5.0]]), losses) == 0.5
    predicted, losses = torch.randn(3, 9), torch.rand(3, 9).round(decimals=1)
    right = pairs = 0
    for b in range(3):
        for i in range(9):
            for j in range(i):
                if losses[b, i] != losses[b, j]:
                    pairs += 1
                    right += bool((predicted[b, i] > predicted[b, j]) == (losses[b, i] > losses[b, j]))
    assert pair_accuracy(predicted, losses).item() == pytest.approx(right / pairs)


def test_rank_correlation_is_spearmans() -> None:
    predicted, losses = torch.randn(5, 40), torch.rand(5, 40)
    for row, value in enumerate(rank_correlation(predicted, losses).tolist()):
        assert value == pytest.approx(spearmanr(predicted[row].numpy(), losses[row].numpy()).statistic, abs=1e-5)


def slow_reconstruction_loss(name: str, p: list[float], t: list[float]) -> float:
    norm_p, norm_t = math.sqrt(sum(x * x for x in p)), math.sqrt(sum(x * x for x in t))
    each = [abs(a - b) for a, b in zip(p, t, strict=True)]
    return {
        "mse": sum(d * d for d in each) / len(p),
        "l1": sum(each) / len(p),
        "smooth_l1": sum(d * d / 2 if d < 1 else d - 0.5 for d in each) / len(p),
        "l2norm": sum((a / norm_p - b / norm_t) ** 2 for a, b in zip(p, t, strict=True)),
        "cosine": 1 - sum(a * b for a, b in zip(p, t, strict=True)) / norm_p / norm_t,
    }[name]


@pytest.mark.parametrize("name", list(RECONSTRUCTION_LOSSES))
@given(st.integers(1, 3), st.integers(1, 4), st.integers(2, 6), st.integers(0, 2**31))
def test_reconstruction_losses_equal_a_loop_over_patches(
    name: ReconstructionLossName, b: int, m: int, d: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    prediction, target = (2 * torch.randn(b, m, d, generator=generator) for _ in range(2))
    losses = RECONSTRUCTION_LOSSES[name](prediction.half(), target)
    assert losses.dtype == torch.float32
    assert losses.shape == (b, m)
    for i in range(b):
        for j in range(m):
            slow = slow_reconstruction_loss(name, prediction[i, j].half().tolist(), target[i, j].tolist())
            assert losses[i, j].item() == pytest.approx(slow, rel=1e-4, abs=1e-5)


def test_distance_of_unit_vectors_is_twice_the_cosine_loss() -> None:
    prediction, target = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    l2norm, cosine = (RECONSTRUCTION_LOSSES[name](prediction, target) for name in ("l2norm", "cosine"))
    assert_close(l2norm, 2 * cosine)
    assert_close(RECONSTRUCTION_LOSSES["l2norm"](3 * target, target), torch.zeros(2, 5))


def test_token_loss_by_hand() -> None:
    losses = token_loss(torch.tensor([[[0.0, 0.0], [1.0, -1.0]]]), torch.tensor([[1, 0]]))
    assert_close(losses, torch.tensor([[math.log(2), math.log(1 + math.exp(-2))]]))


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9])
def test_pair_differences_contain_each_pair_once(count: int) -> None:
    values = torch.arange(count, dtype=torch.float32).square().unsqueeze(0)
    differences = pair_differences(values)[0]  # [M, M // 2]
    expected = sorted(abs(values[0, i] - values[0, j]).item() for i in range(count) for j in range(i))
    distances = differences.abs()
    twice = distances[:, -1:] if count % 2 == 0 else distances[:, :0]
    once = distances[:, : distances.shape[1] - twice.shape[1]]
    assert sorted(once.flatten().tolist() + sorted(twice.flatten().tolist())[::2]) == expected
