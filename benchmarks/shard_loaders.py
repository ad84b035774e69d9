"""Loading from tar shards, beside the packages webdataset and litdata on the same images, decoded and cropped alike.

    python benchmarks/shard_loaders.py --data cifar10/train.parquet --image_size 32

Packs the images with `hardpatch shard`, and copies the same files into litdata's chunks. Each round measures the
loaders one after the other, so that other work on the machine falls on all of them; the ratios of a round count. Needs
`pip install webdataset litdata`.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hardpatch.data.augment import TrainTransform
from hardpatch.data.decode import open_image
from hardpatch.data.loader import train_batches
from hardpatch.data.shard import shard
from hardpatch.data.sources import open_source

BATCH = 256
BUFFER = 1000
"""Images in webdataset's buffer; litdata shuffles chunks and the images of a chunk, and ours all images."""


def crop(data: bytes, transform: TrainTransform) -> torch.Tensor:
    """Decode and crop an image: uint8 ``[C, H, W]``, as every loader here does."""
    rng = np.random.default_rng()
    return transform.crop(open_image(data, transform.reading), rng).pixels


def ours(shards: Path, transform: TrainTransform, workers: int) -> Iterator[int]:
    """Yield the size of each batch of our loader."""
    stream = train_batches(open_source(shards), transform, batch_size=BATCH, seed=0, workers=workers)
    try:
        for batch in stream:
            yield len(batch.images)
    finally:
        stream.close()


def with_webdataset(shards: Path, transform: TrainTransform, workers: int) -> Iterator[int]:
    """Yield the size of each batch of webdataset's loader."""
    import webdataset as wds

    urls = sorted(map(str, shards.glob("*.tar")))
    dataset = wds.WebDataset(urls, resampled=True, shardshuffle=False).shuffle(BUFFER).to_tuple("jpg;jpeg;png", "cls")
    dataset = dataset.map_tuple(partial(crop, transform=transform), int).batched(BATCH)
    for images, _ in wds.WebLoader(dataset, batch_size=None, num_workers=workers):
        yield len(images)


def with_litdata(chunks: Path, transform: TrainTransform, workers: int) -> Iterator[int]:
    """Yield the size of each batch of litdata's loader."""
    import litdata

    dataset = litdata.StreamingDataset(str(chunks), shuffle=True, transform=partial(cropped_item, crops=transform))
    loader = litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers)
    while True:
        for images, _ in loader:
            yield len(images)


def cropped_item(item: dict[str, Any], crops: TrainTransform) -> tuple[torch.Tensor, int]:
    """Decode an item of litdata's."""
    return crop(item["image"], crops), item["label"]


def write_chunks(shards: Path, chunks: Path, images: int) -> None:
    """Copy the files in shards into litdata's chunks of as many images."""
    from litdata.streaming.writer import BinaryWriter

    source = open_source(shards)
    writer = BinaryWriter(str(chunks), chunk_size=images)
    for i in range(len(source)):
        writer[i] = {"image": source.encoded(i), "label": source.label(i) or 0}
    writer.done()
    writer.merge(1)


def rate(loader: Callable[[], Iterator[int]], seconds: float) -> float:
    """Return the images a second, after a third of the time."""
    stream = loader()
    start = time.perf_counter()
    while time.perf_counter() - start < seconds / 3:
        next(stream)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        count += next(stream)
    elapsed = time.perf_counter() - start
    del stream
    return count / elapsed


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--images_per_shard", type=int, default=1000)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transform = TrainTransform((options.image_size, options.image_size))
    with tempfile.TemporaryDirectory() as folder:
        shards, chunks = Path(folder) / "shards", Path(folder) / "chunks"
        shard(open_source(options.data), shards, images_per_shard=options.images_per_shard)
        write_chunks(shards, chunks, options.images_per_shard)
        print("| workers | hardpatch, images/s | webdataset | litdata | ratio to webdataset | ratio to litdata |")
        print("|---|---|---|---|---|---|")
        for workers in options.workers:
            loaders = [
                partial(ours, shards, transform, workers),
                partial(with_webdataset, shards, transform, workers),
                partial(with_litdata, chunks, transform, workers),
            ]
            rates = np.array([[rate(loader, options.seconds) for loader in loaders] for _ in range(options.rounds)])
            ratios = [
                f"{np.median(r):.2f} ({r.min():.2f} to {r.max():.2f})"
                for r in (rates[:, 0] / rates[:, 1], rates[:, 0] / rates[:, 2])
            ]
            shown = [f"{value:.0f}" for value in np.median(rates, 0)]
            print(f"| {' | '.join([str(workers), *shown, *ratios])} |", flush=True)


if __name__ == "__main__":
    main()
