"""Cached features equal computed ones, and are never those of other weights, images or settings."""

import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open

from hardpatch.data.columns import Columns
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


def rewritten(path: Path, content: bytes) -> None:
    """Write a file of the same size in place, and put its time of modification back."""
    before = os.stat(path)
    assert len(content) == before.st_size
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("kind", ["parquet", "zip", "csv"])
def test_containers_that_are_rewritten_in_place_are_noticed(
    kind: str, images: Path, model: HPM, tmp_path: Path
) -> None:
    pictures = sorted(images.rglob("*.jpg"))
    container = tmp_path / f"set.{kind}"
    if kind == "parquet":
        rows = [{"bytes": path.read_bytes(), "path": None} for path in pictures]
        labels_of = [int(path.parent.name[-1]) for path in pictures]
        pq.write_table(pa.table({"image": rows, "label": labels_of}), container, compression="none")
    elif kind == "zip":
        with zipfile.ZipFile(container, "w") as archive:
            for path in pictures:
                archive.write(path, path.relative_to(images))
    else:
        container.write_text("".join(f"{path},{path.parent.name}\n" for path in pictures))

    def compute() -> int:
        labeled_features(model, container, container, device="cpu", workers=0, cache=tmp_path / "features")
        return len(list((tmp_path / "features").iterdir()))

    assert [compute(), compute()] == [1, 1]
    rewritten(container, container.read_bytes())
    assert compute() == 2
    if kind == "csv":
        rewritten(pictures[0], pictures[0].read_bytes())
        assert compute() == 3


def test_another_image_column_has_other_features(images: Path, model: HPM, tmp_path: Path) -> None:
    pictures = [path.read_bytes() for path in sorted(images.rglob("*.jpg"))]
    table = pa.table({"left": pictures, "right": pictures[::-1], "label": [0, 1] * 4})
    pq.write_table(table, tmp_path / "a.parquet")
    features = [
        labeled_features(
            model,
            tmp_path / "a.parquet",
            tmp_path / "a.parquet",
            device="cpu",
            workers=0,
            cache=tmp_path / "features",
            columns=Columns(image=column),
        )
        for column in ("left", "right")
    ]
    assert torch.equal(features[0].train.features, features[1].train.features.flip(0))
    assert not torch.equal(features[0].train.features, features[1].train.features)
