from pathlib import Path

import numpy as np
import pytest
import torch

from hardpatch.data.augment import MultiCropTransform
from hardpatch.data.batch import CROP_OFFSET, Batch, crop_indices, on_device
from hardpatch.data.loader import train_batches
from hardpatch.data.sources import Source
from tests.data.small import MANY_WORKERS, TRAIN, assert_same, child_processes, take

pytestmark = pytest.mark.filterwarnings(MANY_WORKERS)


def test_crops_of_an_image_have_different_indices() -> None:
    indices = crop_indices(np.array([7, 3]), 3)
    assert indices.tolist() == [7, 3, CROP_OFFSET + 7, CROP_OFFSET + 3, 2 * CROP_OFFSET + 7, 2 * CROP_OFFSET + 3]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_on_the_device_equal_those_on_the_host(source: Source, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    for transform in (TRAIN, MultiCropTransform((16, 16), (8, 8), local_crops=2)):
        on_host = take(train_batches(source, transform, batch_size=5, seed=3), 9)
        options = {"batch_size": 5, "seed": 3, "workers": 1, "pin_memory": device == "cuda"}
        batches = train_batches(source, transform, **options)  # type: ignore[arg-type]
        moved = take(on_device(batches, torch.device(device)), 9)
        assert all(batch.images.device.type == device for batch in moved)
        fields = ([field.cpu() if isinstance(field, torch.Tensor) else field for field in batch] for batch in moved)
        assert_same(on_host, [Batch(*values) for values in fields])  # type: ignore[arg-type]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to count processes")
def test_closing_the_stream_on_the_device_stops_the_workers(source: Source) -> None:
    before = child_processes()
    stream = on_device(train_batches(source, TRAIN, batch_size=4, seed=0, workers=2), torch.device("cpu"))
    next(stream)
    assert len(child_processes() - before) >= 2
    stream.close()
    assert child_processes() - before == set()
