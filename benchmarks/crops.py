"""Write labeled crops of large images as Parquet: kinds of sets other than photographs of one object.

    python benchmarks/crops.py textures OUT                # scikit-image's own images; the label is the image
    python benchmarks/crops.py camvid100 OUT               # a folder of scenes and label maps; the label is the
                                                           # class that covers most of the crop

OUT/train.parquet and OUT/val.parquet never share a pixel: crops of a texture come from the left 70 % of its image and
from the rest, crops of scenes from different scenes (``train`` and ``val`` against ``test``). ``plan_rules.py`` takes
them as ``--set textures=OUT/train.parquet,OUT/val.parquet``.
"""

import argparse
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

TEXTURES = (
    *("astronaut.png", "brick.png", "cell.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png"),
    *("hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg"),
)
LEFT = 0.7
"""Fraction of a texture's width from which crops for training come."""
MOST = 0.6
"""Fraction of a crop that its class must cover; other crops of scenes are left out."""
IGNORED = 11
"""Label of CamVid that is no class."""

Crop = tuple[npt.NDArray[np.uint8], int]


def corners(image: npt.NDArray[np.uint8], side: int, count: int, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Yield upper left corners of crops."""
    height, width = image.shape[:2]
    for _ in range(count):
        yield int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))


def textures(side: int, train: int, val: int) -> tuple[list[Crop], list[Crop]]:
    """Return crops of scikit-image's images."""
    import skimage.data

    rng = np.random.default_rng(0)
    parts: tuple[list[Crop], list[Crop]] = ([], [])
    for label, name in enumerate(TEXTURES):
        with Image.open(Path(skimage.data.__file__).parent / name) as file:
            image = np.asarray(file.convert("RGB"))
        edge = int(LEFT * image.shape[1])
        for crops, half, count in zip(parts, (image[:, :edge], image[:, edge:]), (train, val), strict=True):
            for y, x in corners(half, side, count // len(TEXTURES), rng):
                crops.append((half[y : y + side, x : x + side], label))
    return parts


def scenes(folder: Path, side: int, train: int, val: int) -> tuple[list[Crop], list[Crop]]:
    """Return crops of scenes, labeled by the class that covers most of them."""
    rng = np.random.default_rng(0)
    parts: tuple[list[Crop], list[Crop]] = ([], [])
    for crops, splits, count in zip(parts, (("train", "val"), ("test",)), (train, val), strict=True):
        paths = [path for split in splits for path in sorted((folder / "images" / split).iterdir())]
        while len(crops) < count:
            path = paths[int(rng.integers(len(paths)))]
            with Image.open(path) as file:
                image = np.asarray(file.convert("RGB"))
            with Image.open(folder / "labels" / path.parent.name / f"{path.stem}.png") as file:
                labels = np.asarray(file)
            for y, x in corners(image, side, 8, rng):
                values, counts = np.unique(labels[y : y + side, x : x + side], return_counts=True)
                label = int(values[counts.argmax()])
                if label != IGNORED and counts.max() >= MOST * side * side:
                    crops.append((image[y : y + side, x : x + side], label))
        del crops[count:]
    return parts


def write(file: Path, crops: list[Crop]) -> None:
    """Write crops as a table of images and labels."""
    encoded = []
    for pixels, _ in crops:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png")
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": encoded, "label": [label for _, label in crops]}), file)
    print(f"{file}: {len(crops)} crops, {len({label for _, label in crops})} classes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help='"textures", or a folder of images/{train,val,test} and labels/{...}')
    parser.add_argument("out", type=Path)
    parser.add_argument("--side", type=int, default=64, help="of a crop, in pixels (default: 64)")
    parser.add_argument("--train", type=int, default=3000, help="crops to train on (default: 3000)")
    parser.add_argument("--val", type=int, default=1000, help="crops to evaluate on (default: 1000)")
    setup = parser.parse_args()
    counts = (setup.side, setup.train, setup.val)
    parts = textures(*counts) if setup.source == "textures" else scenes(Path(setup.source), *counts)
    for name, crops in zip(("train", "val"), parts, strict=True):
        write(setup.out / f"{name}.parquet", crops)
