"""Decoding and cropping on one core, beside Pillow: bytes of a JPEG to a random resized crop as a uint8 array.

    python benchmarks/decode.py [--data IMAGES] [--repeats 15]

Prints median and quartiles of the microseconds of an image, and of how many times as fast as Pillow each way is, over
repeats that alternate. Photographs of scikit-image at 500 x 375 and 2000 x 1500, quality 90 to 95, and those of --data
as they are. The last table tells what decoding at a smaller scale, and libjpeg's quicker transforms, cost in quality.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from PIL import Image

from hardpatch.data.augment import TrainTransform
from hardpatch.data.crop import crop_box, resize
from hardpatch.data.decode import Jpeg, decode, open_image
from hardpatch.data.sources import open_source

SIZE, SCALE, RATIO = (224, 224), (0.2, 1.0), (3 / 4, 4 / 3)
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "retina.jpg")
QUALITIES = (90, 92, 95)
ZOOMS = (1.0, 1.5, 2.0, 3.0)
MOST_IMAGES = 60  # of --data

Way = Callable[[bytes, int], object]


def photographs(width: int, height: int) -> list[bytes]:
    """JPEGs of this size, cut from the middle of photographs that are scaled to cover it."""
    import skimage

    files = []
    for k, name in enumerate(PHOTOGRAPHS):
        with Image.open(Path(skimage.__file__).parent / "data" / name) as file:
            image = file.convert("RGB")
        zoom = max(width / image.width, height / image.height)
        image = image.resize((round(image.width * zoom), round(image.height * zoom)), Image.Resampling.BICUBIC)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        buffer = io.BytesIO()
        image.crop((left, top, left + width, top + height)).save(buffer, "JPEG", quality=QUALITIES[k % len(QUALITIES)])
        files.append(buffer.getvalue())
    return files


def with_pillow(data: bytes, seed: int) -> npt.NDArray[np.uint8]:
    """The whole image decoded, a box of it resized in one call; the same boxes as ours, flipped as ours."""
    rng = np.random.default_rng((0, 0, seed))
    image = Image.open(io.BytesIO(data)).convert("RGB")
    top, left, h, w = crop_box(image.height, image.width, SCALE, RATIO, rng)
    out = image.resize(SIZE[::-1], Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
    if rng.random() < 0.5:
        out = out.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(out)


def ours(shrink_on_decode: float | None) -> Way:
    """As a loader's worker does it, up to the copy into the batch."""
    transform = TrainTransform(SIZE, scale=SCALE, ratio=RATIO, shrink_on_decode=shrink_on_decode)
    place = torch.empty(3, *SIZE, dtype=torch.uint8)

    def way(data: bytes, seed: int) -> torch.Tensor:
        return place.copy_(transform.crop(open_image(data), np.random.default_rng((0, 0, seed))).pixels)

    return way


def table(what: str, files: list[bytes], ways: dict[str, Way], repeats: int) -> None:
    """Each repeat goes over all files with one way after the other, other crops in each repeat."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            begin = time.perf_counter()
            for k, data in enumerate(files):
                way(data, repeat * len(files) + k)
            if repeat:  # the first one warms up
                times[name].append((time.perf_counter() - begin) / len(files))
    mean = sum(map(len, files)) / len(files) / 1000
    print(f"\n{what}, {len(files)} JPEGs of {mean:.0f} kB on average, {repeats} repeats:\n")
    print("| | us an image, median (quartiles) | times as fast as Pillow |")
    print("|---|---|---|")
    first = next(iter(ways))
    for name in ways:
        each = [second * 1e6 for second in times[name]]
        ratios = [a / b for a, b in zip(times[first], times[name], strict=True)]
        print(f"| {name} | {_spread(each, '.0f')} | {_spread(ratios, '.2f')} |")


def _spread(values: list[float], form: str) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def quality(files: list[bytes]) -> None:
    """PSNR of the whole image, resized to where the decoded pixels are `zoom` times as high and wide as the output."""
    print("\nPSNR in dB beside the full decode, median (least) over the images:\n")
    print("| decoded pixels over the output's | " + " | ".join(f"{zoom:g}" for zoom in ZOOMS) + " |")
    print("|---|" + "---|" * len(ZOOMS))
    quick = {"fastdct": {"fastdct": True}, "fastupsample": {"fastupsample": True}}
    for name in ("1/2", "1/4", "1/8", *quick):
        row = []
        for zoom in ZOOMS:
            found = []
            for data in files:
                jpeg, full = open_image(data), decode(data)
                if not isinstance(jpeg, Jpeg):
                    continue
                shrink = 1 if name in quick else int(name[2:])
                fewer = jpeg.pixels(shrink) if shrink > 1 else simplejpeg.decode_jpeg(data, "RGB", **quick[name])
                h, w = full.shape[0] // shrink, full.shape[1] // shrink
                size = (max(1, int(h / zoom)), max(1, int(w / zoom)))
                difference = resize(full[: h * shrink, : w * shrink], size).astype(int) - resize(fewer[:h, :w], size)
                found.append(10 * np.log10(255**2 / max(float((difference**2).mean()), 1e-6)))
            row.append(f"{np.median(found):.1f} ({min(found):.1f})")
        print(f"| {name} | " + " | ".join(row) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="more images: a folder or Parquet files")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    small, large = photographs(500, 375), photographs(2000, 1500)
    in_full: dict[str, Way] = {"Pillow": with_pillow, "hardpatch": ours(None)}
    table("500 x 375", small * 4, in_full, options.repeats)
    ways = {**in_full, "hardpatch, shrink_on_decode 2": ours(2.0)}
    table("2000 x 1500", large, ways, options.repeats)
    files = small
    if options.data:
        source = open_source(options.data)
        encoded = [source.encoded(i) for i in range(min(len(source), MOST_IMAGES))]
        files = [data for data in encoded if data is not None and data[:3] == b"\xff\xd8\xff"]
        table(options.data, files, ways, options.repeats)
    quality(files)


if __name__ == "__main__":
    main()
