"""Data sets in memory: the same batches as when images are decoded on demand."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from hardpatch.data import memory
from hardpatch.data.augment import MultiCropTransform, TrainTransform
from hardpatch.data.loader import train_batches
from hardpatch.data.memory import InMemorySource, available_memory, image_sizes
from hardpatch.data.reading import GRAY as GRAYSCALE
from hardpatch.data.reading import Reading
from hardpatch.data.sources import Source, open_images, open_source
from hardpatch.errors import UserError
from tests.data.small import MANY_WORKERS, assert_same, make_folder, take, write_parquet

pytestmark = pytest.mark.filterwarnings(MANY_WORKERS)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, photograph: np.ndarray) -> Source:
    """40 images: JPEG, PNG and Parquet, of several sizes, colored and gray, some of them broken."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("mixed")
    (folder / "photographs").mkdir()
    for k in range(12):
        cut = Image.fromarray(photograph[20 * k : 260 + 10 * k, 200 - 10 * k : 330])
        (cut.convert("L") if k % 5 == 0 else cut).save(folder / "photographs" / f"{k:02d}.jpg", quality=92)
    whole = (folder / "photographs" / "03.jpg").read_bytes()
    (folder / "photographs" / "03.jpg").write_bytes(whole[: len(whole) // 2])  # the header is complete, the rest is not
    (folder / "photographs" / "04.jpg").write_bytes(whole[:20])
    make_folder(folder / "noise", 20, broken=(0, 7, 19))
    files = sorted((folder / "photographs").iterdir())[:8]
    write_parquet(folder / "a.parquet", [files[0].read_bytes(), None, *(file.read_bytes() for file in files[2:8])])
    return open_images([folder / "photographs", folder / "noise", folder / "a.parquet"])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_equal_those_decoded_on_demand(mixed: Source, channels: int, workers: int) -> None:
    in_memory = InMemorySource(mixed, Reading(channels))
    for transform in (
        TrainTransform((24, 32), Reading(channels)),
        TrainTransform((24, 32), Reading(channels), color_jitter=0.4),
        MultiCropTransform((24, 32), (8, 8), local_crops=2, reading=Reading(channels)),
    ):
        options = {"batch_size": 12, "seed": 3, "start": 2}
        on_demand = take(train_batches(mixed, transform, **options), 5)  # type: ignore[arg-type]
        assert_same(on_demand, take(train_batches(in_memory, transform, workers=workers, **options), 5))  # type: ignore[arg-type]
        assert sum(len(batch.bad) for batch in on_demand) > 4


def test_names_labels_and_pixels_are_those_of_the_source(mixed: Source) -> None:
    in_memory = InMemorySource(mixed, Reading(3))
    assert len(in_memory) == len(mixed)
    assert [in_memory.name(i) for i in range(len(in_memory))] == [mixed.name(i) for i in range(len(in_memory))]
    assert [in_memory.label(i) for i in range(len(in_memory))] == [mixed.label(i) for i in range(len(in_memory))]
    assert (in_memory.classes, in_memory.skipped) == (mixed.classes, mixed.skipped)
    assert in_memory.encoded(0) is None
    assert in_memory.image(0, GRAYSCALE).shape[2] == 1, "another number of channels is decoded on demand"
    demo = InMemorySource(open_source("demo:test"), Reading(3))
    assert np.array_equal(demo.image(7), open_source("demo:test").image(7))


def test_images_are_decoded_once(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "images", 6)
    in_memory = InMemorySource(source, Reading(3))
    before = [in_memory.image(i).copy() for i in range(6)]
    for path in (tmp_path / "images").rglob("*.png"):
        path.unlink()
    whole_image = TrainTransform((20, 24), scale=(1, 1), ratio=(1.2, 1.2), flip=0)
    (batch,) = take(train_batches(in_memory, whole_image, batch_size=6, seed=0), 1)
    for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
        assert np.array_equal(image.permute(1, 2, 0), before[index])


def test_pickled_source_has_no_pixels(mixed: Source) -> None:
    in_memory = InMemorySource(mixed, Reading(3))
    data = pickle.dumps(in_memory)
    assert len(data) < 20_000
    copy = pickle.loads(data)
    transform = TrainTransform((16, 16))
    assert_same(*(take(train_batches(s, transform, batch_size=8, seed=0), 6) for s in (in_memory, copy)))


def test_sizes_are_read_from_headers(mixed: Source) -> None:
    sizes, broken = image_sizes(mixed, Reading(3), None)
    for i in range(len(mixed)):
        if i in broken:
            assert sizes[i].tolist() == [0, 0]
            assert broken[i].startswith(mixed.name(i))
        elif i != 3 and i != 35:  # cut off after their headers
            assert tuple(sizes[i]) == mixed.image(i).shape[:2]


@pytest.mark.parametrize("sample", [5, 1000])
def test_set_that_does_not_fit_is_refused_in_one_line(
    mixed: Source, monkeypatch: pytest.MonkeyPatch, sample: int
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 10_000)
    monkeypatch.setattr(memory, "SAMPLE", sample)
    with pytest.raises(
        UserError, match=r"data\.in_memory: 40 images take .* GB as pixels and 0\.0 GB are free"
    ) as caught:
        InMemorySource(mixed, Reading(3))
    assert "\n" not in str(caught.value)


def test_free_memory_is_known_on_linux() -> None:
    if not Path("/proc/meminfo").exists():
        pytest.skip("another system")
    free = available_memory()
    assert free is not None
    assert 2**26 < free < 2**46


def test_source_without_decodable_images(tmp_path: Path) -> None:
    in_memory = InMemorySource(make_folder(tmp_path, 3, broken=(0, 1, 2), labeled=False), Reading(3))
    with pytest.raises(UserError, match="none of the 3 images can be decoded"):
        next(train_batches(in_memory, TrainTransform((8, 8)), batch_size=2, seed=0))


def test_threads_do_not_change_the_warning_filters(mixed: Source) -> None:
    import warnings

    before = list(warnings.filters)
    InMemorySource(mixed, Reading(3))
    assert list(warnings.filters) == before
