from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hardpatch.data.batch import Batch
from hardpatch.data.reading import RGB as RGB_READING
from hardpatch.data.reading import Reading
from hardpatch.data.sources import Source
from hardpatch.errors import UserError
from hardpatch.measure.features import align_labels, extract
from hardpatch.methods.hpm import HPM


class Doubling(nn.Module):
    """Encoder whose class token is minus the image's mean and whose two patch tokens are rows of the first channel."""

    def normalize(self, images: Tensor) -> Tensor:
        return images.float() * 2

    def encode(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        assert mask is None
        return torch.cat([-images.mean(dim=(1, 2, 3)).view(-1, 1, 1).expand(-1, 1, 2), images[:, 0]], dim=1)


MODEL = cast(HPM, Doubling())
IMAGES = torch.tensor([[[[1, 2], [3, 6]]], [[[0, 0], [4, 8]]], [[[1, 1], [1, 1]]]], dtype=torch.uint8)
BATCHES = [
    Batch(IMAGES[:2], torch.tensor([0, 1]), torch.tensor([1, 0]), ["broken.png: why"]),
    Batch(IMAGES[2:], torch.tensor([3]), torch.tensor([-1]), []),
]


def test_mean_of_the_patch_tokens() -> None:
    result = extract(MODEL, BATCHES, device="cpu", pool="mean")
    assert result.features.tolist() == [[4, 8], [4, 8], [2, 2]]
    assert result.labels.tolist() == [1, 0, -1]
    assert result.bad == ["broken.png: why"]


def test_class_token() -> None:
    assert extract(MODEL, BATCHES, device="cpu", pool="class").features.tolist() == [[-6, -6], [-6, -6], [-2, -2]]


def test_features_are_plain_float32_tensors_without_gradient() -> None:
    features = extract(MODEL, BATCHES, device="cpu", autocast=torch.bfloat16).features
    assert features.dtype == torch.float32
    assert not features.requires_grad


def test_progress_counts_broken_images_too() -> None:
    calls: list[tuple[int, int | None]] = []
    extract(MODEL, BATCHES, device="cpu", total=4, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(3, 4), (4, 4)]


def test_features_that_are_not_finite_are_an_error() -> None:
    class Diverged(Doubling):
        def encode(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
            return super().encode(images) * torch.nan

    with pytest.raises(UserError, match=r"^model: expected finite features, got NaN"):
        extract(cast(HPM, Diverged()), BATCHES, device="cpu")


class Labels:
    """Source that has labels and no images."""

    skipped = ()

    def __init__(self, labels: Sequence[int | None], classes: tuple[str, ...] | None) -> None:
        self.labels, self.classes = labels, classes

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        return str(i)

    def image(self, i: int, reading: Reading = RGB_READING) -> np.ndarray:
        return np.zeros((2, 2, reading.number), dtype=np.uint8)

    def encoded(self, i: int) -> None:
        return None

    def label(self, i: int) -> int | None:
        return self.labels[i]


def labels(values: Sequence[int | None], classes: tuple[str, ...] | None = None) -> Source:
    return Labels(values, classes)


def test_labels_are_matched_by_name() -> None:
    train = labels([0, 1, 2], ("ant", "bee", "cat"))
    val = labels([0, 1, 1], ("bee", "cat"))
    classes, mapping = align_labels(train, val)
    assert classes == ("ant", "bee", "cat")
    assert mapping[torch.tensor([0, 1, 1])].tolist() == [1, 2, 2]


def test_a_class_without_images_may_be_missing() -> None:
    _, mapping = align_labels(labels([0, 1], ("ant", "bee")), labels([1], ("never seen", "ant")))
    assert mapping.tolist() == [-1, 0]


def test_a_class_that_train_lacks_is_named() -> None:
    with pytest.raises(
        UserError, match=r"^val: expected only classes that train has \('ant', 'wasp'\), got 'bee': remove"
    ):
        # train lists bees but has none
        align_labels(labels([0, 0, 2], ("ant", "bee", "wasp")), labels([0, 1], ("ant", "bee")))


@pytest.mark.parametrize(("values", "got"), [([None, None], "got images without"), ([0, None], "got some without")])
def test_missing_labels_explain_where_labels_come_from(values: list[int | None], got: str) -> None:
    with pytest.raises(
        UserError, match=f"^train: expected a label for every image, {got}; .*folder per class.*'label'"
    ):
        align_labels(labels(values, ("ant",)), labels([0], ("ant",)))
    with pytest.raises(UserError, match=r"^val: expected a label"):
        align_labels(labels([0], ("ant",)), labels(values, ("ant",)))
