"""Augmentation of fine-tuning, against timm's and values computed by hand."""

import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hardpatch.data.augment import TrainTransform
from hardpatch.data.reading import Reading
from hardpatch.finetune.augment import FinetuneTransform, Mixer, seeded


def mixer(**overrides: float) -> Mixer:
    settings = {"mixup": 0.8, "cutmix": 1.0, "probability": 1.0, "smoothing": 0.1, **overrides}
    return Mixer(4, seed=3, **settings)


def picture(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (40, 50, channels), dtype=np.uint8)


def transform(channels: int = 3, magnitude: float = 0.0, erase: float = 0.0) -> FinetuneTransform:
    mean, std = (0.5,) * channels, (0.25,) * channels
    return FinetuneTransform((24, 32), Reading(channels), mean=mean, std=std, magnitude=magnitude, erase=erase)


def test_label_smoothing_by_hand() -> None:
    _, targets = mixer(mixup=0, cutmix=0)(torch.zeros(2, 1, 2, 2), torch.tensor([1, 3]), 0)
    assert torch.allclose(
        targets, torch.tensor([[0.025, 0.925, 0.025, 0.025], [0.025, 0.025, 0.025, 0.925]])
    )  # 0.1 over four classes
    scores = torch.tensor([[1.0, 2.0, 0.0, -1.0], [0.5, 0.0, 0.0, 0.0]])
    by_hand = 0.0
    for row, label in zip(scores.tolist(), (1, 3), strict=True):
        total = math.log(sum(map(math.exp, row)))
        by_hand += sum((0.925 if k == label else 0.025) * (total - row[k]) for k in range(4)) / 2
    assert F.cross_entropy(scores, targets).item() == pytest.approx(by_hand, rel=1e-5)
    expected = F.cross_entropy(scores, torch.tensor([1, 3]), label_smoothing=0.1)
    assert F.cross_entropy(scores, targets).item() == pytest.approx(expected.item(), rel=1e-5)


@given(
    step=st.integers(0, 10**6),
    alphas=st.sampled_from([(0.8, 1.0), (0.8, 0.0), (0.0, 1.0), (0.0, 0.0)]),
    smoothing=st.sampled_from([0.0, 0.1]),
    probability=st.sampled_from([0.5, 1.0]),
)
def test_targets_sum_to_one_and_equal_the_shares_of_the_classes(
    step: int, alphas: tuple[float, float], smoothing: float, probability: float
) -> None:
    labels = torch.tensor([0, 1, 2, 3, 1, 0])
    images = labels.float().view(6, 1, 1, 1).expand(6, 3, 8, 8).clone()
    mix = mixer(mixup=alphas[0], cutmix=alphas[1], probability=probability, smoothing=smoothing)
    mixed, targets = mix(images.clone(), labels, step)
    assert torch.allclose(targets.sum(dim=1), torch.ones(6))
    assert targets.min() >= 0
    if smoothing == 0:  # a pixel is the number of its class, so the target determines the mean of the pixels
        assert torch.allclose(mixed.mean(dim=(1, 2, 3)), targets @ torch.arange(4.0), atol=1e-5)
    again, same = mix(images.clone(), labels, step)
    assert torch.equal(mixed, again)
    assert torch.equal(targets, same)


def test_batches_are_mixed_in_both_ways_and_not_always() -> None:
    labels = torch.arange(4)
    images = labels.float().view(4, 1, 1, 1).expand(4, 1, 16, 16)
    kinds = {"neither": 0, "mixup": 0, "cutmix": 0}
    mix = mixer(probability=0.5)
    for step in range(400):
        mixed, _ = mix(images.clone(), labels, step)
        if torch.equal(mixed, images):
            kinds["neither"] += 1
        else:
            kinds["cutmix" if (mixed == mixed.round()).all() else "mixup"] += 1
    # 200, 100, 100 are expected, some of the cuts being empty
    assert 170 <= kinds["neither"] <= 240
    assert 70 <= kinds["mixup"] <= 130
    assert 70 <= kinds["cutmix"] <= 130


def states() -> tuple[object, list[int]]:
    return random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()  # noqa: NPY002


def test_seeds_leave_the_global_generators_alone() -> None:
    before = states()
    with seeded(1, 2):
        first = random.random(), np.random.rand()  # noqa: NPY002
    with seeded(1, 2):
        assert first == (random.random(), np.random.rand())  # noqa: NPY002
    with seeded(2, 1):
        assert first[0] != random.random()
    mixer()(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]), 5)
    transform(magnitude=9.0)(picture(), np.random.default_rng(0))
    assert states() == before


@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_depends_on_the_generator_alone(channels: int) -> None:
    augment = transform(channels, magnitude=9.0, erase=0.5)
    plain = TrainTransform((24, 32), Reading(channels))
    changed = 0
    for seed in range(200):
        out = augment(picture(channels), np.random.default_rng(seed))
        assert out.shape == (channels, 24, 32)
        assert out.dtype == torch.uint8
        assert torch.equal(out, augment(picture(channels), np.random.default_rng(seed)))
        crop = plain(picture(channels), np.random.default_rng(seed))
        assert torch.equal(crop, transform(channels)(picture(channels), np.random.default_rng(seed)))
        changed += not torch.equal(out, crop)
    assert changed > 100


def test_rand_augment_is_that_of_timm() -> None:
    from PIL import Image
    from timm.data.auto_augment import rand_augment_transform

    hparams = {"img_mean": (128, 128, 128), "magnitude_max": 9.99, "interpolation": Image.Resampling.BICUBIC}
    theirs = rand_augment_transform("rand-m9-mstd0.5-inc1", hparams)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        crop = transform()(picture(), np.random.default_rng(seed))
        TrainTransform((24, 32))(picture(), rng)
        with seeded(int(rng.integers(2**32))):
            expected = np.array(theirs(Image.fromarray(crop.permute(1, 2, 0).numpy())))
        augmented = transform(magnitude=9.0)(picture(), np.random.default_rng(seed))
        assert np.array_equal(augmented.permute(1, 2, 0).numpy(), expected)


def test_erasing_makes_a_rectangle_of_noise() -> None:
    gray = np.full((64, 64, 3), 60, dtype=np.uint8)
    erase = FinetuneTransform((64, 64), scale=(1.0, 1.0), ratio=(1.0, 1.0), erase=0.25)
    always = FinetuneTransform((64, 64), scale=(1.0, 1.0), ratio=(1.0, 1.0), erase=1.0)
    erased, values = 0, []
    for seed in range(400):
        erased += bool((erase(gray, np.random.default_rng(seed)) != 60).any())
        changed = always(gray, np.random.default_rng(seed)) != 60
        rows, columns = changed.any(dim=0).any(dim=1).nonzero(), changed.any(dim=0).any(dim=0).nonzero()
        inside = changed[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert inside.float().mean() > 0.9  # a pixel of noise can be 60, too
        assert changed.sum() == inside.sum()
        height, width = inside.shape[1:]
        assert 0.015 < height * width / 64**2 < 0.36
        assert 0.25 < height / width < 4.0
        values.append(always(gray, np.random.default_rng(seed))[changed].float())
    assert 75 <= erased <= 125
    noise = torch.cat(values)
    assert noise.mean().item() == pytest.approx(127.5, abs=2)  # the mean and deviation of the normalization
    assert noise.std().item() == pytest.approx(0.25 * 255, rel=0.06)  # a little less: black and white cut it off
