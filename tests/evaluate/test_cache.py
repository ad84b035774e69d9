"""Features that were kept are the features that would be computed, and never those of anything else."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from hardpatch.evaluate.cache import KEY
from hardpatch.measure import labels as labeled
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
def found(model: HPM, images: Path, tmp_path: Path) -> Callable[..., LabeledFeatures]:
    def compute(model: HPM = model, cache: bool = True, **more: str) -> LabeledFeatures:
        folder = tmp_path / "features" if cache else None
        return labeled_features(model, images, images, device="cpu", workers=0, cache=folder, **more)  # type: ignore[arg-type]

    return compute


def same(one: LabeledFeatures, other: LabeledFeatures) -> bool:
    return all(
        torch.equal(a.features, b.features) and torch.equal(a.labels, b.labels) and torch.equal(a.indices, b.indices)
        for a, b in ((one.train, other.train), (one.val, other.val))
    )


def test_cached_and_fresh_features_are_equal(
    found: Callable[..., LabeledFeatures], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh, first = found(cache=False), found()
    assert same(fresh, first)
    files = list((tmp_path / "features").iterdir())
    assert len(files) == 1  # both sets are the same images
    with safe_open(files[0], "pt") as file:
        assert '"images": 8' in file.metadata()[KEY]

    def never(*arguments: object, **more: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(labeled, "extract", never)
    assert same(fresh, found())


def test_whatever_changes_makes_other_features(
    found: Callable[..., LabeledFeatures], model: HPM, images: Path, tmp_path: Path
) -> None:
    first = found()
    assert not same(first, found(pool="class"))
    assert not same(first, found(model=small_hpm(seed=5).eval()))
    with torch.no_grad():
        next(model.host.encoder.parameters()).add_(0.01)
    assert not same(first, found())
    assert len(list((tmp_path / "features").iterdir())) == 4
    changed = sorted(images.rglob("*.jpg"))[0]
    os.utime(changed, ns=(0, 0))
    found()
    assert len(list((tmp_path / "features").iterdir())) == 5


def test_a_broken_file_is_computed_anew(found: Callable[..., LabeledFeatures], tmp_path: Path) -> None:
    first = found()
    (file,) = (tmp_path / "features").iterdir()
    beginning = file.read_bytes()[:100]
    file.unlink()  # not in place: what was read from it still lies in it
    file.write_bytes(beginning)
    assert same(first, found())
    assert same(first, found())


def test_where_nothing_can_be_written_nothing_is_kept(
    found: Callable[..., LabeledFeatures],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("hardpatch"), "propagate", True)  # the command line turns it off
    fresh = found(cache=False)
    (tmp_path / "features").write_text("in the way")
    assert same(fresh, found())
    assert "features are not kept" in caplog.text
