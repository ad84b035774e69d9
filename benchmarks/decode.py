"""Benchmark of decoding and cropping on one core: bytes of a JPEG to a random resized crop as a uint8 array.

    python benchmarks/decode.py [--data IMAGES] [--repeats 15]

Prints medians and quartiles of the time per image and of the speedup over Pillow, over alternating repeats. The images
are photographs of scikit-image at 500 x 375 and 2000 x 1500 with quality 90 to 95, and those of --data as they are.
Then 16-bit TIFF beside tifffile's own decoding, and the loss of quality by decoding at a smaller scale and by libjpeg's
faster transforms.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import simplejpeg
import tifffile
import torch
from PIL import Image

from hardpatch.data.augment import TrainTransform
from hardpatch.data.crop import crop_box, resize
from hardpatch.data.decode import Jpeg, decode, open_image
from hardpatch.data.reading import Reading
from hardpatch.data.sources import open_source

SIZE, SCALE, RATIO = (224, 224), (0.2, 1.0), (3 / 4, 4 / 3)
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "retina.jpg")
QUALITIES = (90, 92, 95)
ZOOMS = (1.0, 1.5, 2.0, 3.0)
MAX_IMAGES = 60  # of --data

Loader = Callable[[bytes, int], object]
"""Takes the bytes of a file and the seed of the crop."""


def photographs(width: int, height: int) -> list[bytes]:
    """Encode JPEGs of this size, center crops of scaled photographs."""
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
    """Decode the whole image and resize a box of it, with the boxes and flips of :func:`hardpatch_loader`."""
    rng = np.random.default_rng((0, 0, seed))
    image = Image.open(io.BytesIO(data)).convert("RGB")
    top, left, h, w = crop_box(image.height, image.width, SCALE, RATIO, rng)
    out = image.resize(SIZE[::-1], Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
    if rng.random() < 0.5:
        out = out.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(out)


def hardpatch_loader(shrink_on_decode: float | None) -> Loader:
    """Return a function that works like a worker of the loader, including the copy into the batch."""
    transform = TrainTransform(SIZE, scale=SCALE, ratio=RATIO, shrink_on_decode=shrink_on_decode)
    buffer = torch.empty(3, *SIZE, dtype=torch.uint8)

    def load(data: bytes, seed: int) -> torch.Tensor:
        return buffer.copy_(transform.crop(open_image(data), np.random.default_rng((0, 0, seed))).pixels)

    return load


def print_tiff_times(repeats: int) -> None:
    """Time the decoding of 16-bit TIFF of 256 x 256 pixels, as tifffile and as the loader does it."""
    rng = np.random.default_rng(0)
    for bands in (1, 13):
        files = []
        for _ in range(40):
            buffer = io.BytesIO()
            pixels = rng.integers(0, 4096, (256, 256, bands) if bands > 1 else (256, 256), dtype=np.uint16)
            tifffile.imwrite(buffer, pixels, photometric="minisblack", planarconfig="contig" if bands > 1 else None)
            files.append(buffer.getvalue())
        loaders: dict[str, Loader] = {
            "tifffile": lambda data, _: tifffile.imread(io.BytesIO(data)),
            "hardpatch": partial(_decode_16_bits, bands),
        }
        print_times(f"16-bit TIFF of {bands} bands, 256 x 256, decoded whole", files, loaders, repeats)


def _decode_16_bits(bands: int, data: bytes, _: int) -> object:
    return decode(data, Reading(bands, "uint16"))


def print_times(title: str, files: list[bytes], loaders: dict[str, Loader], repeats: int) -> None:
    """Time all files with each loader in turn, with new crops in each repeat, and print a table."""
    times: dict[str, list[float]] = {name: [] for name in loaders}
    for repeat in range(repeats + 1):
        for name, load in loaders.items():
            start = time.perf_counter()
            for k, data in enumerate(files):
                load(data, repeat * len(files) + k)
            if repeat:  # the first one is a warm-up
                times[name].append((time.perf_counter() - start) / len(files))
    mean = sum(map(len, files)) / len(files) / 1000
    first = next(iter(loaders))
    print(f"\n{title}, {len(files)} files of {mean:.0f} kB on average, {repeats} repeats:\n")
    print(f"| | us an image, median (quartiles) | times as fast as {first} |")
    print("|---|---|---|")
    for name in loaders:
        microseconds = [second * 1e6 for second in times[name]]
        ratios = [a / b for a, b in zip(times[first], times[name], strict=True)]
        print(f"| {name} | {_quartiles(microseconds, '.0f')} | {_quartiles(ratios, '.2f')} |")


def _quartiles(values: list[float], spec: str) -> str:
    lower, median, upper = statistics.quantiles(values, n=4)
    return f"{median:{spec}} ({lower:{spec}} to {upper:{spec}})"


def print_quality(files: list[bytes]) -> None:
    """Print the PSNR of whole images resized so that the decoded pixels are `zoom` times as high and wide."""
    print("\nPSNR in dB compared with full decoding, median (minimum) over the images:\n")
    print("| decoded pixels over the output's | " + " | ".join(f"{zoom:g}" for zoom in ZOOMS) + " |")
    print("|---|" + "---|" * len(ZOOMS))
    fast = {"fastdct": {"fastdct": True}, "fastupsample": {"fastupsample": True}}
    for name in ("1/2", "1/4", "1/8", *fast):
        row = []
        for zoom in ZOOMS:
            psnrs = []
            for data in files:
                jpeg, full = open_image(data), decode(data)
                if not isinstance(jpeg, Jpeg):
                    continue
                shrink = 1 if name in fast else int(name[2:])
                pixels = jpeg.pixels(shrink) if shrink > 1 else simplejpeg.decode_jpeg(data, "RGB", **fast[name])
                h, w = full.shape[0] // shrink, full.shape[1] // shrink
                size = (max(1, int(h / zoom)), max(1, int(w / zoom)))
                difference = resize(full[: h * shrink, : w * shrink], size).astype(int) - resize(pixels[:h, :w], size)
                psnrs.append(10 * np.log10(255**2 / max(float((difference**2).mean()), 1e-6)))
            row.append(f"{np.median(psnrs):.1f} ({min(psnrs):.1f})")
        print(f"| {name} | " + " | ".join(row) + " |")


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="additional images: a folder or Parquet files")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    small, large = photographs(500, 375), photographs(2000, 1500)
    loaders: dict[str, Loader] = {"Pillow": with_pillow, "hardpatch": hardpatch_loader(None)}
    print_times("500 x 375", small * 4, loaders, options.repeats)
    loaders["hardpatch, shrink_on_decode 2"] = hardpatch_loader(2.0)
    print_times("2000 x 1500", large, loaders, options.repeats)
    files = small
    if options.data:
        source = open_source(options.data)
        encoded = [source.encoded(i) for i in range(min(len(source), MAX_IMAGES))]
        files = [data for data in encoded if data is not None and data[:3] == b"\xff\xd8\xff"]
        print_times(options.data, files, loaders, options.repeats)
    print_tiff_times(options.repeats)
    print_quality(files)


if __name__ == "__main__":
    main()
