"""A batch of images in the type of their pixels, and its way to the device."""

from collections.abc import Generator
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

CROP_OFFSET = 1 << 40
"""Larger than any data set; see :func:`crop_indices`."""


class Batch(NamedTuple):
    """A batch of images, B crops of them or multi-crop views.

    With a :class:`~hardpatch.data.augment.MultiCropTransform`, `images` holds two views of each image and `local` L
    smaller ones, view by view: the first view of all images, then the second of all, and so on. `local` is None if
    there are no local views.

    `boxes` and `flipped` say which part of the image each crop of a :class:`~hardpatch.data.augment.TrainTransform`
    shows, and whether it was flipped afterwards. They are None for other transforms. Like `labels` they belong to the
    image that is shown, which is another one than `indices` say where a file could not be decoded.
    """

    images: torch.Tensor  # [B, C, H, W], or [2 * B, C, H, W]
    indices: torch.Tensor  # int64 [B], of the images in the source; see `crop_indices`
    labels: torch.Tensor  # int64 [B], -1 = none
    bad: list[str]  # "name: reason" of each file that could not be decoded
    local: torch.Tensor | None = None  # [L * B, C, h, w]
    boxes: torch.Tensor | None = None  # float32 [B, 4]: top, left, height, width as shares of the image's height, width
    flipped: torch.Tensor | None = None  # bool [B]


def crop_indices(indices: npt.NDArray[np.int64], crops: int) -> npt.NDArray[np.int64]:
    """Repeat the indices [n] of a batch for several crops of each image: int64 [crops * n].

    The first n are the indices, the next n the indices plus CROP_OFFSET, then plus twice that, and so on. So crops of
    one image have different indices, and `index % CROP_OFFSET` is the image.
    """
    return (np.arange(crops)[:, None] * CROP_OFFSET + indices).ravel()


def on_device(batches: Generator[Batch, None, None], device: torch.device) -> Generator[Batch, None, None]:
    """Move batches to the device. On CUDA a batch is copied while the device still computes the previous step.

    The copy runs on a stream of its own, so it does not wait for the step; only the next step waits for the copy. The
    batches must be pinned, otherwise the host waits too. Closing this generator closes `batches`.
    """
    with closing(batches):
        if device.type != "cuda":
            yield from (_moved(batch, device) for batch in batches)
            return
        copy_stream = torch.cuda.Stream(device)
        for batch in batches:
            with torch.cuda.stream(copy_stream):
                moved = _moved(batch, device)
            step_stream = torch.cuda.current_stream(device)
            step_stream.wait_stream(copy_stream)
            for tensor in moved:
                if isinstance(tensor, torch.Tensor):
                    # otherwise the allocator could reuse the memory as soon as the copy stream is done with it
                    tensor.record_stream(step_stream)
            yield moved


def _moved(batch: Batch, device: torch.device) -> Batch:
    fields: dict[str, Any] = batch._asdict()
    for name, value in fields.items():
        if isinstance(value, torch.Tensor):
            fields[name] = value.to(device, non_blocking=True)
    return Batch(**fields)
