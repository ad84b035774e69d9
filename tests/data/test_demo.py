import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from hardpatch.data import demo
from hardpatch.data.demo import DemoSource, demo_source
from hardpatch.data.reading import GRAY as GRAYSCALE


@pytest.fixture(scope="module", params=["train", "test"])
def half(request: pytest.FixtureRequest) -> DemoSource:
    return demo_source(request.param)


def images_of(source: DemoSource) -> np.ndarray:
    return np.stack([source.image(i) for i in range(len(source))])


def masks_of(source: DemoSource) -> np.ndarray:
    return np.stack([source.mask(i) for i in range(len(source))])


def labels_of(source: DemoSource) -> np.ndarray:
    return np.array([source.label(i) for i in range(len(source))])


def test_sizes_and_types(half: DemoSource) -> None:
    assert len(half) == demo.IMAGES[half.split]
    assert half.classes == tuple("0123456789")
    assert half.skipped == ()
    assert half.image(3).shape == (32, 32, 3)
    assert half.image(3, GRAYSCALE).shape == (32, 32, 1)
    assert half.image(3, GRAYSCALE).dtype == np.uint8
    assert half.name(3) == f"demo:{half.split}/00003"


def test_classes_are_balanced(half: DemoSource) -> None:
    counts = np.bincount(labels_of(half), minlength=10)
    assert counts.min() > 0.08 * len(half)


def test_digit_has_the_size_of_an_object_and_varies_in_position(half: DemoSource) -> None:
    masks = masks_of(half)
    share = masks.mean((1, 2))
    assert 0.05 < share.min() < share.max() < 0.35
    assert 0.1 < share.mean() < 0.25
    rows, columns = np.mgrid[:32, :32]
    for axis in (rows, columns):
        center = (masks * axis).sum((1, 2)) / masks.sum((1, 2))
        assert center.std() > 1
        assert abs(center.mean() - 15.5) < 1


def test_mask_outlines_an_object_of_another_color(half: DemoSource) -> None:
    images, masks = images_of(half) / 255, masks_of(half)[..., None]
    inside = (images * masks).sum((1, 2)) / masks.sum((1, 2))
    outside = (images * ~masks).sum((1, 2)) / (~masks).sum((1, 2))
    distance = np.linalg.norm(inside - outside, axis=1)
    assert np.quantile(distance, 0.05) > 0.4


def test_masks_are_the_digits() -> None:
    """A nearest-neighbor classifier of masks, scaled to a common box, recognizes most test digits."""

    def boxed(masks: np.ndarray) -> np.ndarray:
        out = np.empty((len(masks), 64))
        for k, mask in enumerate(masks):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            y = np.linspace(rows[0], rows[-1], 8).round().astype(int)
            x = np.linspace(columns[0], columns[-1], 8).round().astype(int)
            out[k] = mask[np.ix_(y, x)].reshape(-1)
        return out

    train, test = demo_source("train"), demo_source("test")
    a, b = boxed(masks_of(train)[:2000]), boxed(masks_of(test)[:300])
    nearest = np.argmin(((b[:, None] - a[None]) ** 2).sum(2), axis=1)
    assert np.mean(labels_of(train)[nearest] == labels_of(test)[:300]) > 0.75


def test_object_patches_vary_more_than_the_background(half: DemoSource) -> None:
    """Predicted difficulty is compared with the mask: within an image, patches on the object have a larger spread."""
    n = 300
    patches = images_of(half)[:n].reshape(n, 8, 4, 8, 4, 3).swapaxes(2, 3).reshape(n, 64, 16, 3) / 255
    spread = patches.std(2).mean(2)
    on_object = masks_of(half)[:n].reshape(n, 8, 4, 8, 4).mean((2, 4)).reshape(n, 64) > 0.25
    aucs = [np.mean(values[hit][:, None] > values[~hit][None]) for values, hit in zip(spread, on_object, strict=True)]
    assert np.mean(aucs) > 0.8


def test_halves_share_no_drawing_and_no_region() -> None:
    train, test = (demo._drawings(split) for split in ("train", "test"))
    assert len(train[0]) + len(test[0]) == 1797
    assert not {ink.tobytes() for ink in train[0]} & {ink.tobytes() for ink in test[0]}
    for left, right in zip(demo._photographs("train"), demo._photographs("test"), strict=True):
        assert left.shape[0] == right.shape[0]
        assert left.shape[1] + right.shape[1] <= demo.PHOTOGRAPH_SIDE
        assert min(right.shape[:2]) > 3 * demo.SIZE, "room for crops of varied scale"


def test_drawings_equal_load_digits() -> None:
    bunch = load_digits()
    images, target = (np.concatenate(parts) for parts in zip(*map(demo._drawings, demo.IMAGES), strict=True))
    order = np.argsort(np.arange(1797) % demo.TEST_DIGIT_EVERY == demo.TEST_DIGIT_EVERY - 1, kind="stable")
    assert np.array_equal(images * 16, bunch.images[order])
    assert np.array_equal(target, bunch.target[order])


def test_built_once_and_reproducible() -> None:
    source = demo_source("test")
    assert demo_source("test") is source
    rebuilt = demo_source.__wrapped__("test")
    assert np.array_equal(images_of(source), images_of(rebuilt))
    assert np.array_equal(masks_of(source), masks_of(rebuilt))


def test_image_is_a_copy() -> None:
    source = demo_source("test")
    before = source.image(0)
    source.image(0)[:] = 0
    assert np.array_equal(source.image(0), before)


def test_files_of_other_packages_are_read_without_importing_them() -> None:
    code = (
        "import sys; from hardpatch.data import demo; demo._photographs('test'); demo._drawings('test'); "
        "print(sorted({'sklearn', 'skimage', 'pooch', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
