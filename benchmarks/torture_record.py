"""What a training has seen, recorded while it runs: for each step the images and the bytes of its batch."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hardpatch.data.batch import CROP_OFFSET
from hardpatch.data.order import TrainingOrder
from hardpatch.processes import process_rank
from hardpatch.train import loop

STEPS = "steps_{}.jsonl"


def record_in(folder: Path) -> None:
    """Make all trainings of this process and its children write a line for each batch to ``folder/steps_RANK.jsonl``.

    A step that is repeated after a kill has several lines.
    """
    batches, order = loop._batches, TrainingOrder.__iter__
    keys: deque[Any] = deque()

    def ordered(self: TrainingOrder) -> Iterator[Any]:
        keys.clear()
        for key in order(self):
            keys.append(key)
            yield key

    def recorded(job: loop.Job) -> Generator[Any, None, None]:
        path = folder / STEPS.format(process_rank().rank)
        with path.open("a", buffering=1) as file, closing(batches(job)) as inner:
            for batch in inner:
                key = keys.popleft() if keys else None
                line = {"pid": os.getpid(), "run": str(job.folder), "step": job.step + 1, "images": _images(batch, key)}
                file.write(json.dumps({**line, "digest": _digest(batch)}) + "\n")
                yield batch

    loop._batches = recorded
    TrainingOrder.__iter__ = ordered  # type: ignore[method-assign]


def _images(batch: Any, key: Any) -> list[int]:
    """Return the indices of the images; batches of segmentation do not name them, their order does."""
    if hasattr(batch, "samples"):
        return [sample.image_index for sample in batch.samples]
    if hasattr(batch, "indices"):
        return [int(index) for index in batch.indices if index < CROP_OFFSET]  # once, however many crops
    return [int(index) for index in key[:, 1]]


def _digest(value: Any) -> str:
    """Return the digest of all tensors in a batch."""
    digest = hashlib.sha1()

    def add(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            digest.update(np.ascontiguousarray(part.numpy()).tobytes())
        elif isinstance(part, dict):
            for name in sorted(part):
                add(part[name])
        elif isinstance(part, list | tuple):
            for item in part:
                add(item)
        else:
            digest.update(repr(part).encode())

    add(value)
    return digest.hexdigest()


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Read the lines of all processes; one that was cut off by a kill is left out."""
    records = []
    for path in sorted(folder.glob(STEPS.format("*"))):
        for line in path.read_text().splitlines():
            try:
                records.append({**json.loads(line), "rank": path.stem})
            except ValueError:
                continue
    return records


def last_of_each_step(records: list[dict[str, Any]]) -> dict[tuple[str, int, str], tuple[tuple[int, ...], str]]:
    """Return images and digest by run, step and process, of the last time that the step was taken."""
    return {(line["run"], line["step"], line["rank"]): (tuple(line["images"]), str(line["digest"])) for line in records}


def each_image_once(steps: dict[tuple[str, int, str], tuple[tuple[int, ...], str]]) -> bool:
    """Return whether all images of each run were seen equally often, but for an epoch that was not completed."""
    for run in {run for run, _, _ in steps}:
        seen = np.bincount([image for key, (images, _) in steps.items() if key[0] == run for image in images])
        if seen.max() - seen.min() > 1:
            return False
    return True
