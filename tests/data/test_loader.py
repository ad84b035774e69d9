import io
import itertools
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hardpatch.data.augment import EvalTransform, MultiCropTransform, TrainTransform, resize
from hardpatch.data.loader import (
    SAMPLES,
    BadFiles,
    Batch,
    TrainingOrder,
    batches_ahead,
    eval_batches,
    on_device,
    resolve_workers,
    train_batches,
)
from hardpatch.data.sources import Source, open_images, open_source
from hardpatch.errors import UserError

# torch says so where there are fewer cores than workers, as there may be on a test machine
MANY_WORKERS = "ignore:This DataLoader will create"
pytestmark = pytest.mark.filterwarnings(MANY_WORKERS)

TRAIN = TrainTransform((16, 16))
EVAL = EvalTransform((16, 16))


def make_folder(root: Path, n: int, broken: tuple[int, ...] = (), labeled: bool = True) -> Source:
    """Images of noise, 20 x 24, and junk where they are broken; image i lies in class i % 3."""
    rng = np.random.default_rng(0)
    for i in range(n):
        # the number leads, so that the order of the names is the order of the images
        path = root / f"{i % 3}" / f"{i:03d}.png" if labeled else root / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(buffer, "PNG")
        path.write_bytes(b"junk" if i in broken else buffer.getvalue())
    return open_source(root)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return make_folder(tmp_path_factory.mktemp("images"), 22)


def take(stream: Generator[Batch, None, None], n: int) -> list[Batch]:
    batches = list(itertools.islice(stream, n))
    stream.close()
    return batches


def assert_same(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.images, y.images)
        assert torch.equal(x.indices, y.indices)
        assert torch.equal(x.labels, y.labels)
        assert x.bad == y.bad
        for one, other in ((x.boxes, y.boxes), (x.flipped, y.flipped)):
            assert (one is None) == (other is None)
            assert one is None or other is None or torch.equal(one, other)


# the training stream


def test_shapes_and_types(source: Source) -> None:
    (batch,) = take(train_batches(source, TRAIN, batch_size=5, seed=0), 1)
    assert batch.images.shape == (5, 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous()
    assert batch.indices.dtype == batch.labels.dtype == torch.int64
    assert batch.labels.tolist() == [source.label(i) for i in batch.indices.tolist()]
    assert batch.bad == []
    assert batch.local is None


def test_boxes_and_flips_say_what_part_of_the_image_is_shown(source: Source) -> None:
    (batch,) = take(train_batches(source, TrainTransform((12, 14)), batch_size=22, seed=0), 1)
    assert batch.boxes is not None
    assert batch.flipped is not None
    assert batch.boxes.dtype == torch.float32
    assert 0 < batch.flipped.sum() < 22
    in_pixels = (batch.boxes.double() * torch.tensor([20, 24, 20, 24])).round().int().tolist()
    for k, (top, left, h, w) in enumerate(in_pixels):
        image = source.image(int(batch.indices[k]), 3)[top : top + h, left : left + w]
        expected = resize(image, (12, 14))
        expected = expected[:, ::-1] if batch.flipped[k] else expected
        assert np.array_equal(batch.images[k].permute(1, 2, 0).numpy(), expected)


def test_gray_and_unlabeled(tmp_path: Path) -> None:
    source = make_folder(tmp_path, 4, labeled=False)
    (batch,) = take(train_batches(source, TrainTransform((8, 12), channels=1), batch_size=4, seed=0), 1)
    assert batch.images.shape == (4, 1, 8, 12)
    assert batch.labels.tolist() == [-1] * 4


def test_batches_are_the_permutations_of_the_epochs_end_to_end(source: Source) -> None:
    batches = take(train_batches(source, TRAIN, batch_size=5, seed=0), 22)
    indices = torch.cat([batch.indices for batch in batches]).reshape(5, 22)
    for epoch in indices:
        assert sorted(epoch.tolist()) == list(range(22))
    assert len({tuple(epoch.tolist()) for epoch in indices}) == 5


def test_another_seed_is_another_run(source: Source) -> None:
    first, second = (take(train_batches(source, TRAIN, batch_size=22, seed=seed), 1)[0] for seed in (0, 1))
    assert not torch.equal(first.indices, second.indices)


def test_an_image_looks_different_in_each_epoch(source: Source) -> None:
    first, second = take(train_batches(source, TRAIN, batch_size=22, seed=0), 2)
    for i in range(22):
        assert not torch.equal(first.images[first.indices == i], second.images[second.indices == i])


def test_a_batch_larger_than_the_set(source: Source) -> None:
    batches = take(train_batches(source, TRAIN, batch_size=50, seed=0), 11)
    counts = torch.bincount(torch.cat([batch.indices for batch in batches]), minlength=22)
    assert counts.tolist() == [25] * 22
    assert_same(batches[7:], take(train_batches(source, TRAIN, batch_size=50, seed=0, start=7), 4))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(source: Source, workers: int) -> None:
    alone = take(train_batches(source, TRAIN, batch_size=5, seed=3), 9)
    assert_same(alone, take(train_batches(source, TRAIN, batch_size=5, seed=3, workers=workers), 9))


@pytest.mark.parametrize(("start", "workers"), [(1, 0), (4, 2), (9, 0)])
def test_resume_goes_on_as_if_never_stopped(source: Source, start: int, workers: int) -> None:
    whole = take(train_batches(source, TRAIN, batch_size=5, seed=3), 12)
    assert_same(
        whole[start:],
        take(train_batches(source, TRAIN, batch_size=5, seed=3, start=start, workers=workers), 12 - start),
    )


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_ranks_share_the_same_batches(source: Source, world_size: int) -> None:
    whole = take(train_batches(source, TRAIN, batch_size=6, seed=1, start=2), 8)
    shares = [
        take(train_batches(source, TRAIN, batch_size=6, seed=1, start=2, rank=rank, world_size=world_size), 8)
        for rank in range(world_size)
    ]
    for expected, *parts in zip(whole, *shares, strict=True):
        assert torch.equal(expected.images, torch.cat([part.images for part in parts]))
        assert torch.equal(expected.indices, torch.cat([part.indices for part in parts]))
        assert torch.equal(expected.labels, torch.cat([part.labels for part in parts]))


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(1, 40),
    share=st.integers(1, 30),
    world_size=st.integers(1, 4),
    start=st.integers(0, 50),
    seed=st.integers(0, 2**40),
)
def test_order_of_any_run(n: int, share: int, world_size: int, start: int, seed: int) -> None:
    """Whatever the batch, the rank and the start, a position of the stream is a place of its epoch's permutation."""
    batch_size = share * world_size
    rows = [
        np.concatenate(list(itertools.islice(TrainingOrder(n, batch_size, seed, start, rank, world_size), 3)))
        for rank in range(world_size)
    ]
    stream = np.stack([row.reshape(3, share, 2) for row in rows], axis=1).reshape(-1, 2)
    positions = np.arange(start * batch_size, (start + 3) * batch_size)
    assert np.array_equal(stream[:, 0], positions // n)
    for epoch in np.unique(stream[:, 0]):
        places, seen = positions[stream[:, 0] == epoch] % n, stream[stream[:, 0] == epoch, 1]
        order = np.concatenate(list(itertools.islice(TrainingOrder(n, 1, seed, int(epoch) * n, 0, 1), n)))[:, 1]
        assert sorted(order) == list(range(n))
        assert np.array_equal(seen, order[places])


def test_starting_far_into_a_run_is_instant() -> None:
    order = iter(TrainingOrder(1_000_000, 4096, 0, 10**9, 0, 1))
    assert next(order).shape == (4096, 2)


# on the way to the device


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_on_the_device_are_the_batches(source: Source, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    for transform in (TRAIN, MultiCropTransform((16, 16), (8, 8), local_crops=2)):
        alone = take(train_batches(source, transform, batch_size=5, seed=3), 9)
        options = {"batch_size": 5, "seed": 3, "workers": 1, "pin_memory": device == "cuda"}
        batches = train_batches(source, transform, **options)  # type: ignore[arg-type]
        there = take(on_device(batches, torch.device(device)), 9)
        assert all(batch.images.device.type == device for batch in there)
        parts = ([part.cpu() if isinstance(part, torch.Tensor) else part for part in batch] for batch in there)
        back = [Batch(*each) for each in parts]  # type: ignore[arg-type]
        assert_same(alone, back)
        assert all(torch.equal(a.local, b.local) for a, b in zip(alone, back, strict=True) if a.local is not None)  # type: ignore[arg-type]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to count processes")
def test_closing_what_is_on_the_device_stops_the_workers(source: Source) -> None:
    before = children()
    stream = on_device(train_batches(source, TRAIN, batch_size=4, seed=0, workers=2), torch.device("cpu"))
    next(stream)
    assert len(children() - before) >= 2
    stream.close()
    assert children() - before == set()


def test_workers_make_no_more_ahead_than_fits() -> None:
    assert batches_ahead(256 * 3 * 224 * 224, workers=8) == 4
    assert batches_ahead(4096 * 3 * 224 * 224, workers=1) == 3
    assert batches_ahead(4096 * 3 * 224 * 224, workers=8) == 1
    assert batches_ahead(1, workers=0) == 4


# several crops of an image


def test_crops_of_an_image_come_in_one_batch(source: Source) -> None:
    single = take(train_batches(source, TRAIN, batch_size=4, seed=3), 11)
    several = take(train_batches(source, TRAIN, batch_size=12, seed=3, crops=3), 11)
    for one, three in zip(single, several, strict=True):
        assert three.images.shape == (12, 3, 16, 16)
        assert torch.equal(three.images[:4], one.images), "the first crops are those that there are without more"
        assert torch.equal(three.indices % SAMPLES, one.indices.repeat(3))
        assert (three.indices // SAMPLES).tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert torch.equal(three.labels, one.labels.repeat(3))
        assert three.boxes is not None
        assert three.flipped is not None
        assert len(three.boxes.unique(dim=0)) > 8
        for k, (top, left, h, w) in enumerate((three.boxes * torch.tensor([20, 24, 20, 24])).round().int().tolist()):
            image = source.image(int(three.indices[k] % SAMPLES), 3)[top : top + h, left : left + w]
            expected = resize(image, (16, 16))
            expected = expected[:, ::-1] if three.flipped[k] else expected
            assert np.array_equal(three.images[k].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(("start", "workers"), [(0, 2), (4, 0), (5, 1)])
def test_crops_resume_and_do_not_depend_on_workers(source: Source, start: int, workers: int) -> None:
    whole = take(train_batches(source, TRAIN, batch_size=10, seed=1, crops=2), 9)
    rest = train_batches(source, TRAIN, batch_size=10, seed=1, crops=2, start=start, workers=workers)
    assert_same(whole[start:], take(rest, 9 - start))


def test_every_image_gives_equally_many_crops(source: Source) -> None:
    batches = take(train_batches(source, TRAIN, batch_size=8, seed=0, crops=4), 11)  # 88 crops of 22 images
    counts = torch.bincount(torch.cat([batch.indices for batch in batches]) % SAMPLES)
    assert counts.tolist() == [4] * 22


def test_an_image_is_decoded_once_for_its_crops(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    def image(i: int, channels: int) -> np.ndarray:
        decoded.append(i)
        return original(i, channels)

    original = source.image
    monkeypatch.setattr(source, "image", image)
    take(train_batches(source, TRAIN, batch_size=22, seed=0, crops=2), 2)
    assert sorted(decoded) == list(range(22))


@pytest.mark.parametrize(("batch_size", "crops", "world_size"), [(10, 3, 1), (8, 0, 1), (12, 4, 2)])
def test_crops_must_divide_the_batch(source: Source, batch_size: int, crops: int, world_size: int) -> None:
    with pytest.raises(UserError, match=rf"data\.crops: expected a divisor of .*, got {crops}"):
        train_batches(source, TRAIN, batch_size=batch_size, seed=0, crops=crops, world_size=world_size)


# files that cannot be decoded


def test_a_broken_file_gives_its_place_to_the_next(tmp_path: Path) -> None:
    source = make_folder(tmp_path, 8, broken=(2, 3, 7), labeled=False)
    (batch,) = take(
        train_batches(source, TrainTransform((20, 24), scale=(1, 1), ratio=(1.2, 1.2), flip=0), batch_size=8, seed=0), 1
    )
    shown = (0, 1, 4, 4, 4, 5, 6, 0)
    assert sorted(batch.indices.tolist()) == list(range(8))
    for k, index in enumerate(batch.indices.tolist()):
        expected = torch.from_numpy(source.image(shown[index], 3)).permute(2, 0, 1)
        assert torch.equal(batch.images[k], expected), f"image {index} should show {shown[index]}"
    assert sorted(batch.bad) == [f"{source.name(i)}: not a JPEG, PNG, WebP, TIFF or BMP file" for i in (2, 3, 7)]


def test_the_label_is_that_of_the_image_shown(tmp_path: Path) -> None:
    source = make_folder(tmp_path, 6, broken=(3,))  # in order of name: 000 003 001 004 002 005
    (batch,) = take(train_batches(source, TRAIN, batch_size=6, seed=0), 1)
    assert source.name(1).endswith("003.png")
    assert batch.labels[batch.indices == 1].item() == source.label(2) == 1


def test_broken_files_are_replaced_the_same_with_workers_and_ranks(tmp_path: Path) -> None:
    source = make_folder(tmp_path, 9, broken=(0, 1, 5))
    alone = take(train_batches(source, TRAIN, batch_size=4, seed=0), 6)
    assert_same(alone, take(train_batches(source, TRAIN, batch_size=4, seed=0, workers=2), 6))
    halves = [take(train_batches(source, TRAIN, batch_size=4, seed=0, rank=r, world_size=2), 6) for r in (0, 1)]
    for whole, a, b in zip(alone, *halves, strict=True):
        assert torch.equal(whole.images, torch.cat([a.images, b.images]))
        assert set(whole.bad) == {*a.bad, *b.bad}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "open_stream",
    [
        lambda source, workers: train_batches(source, TRAIN, batch_size=2, seed=0, workers=workers),
        lambda source, workers: eval_batches(source, EVAL, batch_size=2, workers=workers),
    ],
    ids=["train", "eval"],
)
def test_nothing_decodable_is_one_line(
    tmp_path: Path, workers: int, open_stream: Callable[[Source, int], Iterator[Batch]]
) -> None:
    source = make_folder(tmp_path, 3, broken=(0, 1, 2), labeled=False)
    with pytest.raises(UserError, match=r"none of the 3 images can be decoded.*\d\.png: not a JPEG") as caught:
        next(open_stream(source, workers))
    assert "\n" not in str(caught.value)


def test_bad_files_are_logged_once_and_counted() -> None:
    lines: list[str] = []
    bad = BadFiles(total=100, max_bad_fraction=0.02, log=lines.append)
    bad.update(["a.jpg: truncated"])
    bad.update(["a.jpg: truncated", "b.jpg: empty file"])
    bad.update([])
    assert len(bad) == 2
    assert lines == ["cannot decode a.jpg: truncated", "cannot decode b.jpg: empty file"]


def test_too_many_bad_files_stop_the_run_with_one_line() -> None:
    bad = BadFiles(total=100, max_bad_fraction=0.02, log=lambda line: None)
    bad.update(["a.jpg: x", "b.jpg: x"])
    with pytest.raises(UserError) as caught:
        bad.update(["c.jpg: x", "d.jpg: y"])
    message = str(caught.value)
    assert "\n" not in message
    for part in ("4 of 100", "4.00%", "2.00%", "c.jpg", "d.jpg: y", "raise --data.max_bad_fraction to go on"):
        assert part in message


def test_no_bad_file_is_allowed_at_zero_and_all_at_one(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError):
        BadFiles(10, 0.0).update(["a: x"])
    BadFiles(2, 1.0).update(["a: x", "b: x"])
    assert [record.name for record in caplog.records] == ["hardpatch"] * 3


# evaluation


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_once_in_order(source: Source, workers: int) -> None:
    batches = list(eval_batches(source, EVAL, batch_size=8, workers=workers))
    assert [len(batch.images) for batch in batches] == [8, 8, 6]
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(22))
    assert torch.cat([batch.labels for batch in batches]).tolist() == [source.label(i) for i in range(22)]
    assert torch.equal(batches[1].images[2], EVAL(source.image(10, 3)))
    assert batches[0].boxes is batches[0].flipped is None


def test_broken_files_are_left_out_and_no_batch_is_empty(tmp_path: Path) -> None:
    broken = (0, 1, 2, 4, 6, 7, 8, 12, 13)
    source = make_folder(tmp_path, 14, broken=broken, labeled=False)
    batches = list(eval_batches(source, EVAL, batch_size=2))
    assert [batch.indices.tolist() for batch in batches] == [[3], [5], [9], [10, 11]]
    assert all(len(batch.images) == len(batch.indices) == len(batch.labels) > 0 for batch in batches)
    for batch, missing in zip(batches, [(0, 1, 2), (4, 6, 7), (8,), (12, 13)], strict=True):
        assert sorted(batch.bad) == [f"{source.name(i)}: not a JPEG, PNG, WebP, TIFF or BMP file" for i in missing]
    assert torch.equal(batches[3].images[1], EVAL(source.image(11, 3)))


# mistakes


@pytest.mark.parametrize(("batch_size", "world_size"), [(0, 1), (-4, 1), (6, 4)])
def test_batch_size_must_be_shared_evenly(source: Source, batch_size: int, world_size: int) -> None:
    with pytest.raises(UserError, match=f"batch_size: .*{world_size} processes, got {batch_size}"):
        train_batches(source, TRAIN, batch_size=batch_size, seed=0, world_size=world_size)


def test_arguments_are_checked_before_anything_runs(source: Source) -> None:
    with pytest.raises(UserError, match="seed: expected 0 or more, got -1"):
        train_batches(source, TRAIN, batch_size=4, seed=-1)
    with pytest.raises(UserError, match=r"data\.channels"):
        train_batches(source, TrainTransform((16, 16), channels=13), batch_size=4, seed=0)
    with pytest.raises(UserError, match=r"data\.channels"):
        eval_batches(source, EvalTransform((16, 16), channels=2), batch_size=4)
    with pytest.raises(UserError, match="batch_size"):
        eval_batches(source, EVAL, batch_size=0)


def test_resolve_workers() -> None:
    cores = len(os.sched_getaffinity(0))
    assert resolve_workers("auto") == min(cores - 1, 8)
    assert resolve_workers(0) == 0
    assert resolve_workers(5) == 5
    for wrong in (-1, "many", 1.5, True):
        with pytest.raises(UserError, match=r'data\.workers: expected "auto"'):
            resolve_workers(wrong)  # type: ignore[arg-type]


# processes


def children() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to count processes")
def test_closing_the_stream_stops_the_workers(source: Source) -> None:
    before = children()
    stream = train_batches(source, TRAIN, batch_size=4, seed=0, workers=2)
    next(stream)
    assert len(children() - before) >= 2
    stream.close()
    assert children() - before == set()


@pytest.fixture
def spawning() -> Iterator[None]:
    torch.multiprocessing.set_start_method("spawn", force=True)
    yield
    torch.multiprocessing.set_start_method(None, force=True)


@pytest.mark.usefixtures("spawning")
def test_spawned_workers_give_the_same_batches(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = make_folder(tmp_path / "images", 8)
    pq.write_table(pa.table({"image": [Path(folder.name(i)).read_bytes() for i in range(8)]}), tmp_path / "a.parquet")
    source = open_images([tmp_path / "a.parquet", tmp_path / "images"])
    alone = take(train_batches(source, TRAIN, batch_size=5, seed=3), 4)
    assert_same(alone, take(train_batches(source, TRAIN, batch_size=5, seed=3, workers=1), 4))


INTERRUPTED = """
    import signal, sys
    from hardpatch.data.augment import TrainTransform
    from hardpatch.data.loader import train_batches
    from hardpatch.data.sources import open_source

    interrupts = []
    stream = train_batches(open_source(sys.argv[1]), TrainTransform((64, 64)), batch_size=64, seed=0, workers=2)
    next(stream)  # the workers run before the handler is set, as when they are spawned
    signal.signal(signal.SIGINT, lambda *_: interrupts.append(1))
    while not interrupts:
        next(stream)
        print("ready", flush=True)
    for _ in range(20):  # more than the workers have ready
        next(stream)
    print("went on")
"""


def test_interrupt_from_the_keyboard_is_left_to_the_main_process(tmp_path: Path, source: Source) -> None:
    (tmp_path / "run.py").write_text(textwrap.dedent(INTERRUPTED))
    images = str(Path(source.name(0)).parents[1])
    with subprocess.Popen(
        [sys.executable, "-W", MANY_WORKERS, str(tmp_path / "run.py"), images],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
        output, errors = process.communicate(timeout=60)
    assert errors == ""
    assert output.endswith("went on\n")
    assert process.returncode == 0


# real data


def test_real_images_stream(shared: Path) -> None:
    source = open_source(shared / "data" / "caltech100_128" / "train")
    batches = take(train_batches(source, TrainTransform((48, 48)), batch_size=64, seed=0), 4)
    assert all(batch.bad == [] for batch in batches)
    mean = torch.cat([batch.images for batch in batches]).float().mean()
    assert 80 < mean < 180
