"""Cached features equal computed ones, and are never those of other weights, images or settings."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from hardpatch.measure import labels
from hardpatch.measure.cache import KEY
from hardpatch.measure.labels import LabeledFeatures, labeled_features
from hardpatch.methods.hpm import HPM
from tests.end_to_end.conftest import write_images
from tests.small import small_hpm


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", each=4)


@pytest.fixture
def model() -> HPM:
    return small_hpm().eval()


@pytest.fixture
def extracted(model: HPM, images: Path, tmp_path: Path) -> Callable[..., LabeledFeatures]:
    def compute(model: HPM = model, cache: bool = True, **options: str) -> LabeledFeatures:
        folder = tmp_path / "features" if cache else None
        return labeled_features(model, images, images, device="cpu", workers=0, cache=folder, **options)  # type: ignore[arg-type]

    return compute


def equal(one: LabeledFeatures, other: LabeledFeatures) -> bool:
    return all(
        torch.equal(a.features, b.features) and torch.equal(a.labels, b.labels) and torch.equal(a.indices, b.indices)
        for a, b in ((one.train, other.train), (one.val, other.val))
    )


def test_cached_and_fresh_features_are_equal(
    extracted: Callable[..., LabeledFeatures], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh, first = extracted(cache=False), extracted()
    assert equal(fresh, first)
    files = list((tmp_path / "features").iterdir())
    assert len(files) == 1  # both sets are the same images
    with safe_open(files[0], "pt") as file:
        assert '"images": 8' in file.metadata()[KEY]

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("extracted again")

    monkeypatch.setattr(labels, "extract", never)
    assert equal(fresh, extracted())


def test_any_change_leads_to_other_features(
    extracted: Callable[..., LabeledFeatures], model: HPM, images: Path, tmp_path: Path
) -> None:
    first = extracted()
    assert not equal(first, extracted(pool="class"))
    assert not equal(first, extracted(model=small_hpm(seed=5).eval()))
    with torch.no_grad():
        next(model.host.encoder.parameters()).add_(0.01)
    assert not equal(first, extracted())
    assert len(list((tmp_path / "features").iterdir())) == 4
    changed = sorted(images.rglob("*.jpg"))[0]
    os.utime(changed, ns=(0, 0))
    extracted()
    assert len(list((tmp_path / "features").iterdir())) == 5


def test_features_of_a_broken_file_are_extracted_again(
    extracted: Callable[..., LabeledFeatures], tmp_path: Path
) -> None:
    first = extracted()
    (file,) = (tmp_path / "features").iterdir()
    beginning = file.read_bytes()[:100]
    file.unlink()  # instead of overwriting it: earlier features are still mapped from it
    file.write_bytes(beginning)
    assert equal(first, extracted())
    assert equal(first, extracted())


def test_without_write_permission_nothing_is_cached(
    extracted: Callable[..., LabeledFeatures],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("hardpatch"), "propagate", True)  # the command line turns it off
    fresh = extracted(cache=False)
    (tmp_path / "features").write_text("in the way")
    assert equal(fresh, extracted())
    assert "features are not cached" in caplog.text
